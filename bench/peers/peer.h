// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Somebody else's attention on the same data, in this process or in one of its own. One adapter for
// each peer; to add one, write its file and name it in MakePeers(). Called by attention_bench.cc.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "coppice/status.h"
#include "coppice/tensor.h"

namespace coppice::bench {

// Causal attention, the last query sitting on the last key, scale 1 / sqrt(dim).
struct PeerProblem {
  TensorView queries;  // f32 [queries, heads, dim]
  TensorView keys;     // [tokens, kv_heads, dim]
  TensorView values;   // [tokens, kv_heads, dim], of the type of the keys
  int threads = 1;
};

class Peer {
 public:
  virtual ~Peer() = default;
  virtual std::string name() const = 0;
  // Known after Prepare.
  virtual std::string version() const = 0;
  // What Prepare and Run allocate at most, here or in another process.
  virtual double BytesNeeded(const PeerProblem& problem) const = 0;
  // The views stay valid while the peer lives. A status that is not ok says how to install what is
  // missing.
  virtual Status Prepare(const PeerProblem& problem) = 0;
  // One call. Returns its seconds, measured around the operation alone.
  virtual Result<double> Run() = 0;
  // f32 [queries, heads, dim], of the last run.
  virtual const float* output() const = 0;
};

std::vector<std::unique_ptr<Peer>> MakePeers();

}  // namespace coppice::bench
