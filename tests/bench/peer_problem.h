// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// A small problem for peers, and how far an output is from its float64 solution.
#pragma once

#include <cmath>

#include "peers/peer.h"
#include "support/reference.h"

namespace coppice::testing {

class SmallProblem {
 public:
  SmallProblem(DType type, std::int64_t queries, std::int64_t tokens, std::int64_t heads,
               std::int64_t kv_heads, std::int64_t dim)
      : queries_(RandomTensor(DType::kF32, queries, heads, dim, 1, 2)),
        keys_(RandomTensor(type, tokens, kv_heads, dim, 2)),
        values_(RandomTensor(type, tokens, kv_heads, dim, 3)) {}

  bench::PeerProblem problem() const {
    return {queries_.view(), keys_.view(), values_.view(), /*threads=*/2};
  }

  double Error(const float* output) const {
    const std::int64_t first = keys_.tokens - queries_.tokens;
    const auto causal = [&](std::int64_t query, std::int64_t, std::int64_t key) {
      return Causal(first + query, key);
    };
    const double scale = 1 / std::sqrt(static_cast<double>(queries_.dim));
    return RelativeError(output, Reference(queries_, keys_, values_, scale, causal).output);
  }

 private:
  Tensor queries_, keys_, values_;
};

}  // namespace coppice::testing
