// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// One head, two keys with equal scores: the output is the mean of the values.
#include <cmath>
#include <cstdio>
#include <vector>

#include "coppice/attention.h"

int main() {
  const int keys = 2;
  const int dim = 64;
  std::vector<float> q(dim, 0.5f);
  std::vector<float> k(keys * dim, 1.0f);
  std::vector<float> v(keys * dim);
  std::vector<float> out(dim);
  for (int i = 0; i < dim; ++i) {
    v[i] = 1.0f;
    v[dim + i] = 3.0f;
  }
  coppice::AttentionInputs inputs;
  inputs.queries = coppice::Contiguous(q.data(), coppice::DType::kF32, 1, 1, dim);
  inputs.keys = coppice::Contiguous(k.data(), coppice::DType::kF32, keys, 1, dim);
  inputs.values = coppice::Contiguous(v.data(), coppice::DType::kF32, keys, 1, dim);
  inputs.output = coppice::Contiguous(out.data(), 1, 1, dim);
  coppice::ThreadPool pool(1);
  const coppice::Status status = coppice::Attend(inputs, coppice::AttentionSettings(), pool);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 1;
  }
  return std::abs(out[0] - 2.0f) < 1e-5f && std::abs(out[dim - 1] - 2.0f) < 1e-5f ? 0 : 1;
}
