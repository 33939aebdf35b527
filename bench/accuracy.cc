// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "accuracy.h"

#include <algorithm>
#include <cmath>
#include <limits>

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

void ReferenceRow(const Inputs& inputs, std::int64_t token, std::int64_t head, float* out) {
  const Shape& shape = inputs.shape();
  const TensorView keys = inputs.keys();
  const TensorView values = inputs.values();
  const std::int64_t kv_head = head / (shape.heads / shape.kv_heads);
  const auto* query = reinterpret_cast<const float*>(inputs.queries().Row(token, head));
  const std::int64_t visible = shape.tokens - shape.queries + token + 1;
  std::vector<double> weights(static_cast<std::size_t>(visible));
  double largest = -std::numeric_limits<double>::infinity();
  for (std::int64_t j = 0; j < visible; ++j) {
    double score = 0;
    for (std::int64_t i = 0; i < shape.dim; ++i) {
      score += query[i] * LoadElement(keys.Row(j, kv_head), keys.type, i);
    }
    score /= std::sqrt(static_cast<double>(shape.dim));
    weights[static_cast<std::size_t>(j)] = score;
    largest = std::max(largest, score);
  }
  double sum = 0;
  for (double& weight : weights) sum += weight = std::exp(weight - largest);
  std::vector<double> row(static_cast<std::size_t>(shape.dim));
  for (std::int64_t j = 0; j < visible; ++j) {
    const double weight = weights[static_cast<std::size_t>(j)] / sum;
    for (std::int64_t i = 0; i < shape.dim; ++i) {
      row[static_cast<std::size_t>(i)] +=
          weight * LoadElement(values.Row(j, kv_head), values.type, i);
    }
  }
  std::copy(row.begin(), row.end(), out);
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
  pool.Run(static_cast<int>(count * shape.heads), [&](int item, int) {
    const std::int64_t token = reference.tokens[static_cast<std::size_t>(item / shape.heads)];
    ReferenceRow(inputs, token, item % shape.heads, reference.rows.data() + item * shape.dim);
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
