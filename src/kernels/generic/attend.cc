// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The scalar twin: the kernels of table.h, written to be read. Sums are kept in double, so it is
// also the most accurate of the twins. Slow; chosen only where nothing else runs.
//
//   o_r = sum_j p_rj v_j / sum_j p_rj,  p_rj = exp(s_rj - max_j s_rj),
//   s_rj = cap(scale * q_r . k_j) + slope_r (j - p_r) + mask_rj,  over the keys j that row r sees
//   lse_r = max_j s_rj + log sum_j p_rj
//
// Cost: 6 FLOP for each row, key and dim (scores are computed twice), one read of K and V a row.
#include "kernels/generic/attend.h"

#include <cmath>
#include <limits>

#include "core/align.h"
#include "core/rows.h"

namespace coppice::generic {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

double Dot(const float* query, const RowsView& keys, std::int64_t key) {
  const std::byte* row = keys.data + key * keys.stride;
  double sum = 0;
  for (int i = 0; i < keys.dim; ++i) {
    sum += static_cast<double>(query[i]) * LoadElement(row, keys.type, i);
  }
  return sum;
}

// Calls visit(key, score) for every key that the row sees and that its mask leaves finite.
template <typename Visit>
void ForVisibleKeys(const AttendArgs& args, int row, Visit visit) {
  for (int s = 0; s < args.segment_count; ++s) {
    const KeySegment& segment = args.segments[s];
    const KeyRange visible = segment.visible[row];
    for (int run = 0; run < segment.run_count; ++run) {
      const KeyRange keys = segment.runs[run];
      for (std::int32_t key = keys.begin; key < keys.end; ++key) {
        if (key < visible.begin || key >= visible.end) continue;
        double score = args.scale * Dot(args.queries[row], args.keys, key);
        if (args.softcap > 0) score = args.softcap * std::tanh(score / args.softcap);
        if (args.slopes != nullptr) score += args.slopes[row] * (key - args.positions[row]);
        if (segment.mask_rows != nullptr) {
          const float bias = LoadElement(segment.mask_rows[row], segment.mask_type, key);
          if (bias == -kInfinity) continue;
          score += bias;
        }
        visit(key, score);
      }
    }
  }
}

void AttendRow(const AttendArgs& args, int row, double* sums) {
  double highest = -kInfinity;
  ForVisibleKeys(args, row, [&](std::int32_t, double score) {
    if (!(score <= highest)) highest = score;  // a NaN stays
  });

  const int dim = args.values.dim;
  for (int i = 0; i < dim; ++i) sums[i] = 0;
  double total = 0;
  ForVisibleKeys(args, row, [&](std::int32_t key, double score) {
    const double weight = std::exp(score - highest);
    total += weight;
    const std::byte* value = args.values.data + key * args.values.stride;
    for (int i = 0; i < dim; ++i) sums[i] += weight * LoadElement(value, args.values.type, i);
  });

  const bool empty = total == 0;
  for (int i = 0; i < dim; ++i) {
    args.outputs[row][i] = empty ? 0.0f : static_cast<float>(sums[i] / total);
  }
  args.lses[row] = empty ? -kInfinity : static_cast<float>(highest + std::log(total));
}

void Attend(const AttendArgs* problems, int count) {
  auto* sums = reinterpret_cast<double*>(problems[0].scratch);
  for (int p = 0; p < count; ++p) {
    for (int row = 0; row < problems[p].rows; ++row) AttendRow(problems[p], row, sums);
  }
}

std::size_t AttendScratch(const AttendShape& shape) {
  return AlignUp(static_cast<std::size_t>(shape.dim_v) * sizeof(double));
}

std::string_view Kernel(const AttendShape& /*shape*/) { return "rows f64 f64"; }

float Merge(const float* const* parts, const float* lses, int count, int dim, float* out) {
  float highest = -kInfinity;
  for (int p = 0; p < count; ++p) {
    if (!(lses[p] <= highest)) highest = lses[p];  // a NaN stays, and makes the result NaN
  }
  for (int i = 0; i < dim; ++i) out[i] = 0;
  if (highest == -kInfinity) return highest;

  float total = 0;
  for (int p = 0; p < count; ++p) total += std::exp(lses[p] - highest);
  for (int p = 0; p < count; ++p) {
    const float weight = std::exp(lses[p] - highest) / total;
    if (weight == 0) continue;
    for (int i = 0; i < dim; ++i) out[i] += weight * parts[p][i];
  }
  return highest + std::log(total);
}

void ScoreBlocks(const ScoreArgs& args) {
  for (int at = 0; at < args.groups * args.count; ++at) {
    const int group = at / args.count;
    const std::int32_t begin = args.starts[at % args.count];
    float best = -kInfinity;
    for (std::int32_t key = begin; key < begin + args.block_size && key < args.limit; ++key) {
      for (int row = group * args.rows; row < (group + 1) * args.rows; ++row) {
        const float level = args.levels == nullptr ? 0.0f : args.levels[row];
        const float score = static_cast<float>(Dot(args.queries[row], args.keys, key)) - level;
        if (score > best) best = score;
      }
    }
    args.scores[at] = best;
  }
}

std::size_t ScoreScratch(int /*groups*/, int /*rows*/, int /*dim*/) { return 0; }

}  // namespace

const KernelTable kTable = {.isa = "generic",
                            .tile_rows = 64,
                            .split_keys = 256,
                            .dim_multiple = 1,
                            .few_rows = 0,
                            .attend = Attend,
                            .attend_scratch = AttendScratch,
                            .kernel = Kernel,
                            .merge = Merge,
                            .score_blocks = ScoreBlocks,
                            .score_scratch = ScoreScratch,
                            .search_groups = 1};

}  // namespace coppice::generic
