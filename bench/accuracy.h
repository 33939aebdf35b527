// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Attention of a few query tokens, to compare results with.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "coppice/executor.h"
#include "coppice/status.h"
#include "inputs.h"

namespace coppice::bench {

// Query tokens spread evenly, the last one among them, and what their rows should be:
// f32 [tokens, heads, dim].
struct Reference {
  std::vector<std::int64_t> tokens;
  std::vector<float> rows;
};

// By our dense kernels; up to `most` query tokens.
Result<Reference> DenseReference(const Inputs& inputs, int most, std::string_view isa,
                                 ThreadPool& pool);

// By the definition, in float64, from the same rounded inputs; up to `most` query tokens.
Reference Float64Reference(const Inputs& inputs, int most, ThreadPool& pool);

// ||output - reference|| / ||reference|| over the reference's tokens; output f32
// [queries, heads, dim].
double RelativeError(const float* output, const Inputs& inputs, const Reference& reference);

}  // namespace coppice::bench
