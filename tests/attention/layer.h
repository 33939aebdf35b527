// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// One layer's attention with its tensors, run through the public API.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "coppice/attention.h"
#include "support/reference.h"

namespace coppice::testing {

struct Layer {
  Tensor queries, keys, values;
  std::vector<float> output, lse;

  Layer(DType type, int query_count, int key_count, int heads, int kv_heads, int dim_k, int dim_v,
        std::uint32_t seed = 1)
      : queries(RandomTensor(DType::kF32, query_count, heads, dim_k, seed)),
        keys(RandomTensor(type, key_count, kv_heads, dim_k, seed + 1)),
        values(RandomTensor(type, key_count, kv_heads, dim_v, seed + 2)),
        output(static_cast<std::size_t>(query_count) * static_cast<std::size_t>(heads * dim_v)),
        lse(static_cast<std::size_t>(query_count) * static_cast<std::size_t>(heads)) {}

  AttentionInputs Inputs() {
    AttentionInputs inputs;
    inputs.queries = queries.view();
    inputs.keys = keys.view();
    inputs.values = values.view();
    inputs.output = Contiguous(output.data(), queries.tokens, queries.heads, values.dim);
    inputs.lse = lse.data();
    return inputs;
  }
  std::int64_t Position(std::int64_t query) const { return keys.tokens - queries.tokens + query; }
  double Scale() const { return 1 / std::sqrt(static_cast<double>(queries.dim)); }

  ReferenceResult CausalReference() const {
    return Reference(queries, keys, values, Scale(),
                     [&](auto t, auto, auto key) { return Causal(Position(t), key); });
  }
};

inline AttentionSettings Dense() {
  AttentionSettings settings;
  settings.method = "dense";
  return settings;
}

inline void ExpectMatches(const Layer& layer, const ReferenceResult& want, double bound,
                          const std::string& what) {
  EXPECT_LE(RelativeError(layer.output.data(), want.output), bound) << what;
  for (std::size_t row = 0; row < want.lse.size(); ++row) {
    if (want.lse[row] == -kInfinity) {
      ASSERT_EQ(layer.lse[row], -std::numeric_limits<float>::infinity()) << what;
    } else {
      ASSERT_NEAR(layer.lse[row], want.lse[row], 2e-5 * (1 + std::abs(want.lse[row]))) << what;
    }
  }
}

}  // namespace coppice::testing
