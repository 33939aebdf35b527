// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "peers/peer.h"

#include "peers/ggml.h"
#include "peers/process_peer.h"

namespace coppice::bench {

std::vector<std::unique_ptr<Peer>> MakePeers() {
  std::vector<std::unique_ptr<Peer>> peers;
  peers.push_back(MakeGgmlPeer());
  peers.push_back(MakePyTorchPeer("f32"));
  peers.push_back(MakePyTorchPeer("bf16"));
  peers.push_back(MakeOnnxRuntimePeer());
  return peers;
}

}  // namespace coppice::bench
