// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <limits>
#include <memory>

#include "select/select_support.h"
#include "select/selector.h"

namespace coppice {
namespace {

using testing::PlainKernels;
using testing::RunSelector;
using testing::Selection;
using testing::SelectProblem;

Selection RunStreaming(int sink, int window, int visible) {
  AttentionSettings settings;
  settings.method = "streaming";
  settings.sink = sink;
  settings.window = window;
  const std::unique_ptr<Selector> selector = MakeSelector(settings).value();
  EXPECT_EQ(selector->Capacity(), 0);
  SelectProblem problem;
  problem.visible = visible;
  problem.Resize();
  return RunSelector(*selector, PlainKernels(), problem);
}

TEST(Streaming, SelectsNothingBetweenSinkAndWindow) {
  const Selection selection = RunStreaming(32, 256, 289);
  EXPECT_TRUE(selection.in_bounds);
  EXPECT_FALSE(selection.everything);
  EXPECT_TRUE(selection.starts.empty());
}

TEST(Streaming, SinkAndWindowThatMeetAreEverything) {
  EXPECT_TRUE(RunStreaming(32, 256, 288).everything);
  EXPECT_TRUE(RunStreaming(32, 256, 5).everything);
  EXPECT_FALSE(RunStreaming(0, 0, 1).everything);
}

TEST(Streaming, HugeSettingsDoNotOverflow) {
  constexpr int kHuge = std::numeric_limits<int>::max();
  EXPECT_TRUE(RunStreaming(kHuge, kHuge, 1000).everything);
}

TEST(Streaming, ScoresNoKey) {
  testing::scored_blocks = 0;
  RunStreaming(4, 64, 5000);
  EXPECT_EQ(testing::scored_blocks, 0);
}

}  // namespace
}  // namespace coppice
