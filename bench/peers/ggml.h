// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// ggml's flash attention, as llama.cpp calls it.
#pragma once

#include <memory>

#include "peers/peer.h"

namespace coppice::bench {

std::unique_ptr<Peer> MakeGgmlPeer();

}  // namespace coppice::bench
