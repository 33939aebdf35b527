// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Naive attention in float64, and inputs to compare on. A reference sees the same rounded inputs
// as the kernel, so that what is measured is the kernel alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <string_view>
#include <vector>

#include "coppice/tensor.h"
#include "core/rows.h"

namespace coppice::testing {

// Relative error of exact arithmetic: in f32, or with AMX in products of
// numbers in two parts of bf16.
inline double ExactBound(std::string_view isa) { return isa == "amx" ? 2e-5 : 4e-6; }

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// [tokens, heads, dim] of any type, contiguous, with the values that were stored read back.
struct Tensor {
  DType type = DType::kF32;
  std::int64_t tokens = 0, heads = 0, dim = 0;
  std::vector<std::byte> bytes;
  std::vector<float> values;

  Tensor(DType t, std::int64_t n, std::int64_t h, std::int64_t d, std::vector<float> from)
      : type(t), tokens(n), heads(h), dim(d), values(std::move(from)) {
    const auto count = static_cast<std::int64_t>(values.size());
    bytes.resize(static_cast<std::size_t>(RowBytes(t, count)));
    StoreRow(values.data(), t, count, bytes.data());
    for (std::int64_t i = 0; i < count; ++i) {
      values[static_cast<std::size_t>(i)] = LoadElement(bytes.data(), t, i);
    }
  }
  TensorView view() const { return Contiguous(bytes.data(), type, tokens, heads, dim); }
  float at(std::int64_t token, std::int64_t head, std::int64_t i) const {
    return values[static_cast<std::size_t>((token * heads + head) * dim + i)];
  }
};

inline std::vector<float> Gaussian(std::size_t count, std::uint32_t seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

inline Tensor RandomTensor(DType type, std::int64_t tokens, std::int64_t heads, std::int64_t dim,
                           std::uint32_t seed, float scale = 1) {
  return {type, tokens, heads, dim,
          Gaussian(static_cast<std::size_t>(tokens * heads * dim), seed, scale)};
}

struct ReferenceResult {
  std::vector<double> output;  // [queries, heads, dim_v]
  std::vector<double> lse;     // [queries, heads]
};

// bias(query, head, key): added to the score; -inf hides the key.
inline ReferenceResult Reference(
    const Tensor& q, const Tensor& k, const Tensor& v, double scale,
    const std::function<double(std::int64_t, std::int64_t, std::int64_t)>& bias) {
  const std::int64_t group = q.heads / k.heads;
  ReferenceResult result;
  result.output.assign(static_cast<std::size_t>(q.tokens * q.heads * v.dim), 0);
  result.lse.assign(static_cast<std::size_t>(q.tokens * q.heads), -kInfinity);
  std::vector<double> score(static_cast<std::size_t>(k.tokens));
  for (std::int64_t t = 0; t < q.tokens; ++t) {
    for (std::int64_t h = 0; h < q.heads; ++h) {
      double highest = -kInfinity;
      for (std::int64_t j = 0; j < k.tokens; ++j) {
        double& s = score[static_cast<std::size_t>(j)];
        s = bias(t, h, j);
        if (s == -kInfinity) continue;
        double dot = 0;
        for (std::int64_t i = 0; i < q.dim; ++i) {
          dot += static_cast<double>(q.at(t, h, i)) * k.at(j, h / group, i);
        }
        s += scale * dot;
        if (!(s <= highest)) highest = s;
      }
      if (highest == -kInfinity) continue;
      double total = 0;
      const auto row = static_cast<std::size_t>(t * q.heads + h);
      double* out = &result.output[row * static_cast<std::size_t>(v.dim)];
      for (std::int64_t j = 0; j < k.tokens; ++j) {
        const double s = score[static_cast<std::size_t>(j)];
        if (s == -kInfinity) continue;
        const double weight = std::exp(s - highest);
        total += weight;
        for (std::int64_t i = 0; i < v.dim; ++i) out[i] += weight * v.at(j, h / group, i);
      }
      for (std::int64_t i = 0; i < v.dim; ++i) out[i] /= total;
      result.lse[row] = highest + std::log(total);
    }
  }
  return result;
}

inline double Causal(std::int64_t position, std::int64_t key) {
  return key <= position ? 0 : -kInfinity;
}

// ||got - want|| / ||want|| over everything.
inline double RelativeError(const float* got, const std::vector<double>& want) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

}  // namespace coppice::testing
