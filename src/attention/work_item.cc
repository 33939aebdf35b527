// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What one work item does: select (when pruned), name the keys that each row sees, attend, and
// merge where the keys were split. Runs on any thread; allocates and locks nothing.
//
// A pruned row at position p reads the disjoint union (InfiniteHiP, arXiv 2502.08910, and HiP)
//   far:   sink and selected blocks, j <= p - window
//   near:  the sliding window,       p - window < j <= p
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "attention/attention_impl.h"

namespace coppice {
namespace {

constexpr int kMostSplits = 64;  // MakePlan makes fewer

using Clock = std::chrono::steady_clock;

std::int64_t NanosecondsSince(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

// Query tokens [first, last) and query heads [head, head + heads_per_tile) of a tile.
struct Tile {
  int index;
  int first;
  int last;
  int block;  // index of the query block
  int head;   // first query head
  int selection_head;
  int rows;
};

Tile TileOf(const AttentionPlan& plan, int block, int selection_head) {
  Tile tile;
  tile.index = (plan.token_tiles - 1 - block) * plan.tile_heads + selection_head;
  tile.block = block;
  tile.selection_head = selection_head;
  tile.first = tile.block * plan.tile_tokens;
  tile.last = std::min(tile.first + plan.tile_tokens, plan.queries);
  tile.head = tile.selection_head * plan.heads_per_tile;
  tile.rows = (tile.last - tile.first) * plan.heads_per_tile;
  return tile;
}

// The newest tokens first: in causal prefill they are the longest, and are best begun early.
Tile TileAt(const AttentionPlan& plan, int index) {
  return TileOf(plan, plan.token_tiles - 1 - index / plan.tile_heads, index % plan.tile_heads);
}

RowsView HeadRows(const TensorView& view, int head) {
  return {view.Row(0, head), view.token_stride, view.type, static_cast<int>(view.dim)};
}

// Points queries and outputs at the rows of a tile, token-major.
void PointAtRows(const AttentionInputs& inputs, const AttentionPlan& plan, const Tile& tile,
                 const float** queries, float** outputs) {
  int row = 0;
  for (int token = tile.first; token < tile.last; ++token) {
    for (int h = 0; h < plan.heads_per_tile; ++h, ++row) {
      const int head = tile.head + h;
      queries[row] = reinterpret_cast<const float*>(inputs.queries.Row(token, head));
      outputs[row] = inputs.output.Row(token, head);
    }
  }
}

// The kernel's problem for a tile, the n-th of its item.
AttendArgs& MakeProblem(const Attention::Impl& attention, const Tile& tile, int n,
                        std::span<const KeySegment> segments, ItemScratch& scratch) {
  const int kv_head = tile.head / attention.plan.group();
  const int row = n * attention.plan.tile_rows();
  const bool alibi = attention.inputs.alibi_slopes != nullptr;
  scratch.problems[n] = {.rows = tile.rows,
                         .queries = scratch.queries + row,
                         .keys = HeadRows(attention.inputs.keys, kv_head),
                         .values = HeadRows(attention.inputs.values, kv_head),
                         .scale = attention.inputs.scale,
                         .softcap = attention.inputs.softcap,
                         .slopes = alibi ? scratch.slopes + row : nullptr,
                         .positions = alibi ? scratch.positions : nullptr,
                         .fast = attention.settings.fast,
                         .segments = segments.data(),
                         .segment_count = static_cast<int>(segments.size()),
                         .outputs = scratch.outputs + row,
                         .lses = scratch.lses + row,
                         .scratch = scratch.kernel};
  return scratch.problems[n];
}

// ALiBi of the rows of a tile, the n-th of its item.
void PointAtSlopes(const AttentionInputs& inputs, const AttentionPlan& plan, const Tile& tile,
                   int n, ItemScratch& scratch) {
  if (inputs.alibi_slopes == nullptr) return;
  float* slopes = scratch.slopes + n * plan.tile_rows();
  int row = 0;
  for (int token = tile.first; token < tile.last; ++token) {
    for (int h = 0; h < plan.heads_per_tile; ++h, ++row) {
      slopes[row] = inputs.alibi_slopes[tile.head + h];
      scratch.positions[row] = plan.keys - plan.queries + token;
    }
  }
}

// A sink is one more key whose value is zero: it merges like any other disjoint part.
void AddSinks(const AttentionInputs& inputs, const AttentionPlan& plan, const Tile& tile,
              float* const* outputs, float* lses) {
  if (inputs.sinks == nullptr) return;
  for (int row = 0; row < tile.rows; ++row) {
    const float sink = inputs.sinks[tile.head + row % plan.heads_per_tile];
    const float highest = std::max(lses[row], sink);
    if (highest == -std::numeric_limits<float>::infinity()) continue;
    const float lse = highest + std::log(std::exp(lses[row] - highest) + std::exp(sink - highest));
    const float kept = std::exp(lses[row] - lse);
    for (int i = 0; i < plan.dim_v; ++i) outputs[row][i] *= kept;
    lses[row] = lse;
  }
}

void WriteLses(const AttentionInputs& inputs, const AttentionPlan& plan, const Tile& tile,
               const float* lses) {
  if (inputs.lse == nullptr) return;
  int row = 0;
  for (int token = tile.first; token < tile.last; ++token) {
    for (int h = 0; h < plan.heads_per_tile; ++h, ++row) {
      inputs.lse[static_cast<std::int64_t>(token) * plan.heads + tile.head + h] = lses[row];
    }
  }
}

// Visible keys of each row for dense attention, cut to [split_begin, split_end). Returns their sum.
std::uint64_t DenseRanges(const AttentionInputs& inputs, const AttentionPlan& plan,
                          const Tile& tile, KeyRange split, KeyRange* rows) {
  std::uint64_t sum = 0;
  const int first_position = plan.keys - plan.queries;
  int row = 0;
  for (int token = tile.first; token < tile.last; ++token) {
    KeyRange range = {0, plan.keys};
    if (inputs.visible != nullptr) {
      range = inputs.visible[token];
    } else if (inputs.mask.data == nullptr) {
      range.end = first_position + token + 1;
    }
    range.begin = std::max(range.begin, split.begin);
    range.end = std::max(range.begin, std::min(range.end, split.end));
    for (int h = 0; h < plan.heads_per_tile; ++h) rows[row++] = range;
    sum += static_cast<std::uint64_t>(range.end - range.begin) *
           static_cast<std::uint64_t>(plan.heads_per_tile);
  }
  return sum;
}

void PointAtMask(const MaskView& mask, const AttentionPlan& plan, const Tile& tile,
                 const std::byte** rows) {
  int row = 0;
  for (int token = tile.first; token < tile.last; ++token) {
    for (int h = 0; h < plan.heads_per_tile; ++h) {
      rows[row++] = static_cast<const std::byte*>(mask.data) + token * mask.row_stride;
    }
  }
}

KeyRange PieceOf(const AttentionPlan& plan, int split) {
  return {split * plan.split_keys, std::min((split + 1) * plan.split_keys, plan.keys)};
}

// First row of a piece of a tile among the partial results.
std::size_t PartialRow(const AttentionPlan& plan, const Tile& tile, int split) {
  return static_cast<std::size_t>(tile.index * plan.splits + split) *
         static_cast<std::size_t>(plan.tile_rows());
}

// Merges the pieces of a tile, in the order of the keys.
void MergeTile(const Attention::Impl& attention, const Tile& tile, const PartialScratch& partials,
               ItemScratch& scratch) {
  const AttentionPlan& plan = attention.plan;
  const float* parts[kMostSplits];
  float lses[kMostSplits];
  PointAtRows(attention.inputs, plan, tile, scratch.queries, scratch.outputs);
  for (int row = 0; row < tile.rows; ++row) {
    for (int split = 0; split < plan.splits; ++split) {
      const std::size_t at = PartialRow(plan, tile, split) + static_cast<std::size_t>(row);
      parts[split] = partials.outputs + at * static_cast<std::size_t>(plan.dim_v);
      lses[split] = partials.lses[at];
    }
    scratch.lses[row] =
        attention.kernels->merge(parts, lses, plan.splits, plan.dim_v, scratch.outputs[row]);
  }
  AddSinks(attention.inputs, plan, tile, scratch.outputs, scratch.lses);
  WriteLses(attention.inputs, plan, tile, scratch.lses);
}

// Runs of sink and selected blocks, ascending and disjoint. Returns their number.
int FarRuns(const AttentionSettings& settings, std::span<const std::int32_t> starts,
            std::int32_t keys, KeyRange* runs) {
  int count = 0;
  if (settings.sink > 0) runs[count++] = {0, std::min(settings.sink, keys)};
  for (const std::int32_t start : starts) {
    const std::int32_t end = std::min(start + settings.block_k, keys);
    if (count > 0 && runs[count - 1].end == start) {
      runs[count - 1].end = end;
    } else {
      runs[count++] = {start, end};
    }
  }
  return count;
}

std::uint64_t KeysIn(const KeyRange* runs, int count, KeyRange visible) {
  std::uint64_t keys = 0;
  for (int i = 0; i < count; ++i) {
    const std::int32_t begin = std::max(runs[i].begin, visible.begin);
    const std::int32_t end = std::min(runs[i].end, visible.end);
    if (end > begin) keys += static_cast<std::uint64_t>(end - begin);
  }
  return keys;
}

// Query blocks of an item: [first, last), of one selection head.
struct ItemBlocks {
  int first;
  int last;
  int selection_head;
};

// The newest first, as tiles.
ItemBlocks BlocksOf(const AttentionPlan& plan, int item) {
  const int index = plan.item_blocks() - 1 - item / plan.tile_heads;
  return {.first = index * plan.blocks_per_item,
          .last = std::min((index + 1) * plan.blocks_per_item, plan.token_tiles),
          .selection_head = item % plan.tile_heads};
}

void SelectBlocks(Attention::Impl& attention, const ItemBlocks& blocks,
                  const ItemScratch& scratch) {
  const AttentionPlan& plan = attention.plan;
  for (int block = blocks.first; block < blocks.last; ++block) {
    const Tile tile = TileOf(plan, block, blocks.selection_head);
    const int n = block - blocks.first;
    scratch.selections[n] = {.queries = scratch.queries + n * plan.tile_rows(),
                             .tokens = tile.last - tile.first,
                             .heads_per_token = plan.heads_per_tile,
                             .keys = HeadRows(attention.inputs.keys, tile.head / plan.group()),
                             .visible = plan.keys - plan.queries + tile.last,
                             .scale = attention.inputs.scale,
                             .starts = attention.mask.RowStarts(tile.selection_head, tile.block),
                             .scratch = scratch.select};
  }
  attention.selector->SelectTogether(
      *attention.kernels,
      {scratch.selections, static_cast<std::size_t>(blocks.last - blocks.first)},
      &attention.mask.counts[attention.mask.RowIndex(blocks.selection_head, blocks.first)]);
}

// Attention of a tile, the n-th of its item, on what was selected.
void AttendSelected(Attention::Impl& attention, const Tile& tile, int n, ItemScratch& scratch) {
  const AttentionPlan& plan = attention.plan;
  const AttentionSettings& settings = attention.settings;
  const bool everything = attention.mask.Everything(tile.selection_head, tile.block);
  const int far_count = everything
                            ? 0
                            : FarRuns(settings, attention.mask.Row(tile.selection_head, tile.block),
                                      plan.keys, scratch.runs);
  const int first_position = plan.keys - plan.queries;
  std::uint64_t read = 0;
  std::uint64_t visible = 0;
  int row = 0;
  for (int token = tile.first; token < tile.last; ++token) {
    const int position = first_position + token;
    const int newest = attention.reuse_selection ? attention.kept.made_at : position;
    const int near_begin = everything ? 0 : std::max(0, newest + 1 - settings.window);
    const KeyRange far = {0, std::min(near_begin, position + 1)};
    const KeyRange near = {far.end, position + 1};
    const auto heads = static_cast<std::uint64_t>(plan.heads_per_tile);
    read += heads * (KeysIn(scratch.runs, far_count, far) +
                     static_cast<std::uint64_t>(near.end - near.begin));
    visible += heads * static_cast<std::uint64_t>(position + 1);
    for (int h = 0; h < plan.heads_per_tile; ++h, ++row) {
      scratch.far[row] = far;
      scratch.near[row] = near;
    }
  }
  const KeyRange all = {0, plan.keys};
  const KeySegment segments[] = {
      {.runs = scratch.runs, .run_count = far_count, .visible = scratch.far},
      {.runs = &all, .run_count = 1, .visible = scratch.near}};
  const AttendArgs& problem = MakeProblem(attention, tile, n, segments, scratch);
  attention.kernels->attend(&problem, 1);
  AddSinks(attention.inputs, plan, tile, problem.outputs, problem.lses);
  WriteLses(attention.inputs, plan, tile, problem.lses);
  attention.keys_read.fetch_add(read, std::memory_order_relaxed);
  attention.keys_visible.fetch_add(visible, std::memory_order_relaxed);
}

}  // namespace

void RunDenseItem(Attention::Impl& attention, int item, std::size_t thread) {
  const auto start = Clock::now();
  const AttentionPlan& plan = attention.plan;
  const AttentionInputs& inputs = attention.inputs;
  const int split = item % plan.splits;
  const int first_tile = item / plan.splits * plan.heads_per_item;
  ItemScratch scratch =
      LayOutItem(attention.workspace->threads[thread].get(), plan, *attention.kernels, nullptr);
  const PartialScratch partials = LayOutPartials(attention.workspace->shared.get(), plan);

  const Tile first = TileAt(plan, first_tile);  // the others differ in the head only
  const KeyRange run = PieceOf(plan, split);
  const std::uint64_t visible = DenseRanges(inputs, plan, first, run, scratch.near) *
                                static_cast<std::uint64_t>(plan.heads_per_item);
  KeySegment segment = {.runs = &run, .run_count = 1, .visible = scratch.near};
  if (inputs.mask.data != nullptr) {
    PointAtMask(inputs.mask, plan, first, scratch.mask_rows);
    segment.mask_rows = scratch.mask_rows;
    segment.mask_type = inputs.mask.type;
  }
  for (int n = 0; n < plan.heads_per_item; ++n) {
    const Tile tile = TileAt(plan, first_tile + n);
    AttendArgs& problem = MakeProblem(attention, tile, n, {&segment, 1}, scratch);
    const int row = n * plan.tile_rows();
    PointAtRows(inputs, plan, tile, scratch.queries + row, scratch.outputs + row);
    PointAtSlopes(inputs, plan, tile, n, scratch);
    if (plan.splits == 1) continue;
    const std::size_t partial = PartialRow(plan, tile, split);
    problem.lses = partials.lses + partial;
    for (int r = 0; r < tile.rows; ++r) {
      scratch.outputs[row + r] = partials.outputs + (partial + static_cast<std::size_t>(r)) *
                                                        static_cast<std::size_t>(plan.dim_v);
    }
  }
  ItemTrail& trail = attention.workspace->trails[thread];
  const std::uint64_t epoch = attention.workspace->epoch.load(std::memory_order_relaxed);
  const int pieces = item - split;  // of these tiles begin here
  const int pieces_end = pieces + plan.splits;
  scratch.problems[0].same_queries = trail.Follows(attention.serial, epoch, pieces, pieces_end);
  scratch.problems[0].fetched = trail.Take(attention.serial, epoch, item, pieces_end);
  if (trail.next != ItemTrail::kNone) {
    scratch.problems[0].ahead = PieceOf(plan, split + trail.next - item);
  }
  attention.kernels->attend(scratch.problems, plan.heads_per_item);

  if (plan.splits == 1) {
    for (int n = 0; n < plan.heads_per_item; ++n) {
      const Tile tile = TileAt(plan, first_tile + n);
      AddSinks(inputs, plan, tile, scratch.problems[n].outputs, scratch.problems[n].lses);
      WriteLses(inputs, plan, tile, scratch.problems[n].lses);
    }
  } else {
    std::atomic<int>& finished =
        attention.workspace->finished[static_cast<std::size_t>(item / plan.splits)];
    if (finished.fetch_add(1, std::memory_order_acq_rel) == plan.splits - 1) {
      finished.store(0, std::memory_order_relaxed);
      attention.workspace->epoch.fetch_add(1, std::memory_order_relaxed);
      for (int n = 0; n < plan.heads_per_item; ++n) {
        MergeTile(attention, TileAt(plan, first_tile + n), partials, scratch);
      }
    }
  }
  attention.keys_read.fetch_add(visible, std::memory_order_relaxed);
  attention.keys_visible.fetch_add(visible, std::memory_order_relaxed);
  attention.attend_ns.fetch_add(NanosecondsSince(start), std::memory_order_relaxed);
}

void RunPrunedItem(Attention::Impl& attention, int item, std::size_t thread) {
  const auto start = Clock::now();
  const AttentionPlan& plan = attention.plan;
  const ItemBlocks blocks = BlocksOf(plan, item);
  attention.workspace->trails[thread] = {};
  ItemScratch scratch = LayOutItem(attention.workspace->threads[thread].get(), plan,
                                   *attention.kernels, attention.selector.get());
  for (int block = blocks.first; block < blocks.last; ++block) {
    const int row = (block - blocks.first) * plan.tile_rows();
    PointAtRows(attention.inputs, plan, TileOf(plan, block, blocks.selection_head),
                scratch.queries + row, scratch.outputs + row);
  }
  if (!attention.reuse_selection) SelectBlocks(attention, blocks, scratch);
  const std::int64_t select_ns = NanosecondsSince(start);
  for (int block = blocks.first; block < blocks.last; ++block) {
    AttendSelected(attention, TileOf(plan, block, blocks.selection_head), block - blocks.first,
                   scratch);
  }
  attention.select_ns.fetch_add(select_ns, std::memory_order_relaxed);
  attention.attend_ns.fetch_add(NanosecondsSince(start) - select_ns, std::memory_order_relaxed);
}

}  // namespace coppice
