// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// One call of a kernel on one KV head, with everything it points at, and the reference for it.
#pragma once

#include <algorithm>
#include <vector>

#include "core/align.h"
#include "kernels/table.h"
#include "support/reference.h"

namespace coppice::testing {

// Rows are the heads of one token, so that Reference() can be used as it is.
struct KernelProblem {
  Tensor queries;  // [1, rows, dim_k]
  Tensor keys;     // [keys, 1, dim_k]
  Tensor values;   // [keys, 1, dim_v]
  float scale;
  bool fast = false;
  std::vector<KeyRange> runs;
  std::vector<KeyRange> visible;         // [rows]
  std::vector<std::vector<float>> mask;  // [rows][keys] or empty
  KeyRange ahead;
  bool fetched = false;
  bool same_queries = false;  // solved a second time on the same scratch

  KernelProblem(DType type, int rows, int key_count, int dim_k, int dim_v, std::uint32_t seed,
                float query_scale = 1)
      : queries(RandomTensor(DType::kF32, 1, rows, dim_k, seed, query_scale)),
        keys(RandomTensor(type, key_count, 1, dim_k, seed + 1)),
        values(RandomTensor(type, key_count, 1, dim_v, seed + 2)),
        scale(1.0f / std::sqrt(static_cast<float>(dim_k))),
        runs{{0, key_count}},
        visible(static_cast<std::size_t>(rows), KeyRange{0, key_count}) {}

  int rows() const { return static_cast<int>(queries.heads); }

  bool Sees(std::int64_t row, std::int64_t key) const {
    const KeyRange range = visible[static_cast<std::size_t>(row)];
    if (key < range.begin || key >= range.end) return false;
    for (const KeyRange run : runs) {
      if (key >= run.begin && key < run.end) return true;
    }
    return false;
  }

  ReferenceResult Want() const {
    return Reference(queries, keys, values, scale,
                     [&](std::int64_t, std::int64_t row, std::int64_t key) {
                       if (!Sees(row, key)) return -kInfinity;
                       if (mask.empty()) return 0.0;
                       return static_cast<double>(
                           mask[static_cast<std::size_t>(row)][static_cast<std::size_t>(key)]);
                     });
  }
};

// The same numbers from a scale with the other sign.
inline void NegateQ8Block(Tensor& tensor, std::int64_t block) {
  std::byte* const at = tensor.bytes.data() + block * kQ8BlockBytes;
  at[1] ^= std::byte{0x80};
  for (std::int64_t i = 2; i < kQ8BlockBytes; ++i) {
    at[i] = static_cast<std::byte>(-static_cast<std::int8_t>(at[i]));
  }
}

struct KernelResult {
  std::vector<float> output;  // [rows, dim_v]
  std::vector<float> lse;     // [rows]
};

inline KernelResult Solve(const KernelTable& kernels, const KernelProblem& problem) {
  const auto rows = static_cast<std::size_t>(problem.rows());
  const auto dim_k = static_cast<int>(problem.keys.dim);
  const auto dim_v = static_cast<int>(problem.values.dim);
  KernelResult result;
  result.output.assign(rows * static_cast<std::size_t>(dim_v), 12345.0f);
  result.lse.assign(rows, 12345.0f);
  std::vector<const float*> queries(rows);
  std::vector<float*> outputs(rows);
  std::vector<const std::byte*> mask_rows(rows);
  for (std::size_t row = 0; row < rows; ++row) {
    queries[row] = problem.queries.values.data() + row * static_cast<std::size_t>(dim_k);
    outputs[row] = result.output.data() + row * static_cast<std::size_t>(dim_v);
    if (!problem.mask.empty()) {
      mask_rows[row] = reinterpret_cast<const std::byte*>(problem.mask[row].data());
    }
  }
  KeySegment segment = {.runs = problem.runs.data(),
                        .run_count = static_cast<int>(problem.runs.size()),
                        .visible = problem.visible.data()};
  if (!problem.mask.empty()) {
    segment.mask_rows = mask_rows.data();
    segment.mask_type = DType::kF32;
  }
  // Guard bytes behind the scratch show a kernel that takes more than it said.
  const std::size_t size = kernels.attend_scratch({.rows = problem.rows(),
                                                   .dim_k = dim_k,
                                                   .dim_v = dim_v,
                                                   .key_type = problem.keys.type,
                                                   .value_type = problem.values.type,
                                                   .fast = problem.fast});
  AlignedBytes scratch = AllocateAligned(size + kCacheLine);
  for (std::size_t i = 0; i < kCacheLine; ++i) scratch[size + i] = std::byte{0xA5};
  const TensorView keys = problem.keys.view();
  const TensorView values = problem.values.view();
  const AttendArgs args = {.rows = problem.rows(),
                           .queries = queries.data(),
                           .keys = {keys.Row(0, 0), keys.token_stride, keys.type, dim_k},
                           .values = {values.Row(0, 0), values.token_stride, values.type, dim_v},
                           .scale = problem.scale,
                           .fast = problem.fast,
                           .segments = &segment,
                           .segment_count = 1,
                           .outputs = outputs.data(),
                           .lses = result.lse.data(),
                           .scratch = scratch.get(),
                           .ahead = problem.ahead,
                           .fetched = problem.fetched};
  kernels.attend(&args, 1);
  if (problem.same_queries) {
    std::fill(result.output.begin(), result.output.end(), 12345.0f);
    AttendArgs again = args;
    again.same_queries = true;
    kernels.attend(&again, 1);
  }
  for (std::size_t i = 0; i < kCacheLine; ++i) {
    if (scratch[size + i] != std::byte{0xA5}) result.lse.clear();  // fails every comparison
  }
  return result;
}

// Scores of the blocks at `starts` for all rows of queries [groups, rows, dim], group by group. levels:
// [groups, rows] or null.
inline std::vector<float> Score(const KernelTable& kernels, const Tensor& queries,
                                const float* levels, const Tensor& keys,
                                const std::vector<std::int32_t>& starts, int block_size,
                                bool fast = false) {
  const auto rows = static_cast<int>(queries.heads);
  const auto groups = static_cast<int>(queries.tokens);
  const auto dim = static_cast<int>(keys.dim);
  std::vector<const float*> pointers;
  for (int row = 0; row < groups * rows; ++row) pointers.push_back(&queries.values[row * dim]);
  std::vector<float> scores(starts.size() * static_cast<std::size_t>(groups), 99);
  const std::size_t size = kernels.score_scratch(groups, rows, dim);
  const AlignedBytes scratch = AllocateAligned(size + kCacheLine);
  std::fill_n(scratch.get() + size, kCacheLine, std::byte{0xA5});
  kernels.score_blocks({.groups = groups,
                        .rows = rows,
                        .queries = pointers.data(),
                        .levels = levels,
                        .keys = {keys.bytes.data(), keys.view().token_stride, keys.type, dim},
                        .starts = starts.data(),
                        .count = static_cast<int>(starts.size()),
                        .block_size = block_size,
                        .limit = static_cast<std::int32_t>(keys.tokens),
                        .fast = fast,
                        .scores = scores.data(),
                        .scratch = scratch.get()});
  for (std::size_t i = 0; i < kCacheLine; ++i) {
    if (scratch[size + i] != std::byte{0xA5}) scores.clear();  // fails every comparison
  }
  return scores;
}

}  // namespace coppice::testing
