// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "accuracy.h"

#include <algorithm>
#include <cmath>

#include "coppice/attention.h"
#include "core/rows.h"

namespace coppice::bench {
namespace {

std::vector<std::int64_t> SampleTokens(std::int64_t queries, int most) {
  const std::int64_t count = std::min<std::int64_t>(queries, most);
  const std::int64_t step = queries / count;
  std::vector<std::int64_t> tokens;
  for (std::int64_t i = count - 1; i >= 0; --i) tokens.push_back(queries - 1 - i * step);
  return tokens;
}

// A row of the cache is converted once for this many query heads; their weights are kept, 8 bytes
// for each key.
constexpr std::int64_t kHeadsAtOnce = 4;

void LoadRow(const std::byte* row, DType type, std::vector<double>& out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = LoadElement(row, type, static_cast<std::int64_t>(i));
  }
}

// Four sums, which the compiler may keep side by side.
double Dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sums[4] = {};
  std::size_t i = 0;
  for (; i + 4 <= a.size(); i += 4) {
    for (std::size_t lane = 0; lane < 4; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < a.size(); ++i) sums[0] += a[i] * b[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

void Softmax(std::vector<double>& scores) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - largest);
  for (double& score : scores) score /= sum;
}

// `count` query heads of one KV head, from `head` on; out f32 [count, dim].
void ReferenceRows(const Inputs& inputs, std::int64_t token, std::int64_t head, std::int64_t count,
                   float* out) {
  const Shape& shape = inputs.shape();
  const TensorView keys = inputs.keys();
  const TensorView values = inputs.values();
  const std::int64_t kv_head = head / (shape.heads / shape.kv_heads);
  const std::int64_t visible = shape.tokens - shape.queries + token + 1;
  const auto dim = static_cast<std::size_t>(shape.dim);
  const auto heads = static_cast<std::size_t>(count);
  std::vector<std::vector<double>> queries(heads, std::vector<double>(dim));
  std::vector<std::vector<double>> weights(heads);
  std::vector<std::vector<double>> rows(heads, std::vector<double>(dim));
  std::vector<double> loaded(dim);
  for (std::size_t h = 0; h < heads; ++h) {
    LoadRow(inputs.queries().Row(token, head + static_cast<std::int64_t>(h)), DType::kF32,
            queries[h]);
    weights[h].reserve(static_cast<std::size_t>(visible));
  }
  const double root = std::sqrt(static_cast<double>(shape.dim));
  for (std::int64_t j = 0; j < visible; ++j) {
    LoadRow(keys.Row(j, kv_head), keys.type, loaded);
    for (std::size_t h = 0; h < heads; ++h) weights[h].push_back(Dot(queries[h], loaded) / root);
  }
  for (std::vector<double>& scores : weights) Softmax(scores);
  for (std::int64_t j = 0; j < visible; ++j) {
    LoadRow(values.Row(j, kv_head), values.type, loaded);
    for (std::size_t h = 0; h < heads; ++h) {
      const double weight = weights[h][static_cast<std::size_t>(j)];
      for (std::size_t i = 0; i < dim; ++i) rows[h][i] += weight * loaded[i];
    }
  }
  for (const std::vector<double>& row : rows) out = std::copy(row.begin(), row.end(), out);
}

}  // namespace

Result<Reference> DenseReference(const Inputs& inputs, int most, std::string_view isa,
                                 ThreadPool& pool) {
  const Shape& shape = inputs.shape();
  Reference reference;
  reference.tokens = SampleTokens(shape.queries, most);
  const auto count = static_cast<std::int64_t>(reference.tokens.size());
  reference.rows.resize(static_cast<std::size_t>(count * shape.heads * shape.dim));
  std::vector<KeyRange> visible;
  for (const std::int64_t token : reference.tokens) {
    visible.push_back({0, static_cast<std::int32_t>(shape.tokens - shape.queries + token + 1)});
  }
  TensorView queries = inputs.queries();
  const std::int64_t step = count > 1 ? reference.tokens[1] - reference.tokens[0] : 1;
  queries.data = queries.Row(reference.tokens[0], 0);
  queries.tokens = count;
  queries.token_stride *= step;
  AttentionSettings settings;
  settings.method = "dense";
  const AttentionInputs arguments{
      .queries = queries,
      .keys = inputs.keys(),
      .values = inputs.values(),
      .output = Contiguous(reference.rows.data(), count, shape.heads, shape.dim),
      .visible = visible.data()};
  Status status = Attend(arguments, settings, pool, nullptr, isa);
  if (!status.ok()) return status;
  return reference;
}

Reference Float64Reference(const Inputs& inputs, int most, ThreadPool& pool) {
  const Shape& shape = inputs.shape();
  Reference reference;
  reference.tokens = SampleTokens(shape.queries, most);
  const auto count = static_cast<std::int64_t>(reference.tokens.size());
  reference.rows.resize(static_cast<std::size_t>(count * shape.heads * shape.dim));
  const std::int64_t group = shape.heads / shape.kv_heads;
  const std::int64_t parts = (group + kHeadsAtOnce - 1) / kHeadsAtOnce;
  const std::int64_t of_a_token = shape.kv_heads * parts;
  pool.Run(static_cast<int>(count * of_a_token), [&](int item, int) {
    const std::int64_t at = item / of_a_token;
    const std::int64_t first = item % parts * kHeadsAtOnce;
    const std::int64_t head = item % of_a_token / parts * group + first;
    ReferenceRows(inputs, reference.tokens[static_cast<std::size_t>(at)], head,
                  std::min(kHeadsAtOnce, group - first),
                  reference.rows.data() + (at * shape.heads + head) * shape.dim);
  });
  return reference;
}

double RelativeError(const float* output, const Inputs& inputs, const Reference& reference) {
  const Shape& shape = inputs.shape();
  const std::int64_t row = shape.heads * shape.dim;
  double error = 0;
  double norm = 0;
  const float* expected = reference.rows.data();
  for (const std::int64_t token : reference.tokens) {
    for (std::int64_t i = 0; i < row; ++i, ++expected) {
      const double difference = static_cast<double>(output[token * row + i]) - *expected;
      error += difference * difference;
      norm += static_cast<double>(*expected) * *expected;
    }
  }
  return std::sqrt(error / norm);
}

}  // namespace coppice::bench
