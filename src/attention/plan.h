// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// How one attention call is cut into independent work items. It looks at shapes and settings only,
// never at the number of threads, so that results do not depend on it.
//
//   tile = query tokens [t0, t1) x the query heads of one selection head (a KV head, or one query
//          head when the group does not share)
//   item = tile, or one of its `splits` pieces of the keys; the last piece done merges them. In
//          dense decode an item takes the tiles of all KV heads, whose keys are neighbours, and in
//          pruned prefill those of neighbouring query blocks, which the search reads the same keys for.
#pragma once

#include <cstddef>
#include <cstdint>

#include "coppice/attention.h"
#include "coppice/settings.h"
#include "kernels/table.h"
#include "select/selector.h"

namespace coppice {

struct AttentionPlan {
  bool pruned = false;
  int queries = 0;
  int keys = 0;
  int heads = 0;
  int kv_heads = 0;
  int dim_k = 0;
  int dim_v = 0;
  DType key_type = DType::kF32;
  DType value_type = DType::kF32;
  bool fast = false;

  int tile_tokens = 0;     // query tokens in a tile
  int heads_per_tile = 0;  // query heads in a tile
  int token_tiles = 0;
  int tile_heads = 0;       // selection heads, or KV heads in dense attention
  int heads_per_item = 1;   // tiles of neighbouring KV heads that one item solves together
  int blocks_per_item = 1;  // tiles of neighbouring query blocks that one item selects for together
  int splits = 1;           // pieces of the keys
  int split_keys = 0;       // keys in a piece

  int max_runs = 0;  // key runs of a pruned tile
  std::size_t thread_bytes = 0;
  std::size_t shared_bytes = 0;

  int group() const { return heads / kv_heads; }
  int tiles() const { return token_tiles * tile_heads; }
  int tiles_per_item() const { return heads_per_item * blocks_per_item; }
  int item_blocks() const { return (token_tiles + blocks_per_item - 1) / blocks_per_item; }
  int item_tiles() const { return item_blocks() * (tile_heads / heads_per_item); }
  int items() const { return item_tiles() * splits; }
  int tile_rows() const { return tile_tokens * heads_per_tile; }
  AttendShape shape() const {
    return {.rows = tile_rows(),
            .problems = heads_per_item,
            .dim_k = dim_k,
            .dim_v = dim_v,
            .key_type = key_type,
            .value_type = value_type,
            .fast = fast};
  }
  SelectShape select_shape() const {
    return {.blocks = blocks_per_item,
            .tokens = tile_tokens,
            .heads_per_token = heads_per_tile,
            .keys = keys,
            .key_type = key_type,
            .dim = dim_k};
  }
};

// Ok, or which part of `inputs` does not fit.
Status CheckInputs(const AttentionInputs& inputs);

// selector: null for dense attention.
AttentionPlan MakePlan(const AttentionInputs& inputs, const AttentionSettings& settings,
                       const KernelTable& kernels, const Selector* selector);

// The private memory of a thread while it runs an item; with a null base only its size.
struct ItemScratch {
  AttendArgs* problems;         // [tiles_per_item]
  SelectArgs* selections;       // [blocks_per_item]
  const float** queries;        // [tiles_per_item][rows]
  float** outputs;              // [tiles_per_item][rows]
  float* lses;                  // [tiles_per_item][rows]
  KeyRange* far;                // [rows] visible part of sink and selected blocks
  KeyRange* near;               // [rows] visible part of the window, or all that is visible
  const std::byte** mask_rows;  // [rows]
  float* slopes;                // [tiles_per_item][rows], ALiBi
  std::int32_t* positions;      // [rows]
  KeyRange* runs;               // [max_runs]
  std::byte* kernel;            // of attend
  std::byte* select;            // of the selector
  std::size_t bytes;
};
ItemScratch LayOutItem(std::byte* base, const AttentionPlan& plan, const KernelTable& kernels,
                       const Selector* selector);

// The partial results when keys are split: outputs [tiles][splits][rows][dim_v], lses
// [tiles][splits][rows].
struct PartialScratch {
  float* outputs;
  float* lses;
  std::size_t bytes;
};
PartialScratch LayOutPartials(std::byte* base, const AttentionPlan& plan);

}  // namespace coppice
