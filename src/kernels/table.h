// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The function table: everything that touches every byte. One table for each instruction set, all
// with the same contracts; generic/ is the scalar twin that the others are tested against.
// A kernel takes pointers, strides and counts. It does not allocate, lock, throw or know threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "coppice/attention.h"
#include "coppice/tensor.h"

namespace coppice {

// Rows of one KV head: row j at data + j * stride, `dim` elements of `type`.
struct RowsView {
  const std::byte* data = nullptr;
  std::int64_t stride = 0;  // bytes
  DType type = DType::kF32;
  int dim = 0;
};

// Keys to read, with what each query row may see of them: row r sees key j of a run when
// visible[r].begin <= j < visible[r].end, with mask_rows[r][j] added to its score.
struct KeySegment {
  const KeyRange* runs = nullptr;  // sorted, disjoint
  int run_count = 0;
  const KeyRange* visible = nullptr;            // [rows]
  const std::byte* const* mask_rows = nullptr;  // [rows] or null
  DType mask_type = DType::kF16;
};

// One problem: attention of `rows` query rows (tokens x heads of the group) over one KV head.
// The segments must be disjoint for each row.
struct AttendArgs {
  int rows = 0;
  const float* const* queries = nullptr;  // [rows] -> [dim_k]
  RowsView keys;
  RowsView values;
  float scale = 1;
  float softcap =
      0;  // above 0: scores become softcap * tanh(score / softcap), before ALiBi and mask
  const float* slopes = nullptr;            // [rows] or null; ALiBi: + slope * (key - position)
  const std::int32_t* positions = nullptr;  // [rows], with slopes
  bool fast = false;                        // arithmetic below f32 is allowed
  const KeySegment* segments = nullptr;
  int segment_count = 0;
  float* const* outputs = nullptr;  // [rows] -> [dim_v]; zero where nothing is visible
  float* lses = nullptr;            // [rows], natural log; -inf where nothing is visible
  std::byte* scratch = nullptr;     // of the first problem: attend_scratch bytes, 64-byte aligned
  // Hints, which change no result. Of the first problem:
  KeyRange ahead;  // keys that a call on the same tensors will presumably begin with; may be empty
  bool fetched = false;  // the keys of this call were `ahead` in the one before
  // The call before had this scratch, these queries and this shape, and nobody has touched the scratch since.
  bool same_queries = false;
};

// scores[g][i] = max over rows r of group g and keys j in {start, start + 1, ..} of block i, j < limit,
// of queries[g][r] . keys[j] - levels[g][r]. Every start is below limit. A NaN does not count; a block
// of nothing else scores -inf.
struct ScoreArgs {
  int groups = 1;                         // of query rows
  int rows = 0;                           // of a group
  const float* const* queries = nullptr;  // [groups][rows] -> [keys.dim]
  const float* levels = nullptr;          // [groups][rows], or null for zeros
  RowsView keys;
  const std::int32_t* starts = nullptr;  // [count]
  int count = 0;
  int block_size = 1;
  std::int32_t limit = 0;
  bool fast = false;             // arithmetic below f32 is allowed
  float* scores = nullptr;       // [groups][count]
  std::byte* scratch = nullptr;  // score_scratch bytes, 64-byte aligned
};

// What a kernel is chosen by.
struct AttendShape {
  int rows = 0;      // of a problem
  int problems = 1;  // in one call
  int dim_k = 0;
  int dim_v = 0;
  DType key_type = DType::kF32;
  DType value_type = DType::kF32;
  bool fast = false;
};

struct KernelTable {
  std::string_view isa;
  // Rows that fill a tile: the grain at which work should be cut.
  int tile_rows;
  // Keys that a piece of a tile has at least, where keys are split: taking queries in and merging a piece
  // costs a row about as much as a tenth of them, or less.
  int split_keys;
  // dim_k and dim_v must be multiples of this.
  int dim_multiple;
  // Up to so many rows it pays to hand over the KV heads of a cache in one call.
  int few_rows;
  // Solves problems that agree in rows, dims, strides, scale and segments: one for each KV head.
  void (*attend)(const AttendArgs* problems, int count);
  std::size_t (*attend_scratch)(const AttendShape&);
  // The kernel that such a call gets: "tile" or "rows", then the arithmetic of K.Q^T and of P.V,
  // for example "tile int8 bf16".
  std::string_view (*kernel)(const AttendShape&);
  // MergePartials of coppice/attention.h, for a dim that is a multiple of dim_multiple.
  float (*merge)(const float* const* parts, const float* lses, int count, int dim, float* out);
  void (*score_blocks)(const ScoreArgs&);
  std::size_t (*score_scratch)(int groups, int rows, int dim);
  // Neighbouring query blocks that it pays to score together, as groups: where reading and packing a key
  // costs more than its products, keys are worth sharing even with groups that do not ask for them.
  int search_groups;
};

// Never null for the isa "generic". Null when this machine or this build lacks it.
const KernelTable* FindKernels(std::string_view isa);
// The best for these dims.
const KernelTable& BestKernels(int dim_k, int dim_v);
// All that run here, slowest first.
const std::vector<const KernelTable*>& AvailableKernels();

}  // namespace coppice
