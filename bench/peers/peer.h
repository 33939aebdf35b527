// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Somebody else's attention, run on the same memory in the same process. One adapter for each peer;
// to add one, write its file and name it in MakePeers().
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "coppice/status.h"
#include "coppice/tensor.h"

namespace coppice::bench {

class Peer {
 public:
  virtual ~Peer() = default;
  virtual std::string name() const = 0;
  // Causal attention, the last query sitting on the last key, scale 1 / sqrt(dim). The views stay
  // valid while the peer lives. A status that is not ok says how to install what is missing.
  virtual Status Prepare(const TensorView& queries, const TensorView& keys,
                         const TensorView& values, int threads) = 0;
  virtual Status Run() = 0;
  // f32 [queries, heads, dim], of the last run.
  virtual const float* output() const = 0;
};

std::vector<std::unique_ptr<Peer>> MakePeers();

}  // namespace coppice::bench
