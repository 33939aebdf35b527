// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The algebra of partial results: (o, lse) over disjoint keys merge exactly, in any grouping. An
// empty part, lse = -inf, is neutral.
#include <cmath>
#include <limits>

#include "coppice/attention.h"

namespace coppice {

float MergePartials(std::span<const float* const> parts, std::span<const float> lses, int dim,
                    float* out) {
  constexpr float kEmpty = -std::numeric_limits<float>::infinity();
  float highest = kEmpty;
  for (const float lse : lses) {
    if (!(lse <= highest)) highest = lse;  // a NaN stays, and makes the result NaN
  }
  for (int i = 0; i < dim; ++i) out[i] = 0;
  if (highest == kEmpty) return kEmpty;

  float total = 0;
  for (const float lse : lses) total += std::exp(lse - highest);
  for (std::size_t part = 0; part < parts.size(); ++part) {
    const float weight = std::exp(lses[part] - highest) / total;
    if (weight == 0) continue;
    for (int i = 0; i < dim; ++i) out[i] += weight * parts[part][i];
  }
  return highest + std::log(total);
}

}  // namespace coppice
