// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <vector>

#include "select/select_support.h"
#include "select/selector.h"

namespace coppice {
namespace {

using testing::PlainKernels;
using testing::RunSelector;
using testing::Selection;
using testing::SelectProblem;

constexpr int kSink = 5;
constexpr int kWindow = 64;
constexpr int kBlock = 8;

Selection RunRandom(int budget, int visible, int window = kWindow) {
  AttentionSettings settings;
  settings.method = "random";
  settings.budget = budget;
  settings.block_k = kBlock;
  settings.sink = kSink;
  settings.window = window;
  const std::unique_ptr<Selector> selector = MakeSelector(settings).value();
  SelectProblem problem;
  problem.visible = visible;
  problem.Resize();
  return RunSelector(*selector, PlainKernels(), problem);
}

TEST(Random, DrawsAsManyDistinctBlocksAsTheBudgetHolds) {
  for (const int visible : {400, 1000, 4097}) {
    const Selection selection = RunRandom(128, visible);
    EXPECT_TRUE(selection.in_bounds);
    ASSERT_EQ(selection.starts.size(), 16u);
    for (std::size_t i = 0; i < selection.starts.size(); ++i) {
      EXPECT_GE(selection.starts[i], kSink);
      EXPECT_EQ((selection.starts[i] - kSink) % kBlock, 0);
      EXPECT_LE(selection.starts[i] + kBlock, visible - kWindow);
      if (i > 0) {
        EXPECT_GT(selection.starts[i], selection.starts[i - 1]);
      }
    }
  }
}

TEST(Random, TheSamePositionDrawsTheSame) {
  EXPECT_EQ(RunRandom(128, 3000).starts, RunRandom(128, 3000).starts);
  EXPECT_NE(RunRandom(128, 3000).starts, RunRandom(128, 3008).starts);
}

// Positions 5,000 to 5,999 see 616 to 741 blocks and draw 16 of them: 22 to 26 of each 1,000 draws of
// a block, so the first 600 are drawn 24 times on average, with a standard deviation of 5.
TEST(Random, EarlyAndLateBlocksAreDrawnAlike) {
  int early = 0;
  int late = 0;
  for (int position = 5000; position < 6000; ++position) {
    for (const std::int32_t start : RunRandom(128, position).starts) {
      const int block = (start - kSink) / kBlock;
      early += block < 300 ? 1 : 0;
      late += block >= 300 && block < 600 ? 1 : 0;
    }
  }
  EXPECT_GT(early, 6000);
  EXPECT_NEAR(early, late, 400);  // 7,100 each, with a standard deviation of about 60
}

TEST(Random, ABudgetThatCoversAllIsEverything) {
  EXPECT_TRUE(RunRandom(128, kSink + kWindow + 16 * kBlock).everything);
  EXPECT_FALSE(RunRandom(128, kSink + kWindow + 17 * kBlock).everything);
  EXPECT_TRUE(RunRandom(128, 5000, std::numeric_limits<int>::max()).everything);
}

}  // namespace
}  // namespace coppice
