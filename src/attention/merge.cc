// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The algebra of partial results: (o, lse) over disjoint keys merge exactly, in any grouping. An
// empty part, lse = -inf, is neutral.
#include "coppice/attention.h"
#include "kernels/table.h"

namespace coppice {

float MergePartials(std::span<const float* const> parts, std::span<const float> lses, int dim,
                    float* out) {
  const int count = static_cast<int>(parts.size());
  return BestKernels(dim, dim).merge(parts.data(), lses.data(), count, dim, out);
}

}  // namespace coppice
