// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What the command line cannot bring about: a machine without memory for the peers.
#include "attention_bench.h"

#include <gtest/gtest.h>

namespace coppice::bench {
namespace {

TEST(AttentionBench, APeerThatDoesNotFitSaysSoAndOursIsMeasured) {
  ThreadPool pool(1);
  const Shape shape = {.tokens = 256, .queries = 16, .heads = 2, .kv_heads = 1, .dim = 32};
  const Result<Inputs> inputs = Inputs::Make(shape, Inputs::Kind::kRandom, 1, pool);
  ASSERT_TRUE(inputs.ok());
  AttentionBenchOptions options;
  options.settings.method = "dense";
  options.peers = true;
  options.seconds = 0;
  options.available_bytes = [] { return 0.0; };
  const Result<AttentionBenchResult> result = RunAttentionBench(options, inputs.value(), pool);
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_GT(result.value().timing.seconds_min, 0);
  ASSERT_GE(result.value().peers.size(), 4u);
  for (const PeerResult& peer : result.value().peers) {
    EXPECT_EQ(peer.status.code(), StatusCode::kResourceExhausted) << peer.name;
    EXPECT_NE(peer.status.message().find("GiB"), std::string::npos) << peer.status.message();
  }
}

}  // namespace
}  // namespace coppice::bench
