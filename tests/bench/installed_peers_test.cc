// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The real PyTorch and ONNX Runtime, where `tools/setup peers` was run: causal masks, query heads
// that share a KV head, and each type of keys and values.
#include <gtest/gtest.h>

#include "bench/peer_problem.h"
#include "peers/process_peer.h"

namespace coppice::testing {
namespace {

void ExpectRight(std::unique_ptr<bench::Peer> peer, const SmallProblem& problem, double bound) {
  const Status status = peer->Prepare(problem.problem());
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_NE(peer->version(), "");
  for (int round = 0; round < 2; ++round) {
    const Result<double> seconds = peer->Run();
    ASSERT_TRUE(seconds.ok()) << seconds.status().message();
    EXPECT_GT(seconds.value(), 0);
    EXPECT_LT(problem.Error(peer->output()), bound) << peer->name();
  }
}

void ExpectAllRight(const SmallProblem& problem) {
  if (bench::PeersPython().empty()) GTEST_SKIP() << "tools/setup peers was not run";
  ExpectRight(bench::MakePyTorchPeer("f32"), problem, 1e-5);
  ExpectRight(bench::MakePyTorchPeer("bf16"), problem, 3e-2);
  ExpectRight(bench::MakeOnnxRuntimePeer(), problem, 1e-5);
}

TEST(InstalledPeers, Decode) { ExpectAllRight({DType::kF16, 1, 257, 8, 2, 64}); }
TEST(InstalledPeers, QueriesAtTheEnd) { ExpectAllRight({DType::kBF16, 33, 257, 6, 1, 64}); }
TEST(InstalledPeers, AsManyQueriesAsKeys) { ExpectAllRight({DType::kF32, 96, 96, 4, 2, 64}); }

}  // namespace
}  // namespace coppice::testing
