// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "peers/peer.h"

#include "peers/ggml.h"

namespace coppice::bench {

std::vector<std::unique_ptr<Peer>> MakePeers() {
  std::vector<std::unique_ptr<Peer>> peers;
  peers.push_back(MakeGgmlPeer());
  return peers;
}

}  // namespace coppice::bench
