// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What the tests of selectors share: inputs in memory, a call that watches its bounds, and a kernel
// table that is as plain as can be and counts what it was asked to score.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "coppice/block_mask.h"
#include "core/align.h"
#include "core/rows.h"
#include "kernels/table.h"
#include "select/selector.h"

namespace coppice::testing {

// Queries [tokens, heads, dim] and the keys [visible, dim] of one KV head.
struct SelectProblem {
  int tokens = 1;
  int heads = 1;
  int dim = 1;
  int visible = 0;
  std::vector<float> queries;
  std::vector<float> keys;

  void Resize() {
    queries.resize(static_cast<std::size_t>(tokens) * heads * dim);
    keys.resize(static_cast<std::size_t>(visible) * dim);
  }
};

// Keys as a cache holds them: another type, and rows that lie apart with NaN between them.
class KeyCache {
 public:
  KeyCache(const SelectProblem& problem, DType type) : type_(type), dim_(problem.dim) {
    const auto row_bytes = static_cast<std::size_t>(RowBytes(type, problem.dim));
    stride_ = AlignUp(row_bytes) + kCacheLine;
    bytes_.assign(stride_ * std::max(problem.visible, 1), std::byte{0xFF});
    for (int j = 0; j < problem.visible; ++j) {
      StoreRow(problem.keys.data() + static_cast<std::size_t>(j) * dim_, type, dim_,
               bytes_.data() + stride_ * j);
    }
  }

  RowsView View() const { return {bytes_.data(), static_cast<std::int64_t>(stride_), type_, dim_}; }

 private:
  DType type_;
  int dim_;
  std::size_t stride_;
  std::vector<std::byte> bytes_;
};

struct Selection {
  bool everything = false;
  bool in_bounds = false;  // nothing was written outside of scratch and starts
  std::vector<std::int32_t> starts;
};

// Selects for the problem's query blocks of `block_q` tokens, the last of which may have fewer, in one call.
inline std::vector<Selection> RunTogether(const Selector& selector, const KernelTable& kernels,
                                          const SelectProblem& problem, const RowsView& keys,
                                          int block_q) {
  constexpr std::byte kGuard{0xA5};
  constexpr std::int32_t kGuardStart = -77;
  std::vector<const float*> rows;
  for (int r = 0; r < problem.tokens * problem.heads; ++r) {
    rows.push_back(problem.queries.data() + static_cast<std::size_t>(r) * problem.dim);
  }
  const int blocks = (problem.tokens + block_q - 1) / block_q;
  const std::size_t scratch_bytes =
      selector.ScratchBytes(kernels, {.blocks = blocks,
                                      .tokens = std::min(block_q, problem.tokens),
                                      .heads_per_token = problem.heads,
                                      .keys = problem.visible,
                                      .key_type = keys.type,
                                      .dim = problem.dim});
  const AlignedBytes scratch = AllocateAligned(kCacheLine + scratch_bytes + kCacheLine);
  std::fill_n(scratch.get(), kCacheLine + scratch_bytes + kCacheLine, kGuard);
  const int capacity = selector.Capacity();
  std::vector<std::vector<std::int32_t>> starts(
      static_cast<std::size_t>(blocks),
      std::vector<std::int32_t>(static_cast<std::size_t>(capacity) + 2, kGuardStart));

  std::vector<SelectArgs> args(static_cast<std::size_t>(blocks));
  for (int i = 0; i < blocks; ++i) {
    const int first = i * block_q;
    const int last = std::min(first + block_q, problem.tokens);
    args[i].queries = rows.data() + first * problem.heads;
    args[i].tokens = last - first;
    args[i].heads_per_token = problem.heads;
    args[i].keys = keys;
    args[i].visible = problem.visible - problem.tokens + last;
    args[i].starts = starts[i].data() + 1;
    args[i].scratch = scratch.get() + kCacheLine;
  }
  std::vector<std::int32_t> counts(static_cast<std::size_t>(blocks));
  selector.SelectTogether(kernels, args, counts.data());

  const auto untouched = [](std::byte byte) { return byte == kGuard; };
  const std::byte* after = scratch.get() + kCacheLine + scratch_bytes;
  const bool kept_scratch = std::all_of(scratch.get(), scratch.get() + kCacheLine, untouched) &&
                            std::all_of(after, after + kCacheLine, untouched);
  std::vector<Selection> selections(static_cast<std::size_t>(blocks));
  for (int i = 0; i < blocks; ++i) {
    Selection& selection = selections[i];
    selection.everything = counts[i] == BlockMask::kEverything;
    selection.in_bounds = kept_scratch && counts[i] <= capacity &&
                          starts[i].front() == kGuardStart && starts[i].back() == kGuardStart;
    if (selection.in_bounds && counts[i] > 0) {
      selection.starts.assign(starts[i].begin() + 1, starts[i].begin() + 1 + counts[i]);
    }
  }
  return selections;
}

inline Selection RunSelector(const Selector& selector, const KernelTable& kernels,
                             const SelectProblem& problem, const RowsView& keys) {
  return RunTogether(selector, kernels, problem, keys, problem.tokens)[0];
}

inline Selection RunSelector(const Selector& selector, const KernelTable& kernels,
                             const SelectProblem& problem) {
  const KeyCache cache(problem, DType::kF32);
  return RunSelector(selector, kernels, problem, cache.View());
}

// Blocks that PlainKernels() scored in this thread; a NaN score stays NaN.
inline thread_local int scored_blocks = 0;

inline void PlainScoreBlocks(const ScoreArgs& args) {
  scored_blocks += args.count;
  for (int at = 0; at < args.groups * args.count; ++at) {
    float best = -std::numeric_limits<float>::infinity();
    const int group = at / args.count;
    const std::int32_t begin = args.starts[at % args.count];
    for (std::int32_t key = begin; key < std::min(begin + args.block_size, args.limit); ++key) {
      const auto* row = reinterpret_cast<const float*>(args.keys.data + key * args.keys.stride);
      for (int r = group * args.rows; r < (group + 1) * args.rows; ++r) {
        float dot = -0.0f;  // so that a score may be -0
        for (int i = 0; i < args.keys.dim; ++i) dot += args.queries[r][i] * row[i];
        if (!(dot <= best)) best = dot;
        if (std::isnan(best)) break;
      }
      if (std::isnan(best)) break;
    }
    args.scores[at] = best;
  }
  std::fill_n(args.scratch, 64, std::byte{0});
}

// f32 keys only. It writes all of its scratch.
inline const KernelTable& PlainKernels() {
  static const KernelTable table = [] {
    KernelTable plain{};
    plain.isa = "plain";
    plain.tile_rows = 1;
    plain.dim_multiple = 1;
    plain.score_blocks = PlainScoreBlocks;
    plain.score_scratch = [](int, int, int) -> std::size_t { return 64; };
    plain.search_groups = 1;
    return plain;
  }();
  return table;
}

}  // namespace coppice::testing
