// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "attention/plan.h"

#include <algorithm>
#include <limits>

#include "core/align.h"

namespace coppice {
namespace {

// Below this many tiles the keys are split, so that a few threads still find equal work.
constexpr int kEnoughItems = 32;
// Pieces of few rows, whose problems of all KV heads are one item. A piece costs 3 to 10 microseconds: its partial
// results go to memory and come back, and memory waits while there is nothing to fetch (Zen 4, q8_0, 32/8 heads x 128,
// in turn, against 32: 16 Ki keys 6 to 8 % faster, two threads 3 to 11; 64 Ki 3, two threads 1). More than 16
// threads find no piece; so many would read 350 GB/s.
constexpr int kFewRowsPieces = 16;
// Searching for neighbouring query blocks together leaves at least so many items to threads.
constexpr int kEnoughSearches = 16;
// A piece of few rows is never smaller: for one KV head of 64 dims in f16 it is 64 KiB of K and V, about
// 5 microseconds; merging a piece costs 1/256 of that.
constexpr int kFewRowsSplitKeys = 256;

int CeilDivide(int a, int b) { return (a + b - 1) / b; }

std::string Shape(const TensorView& view) {
  return "[" + std::to_string(view.tokens) + ", " + std::to_string(view.heads) + ", " +
         std::to_string(view.dim) + "]";
}

}  // namespace

Status CheckInputs(const AttentionInputs& inputs) {
  const TensorView& q = inputs.queries;
  const TensorView& k = inputs.keys;
  const TensorView& v = inputs.values;
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() / 2;
  const auto bad = [](std::string what) { return Status::InvalidArgument(std::move(what)); };
  for (const TensorView* view : {&q, &k, &v}) {
    const char* name = view == &q ? "queries" : view == &k ? "keys" : "values";
    if (view->data == nullptr) return bad(std::string(name) + " has no data");
    if (view->tokens < 1 || view->heads < 1 || view->dim < 1 || view->tokens > kMost ||
        view->heads > 65536 || view->dim > 65536) {
      return bad(std::string(name) + " has shape " + Shape(*view) +
                 "; each size must be positive and not absurd");
    }
  }
  if (q.type != DType::kF32)
    return bad(std::string("queries are ") + NameOf(q.type) + "; they must be f32");
  if (q.dim != k.dim)
    return bad("queries " + Shape(q) + " and keys " + Shape(k) + " differ in their last size");
  if (k.tokens != v.tokens || k.heads != v.heads) {
    return bad("keys " + Shape(k) + " and values " + Shape(v) + " differ in tokens or heads");
  }
  if (q.heads % k.heads != 0) {
    return bad("query heads (" + std::to_string(q.heads) + ") are no multiple of KV heads (" +
               std::to_string(k.heads) + ")");
  }
  for (const TensorView* view : {&k, &v}) {
    if (view->type == DType::kQ8_0 && view->dim % kQ8BlockSize != 0) {
      return bad("q8_0 rows are made of blocks of 32 elements, and " + std::to_string(view->dim) +
                 " is no multiple of that");
    }
  }
  if (!(inputs.softcap >= 0)) {
    return bad("softcap is " + std::to_string(inputs.softcap) + "; it must be 0 (none) or above");
  }
  if (inputs.visible == nullptr && inputs.mask.data == nullptr && q.tokens > k.tokens) {
    return bad("more queries (" + std::to_string(q.tokens) + ") than keys (" +
               std::to_string(k.tokens) + ") in causal attention");
  }
  const OutputView& o = inputs.output;
  if (o.data == nullptr) return bad("output has no data");
  if (o.tokens != q.tokens || o.heads != q.heads || o.dim != v.dim) {
    return bad("output has shape [" + std::to_string(o.tokens) + ", " + std::to_string(o.heads) +
               ", " + std::to_string(o.dim) + "], not [queries, heads, dim_v] = [" +
               std::to_string(q.tokens) + ", " + std::to_string(q.heads) + ", " +
               std::to_string(v.dim) + "]");
  }
  return Status::Ok();
}

AttentionPlan MakePlan(const AttentionInputs& inputs, const AttentionSettings& settings,
                       const KernelTable& kernels, const Selector* selector) {
  AttentionPlan plan;
  plan.queries = static_cast<int>(inputs.queries.tokens);
  plan.keys = static_cast<int>(inputs.keys.tokens);
  plan.heads = static_cast<int>(inputs.queries.heads);
  plan.kv_heads = static_cast<int>(inputs.keys.heads);
  plan.dim_k = static_cast<int>(inputs.keys.dim);
  plan.dim_v = static_cast<int>(inputs.values.dim);
  plan.key_type = inputs.keys.type;
  plan.value_type = inputs.values.type;
  plan.fast = settings.fast;
  plan.pruned = selector != nullptr;
  plan.heads_per_tile = plan.pruned && !settings.share_group ? 1 : plan.group();
  plan.tile_heads = plan.heads / plan.heads_per_tile;
  plan.tile_tokens =
      plan.pruned ? settings.block_q : std::max(1, kernels.tile_rows / plan.heads_per_tile);
  plan.tile_tokens = std::min(plan.tile_tokens, plan.queries);
  plan.token_tiles = CeilDivide(plan.queries, plan.tile_tokens);
  // Tiles of one size, so that no thread waits for another's last one.
  if (!plan.pruned) plan.tile_tokens = CeilDivide(plan.queries, plan.token_tiles);
  plan.split_keys = plan.keys;
  if (plan.pruned) {
    plan.blocks_per_item = std::clamp(plan.tiles() / kEnoughSearches, 1,
                                      selector->BlocksTogether(kernels, plan.select_shape()));
    plan.max_runs = selector->Capacity() + 1;  // and the sink
  } else {
    const bool few_rows = plan.tile_rows() <= kernels.few_rows;
    if (few_rows) plan.heads_per_item = plan.tile_heads;
    const int pieces = CeilDivide(few_rows ? kFewRowsPieces : kEnoughItems, plan.item_tiles());
    plan.split_keys =
        std::max(few_rows ? kFewRowsSplitKeys : kernels.split_keys, CeilDivide(plan.keys, pieces));
    plan.splits = CeilDivide(plan.keys, plan.split_keys);
  }
  plan.thread_bytes = LayOutItem(nullptr, plan, kernels, selector).bytes;
  plan.shared_bytes = LayOutPartials(nullptr, plan).bytes;
  return plan;
}

ItemScratch LayOutItem(std::byte* base, const AttentionPlan& plan, const KernelTable& kernels,
                       const Selector* selector) {
  const auto rows = static_cast<std::size_t>(plan.tile_rows());
  const auto problems = static_cast<std::size_t>(plan.tiles_per_item());
  ScratchCutter cutter(base);
  ItemScratch scratch;
  scratch.problems = cutter.Take<AttendArgs>(problems);
  scratch.selections = cutter.Take<SelectArgs>(static_cast<std::size_t>(plan.blocks_per_item));
  scratch.queries = cutter.Take<const float*>(problems * rows);
  scratch.outputs = cutter.Take<float*>(problems * rows);
  scratch.lses = cutter.Take<float>(problems * rows);
  scratch.far = cutter.Take<KeyRange>(rows);
  scratch.near = cutter.Take<KeyRange>(rows);
  scratch.mask_rows = cutter.Take<const std::byte*>(rows);
  scratch.slopes = cutter.Take<float>(problems * rows);
  scratch.positions = cutter.Take<std::int32_t>(rows);
  scratch.runs = cutter.Take<KeyRange>(static_cast<std::size_t>(plan.max_runs));
  scratch.kernel = cutter.Take<std::byte>(kernels.attend_scratch(plan.shape()));
  scratch.select =
      selector == nullptr
          ? nullptr
          : cutter.Take<std::byte>(selector->ScratchBytes(kernels, plan.select_shape()));
  scratch.bytes = cutter.used();
  return scratch;
}

PartialScratch LayOutPartials(std::byte* base, const AttentionPlan& plan) {
  const std::size_t rows = plan.splits == 1 ? 0
                                            : static_cast<std::size_t>(plan.tiles()) *
                                                  static_cast<std::size_t>(plan.splits) *
                                                  static_cast<std::size_t>(plan.tile_rows());
  ScratchCutter cutter(base);
  PartialScratch scratch;
  scratch.outputs = cutter.Take<float>(rows * static_cast<std::size_t>(plan.dim_v));
  scratch.lses = cutter.Take<float>(rows);
  scratch.bytes = cutter.used();
  return scratch;
}

}  // namespace coppice
