// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// A peer that lives in a process of its own: a Python script of this folder, which is handed the
// tensors in shared memory, converts them as it likes, and then waits for "run". While others are
// measured it sleeps on its socket. What the two say to each other stands in peer_child.py.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "peers/child_process.h"
#include "peers/peer.h"

namespace coppice::bench {

struct ProcessPeerOptions {
  std::string name;
  std::string python;                  // empty: COPPICE_PEERS_PYTHON, or that of tools/setup peers
  std::string script;                  // a path
  std::vector<std::string> arguments;  // of the script, besides the sizes
  double bytes_per_number = 4;         // of the keys and values, as the script keeps them
  double bytes_per_score = 0;          // of a mask, if it makes one
  // Of one answer. Dense prefill on a million keys takes minutes.
  ChildProcess::Patience patience = std::chrono::minutes(10);
};

std::unique_ptr<Peer> MakeProcessPeer(ProcessPeerOptions options);

// The Python that runs the peers: COPPICE_PEERS_PYTHON, or that of the environment that
// `tools/setup peers` makes, if it is there; else empty.
std::string PeersPython();

// PyTorch's scaled_dot_product_attention, computing in "f32" or "bf16".
std::unique_ptr<Peer> MakePyTorchPeer(const std::string& type);
// ONNX Runtime's GroupQueryAttention, in f32.
std::unique_ptr<Peer> MakeOnnxRuntimePeer();

}  // namespace coppice::bench
