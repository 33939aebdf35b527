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

inline Selection RunSelector(const Selector& selector, const KernelTable& kernels,
                             const SelectProblem& problem, const RowsView& keys) {
  constexpr std::byte kGuard{0xA5};
  constexpr std::int32_t kGuardStart = -77;
  std::vector<const float*> rows;
  for (int r = 0; r < problem.tokens * problem.heads; ++r) {
    rows.push_back(problem.queries.data() + static_cast<std::size_t>(r) * problem.dim);
  }
  const std::size_t scratch_bytes =
      selector.ScratchBytes(kernels, {.tokens = problem.tokens,
                                      .heads_per_token = problem.heads,
                                      .keys = problem.visible,
                                      .dim = problem.dim});
  const AlignedBytes scratch = AllocateAligned(kCacheLine + scratch_bytes + kCacheLine);
  std::fill_n(scratch.get(), kCacheLine + scratch_bytes + kCacheLine, kGuard);
  const int capacity = selector.Capacity();
  std::vector<std::int32_t> starts(static_cast<std::size_t>(capacity) + 2, kGuardStart);

  SelectArgs args;
  args.queries = rows.data();
  args.tokens = problem.tokens;
  args.heads_per_token = problem.heads;
  args.keys = keys;
  args.visible = problem.visible;
  args.starts = starts.data() + 1;
  args.scratch = scratch.get() + kCacheLine;
  const std::int32_t count = selector.Select(kernels, args);

  const auto untouched = [](std::byte byte) { return byte == kGuard; };
  const std::byte* after = scratch.get() + kCacheLine + scratch_bytes;
  Selection selection;
  selection.everything = count == BlockMask::kEverything;
  selection.in_bounds = std::all_of(scratch.get(), scratch.get() + kCacheLine, untouched) &&
                        std::all_of(after, after + kCacheLine, untouched) && count <= capacity &&
                        starts.front() == kGuardStart && starts.back() == kGuardStart;
  if (selection.in_bounds && count > 0) {
    selection.starts.assign(starts.begin() + 1, starts.begin() + 1 + count);
  }
  return selection;
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
  for (int block = 0; block < args.count; ++block) {
    float best = -std::numeric_limits<float>::infinity();
    const std::int32_t begin = args.starts[block];
    for (std::int32_t key = begin; key < std::min(begin + args.block_size, args.limit); ++key) {
      const auto* row = reinterpret_cast<const float*>(args.keys.data + key * args.keys.stride);
      for (int r = 0; r < args.rows; ++r) {
        float dot = -0.0f;  // so that a score may be -0
        for (int i = 0; i < args.keys.dim; ++i) dot += args.queries[r][i] * row[i];
        if (!(dot <= best)) best = dot;
        if (std::isnan(best)) break;
      }
      if (std::isnan(best)) break;
    }
    args.scores[block] = best;
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
