// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "choice.h"

#include <gtest/gtest.h>

namespace coppice::door {
namespace {

using Form = Choice::Form;

MaskReading Causal() {
  MaskReading mask;
  mask.rows = {{10, 20}, {10, 21}};
  mask.span = {10, 21};
  mask.ranges = true;
  mask.causal = true;
  return mask;
}

MaskReading Ranges() {
  MaskReading mask = Causal();
  mask.causal = false;
  return mask;
}

MaskReading Holes() {
  MaskReading mask = Ranges();
  mask.ranges = false;
  return mask;
}

constexpr LayerFacts kPlain{.prunable = true, .windowed = false, .ordered = true};

TEST(Choice, PlainCausalKeysArePruned) {
  const Choice choice = Choose(Causal(), kPlain);
  EXPECT_TRUE(choice.prune);
  EXPECT_EQ(choice.form, Form::kCausal);
  EXPECT_EQ(choice.reason, nullptr);
  EXPECT_EQ(choice.keys.begin, 10);
  EXPECT_EQ(choice.keys.end, 21);
}

TEST(Choice, ShuffledKeysAreDense) {
  const Choice choice = Choose(Causal(), {.prunable = true, .windowed = false, .ordered = false});
  EXPECT_FALSE(choice.prune);
  EXPECT_EQ(choice.form, Form::kCausal);
  EXPECT_STREQ(choice.reason, "keys are out of order");
}

TEST(Choice, OtherMasksAreDense) {
  EXPECT_EQ(Choose(Ranges(), kPlain).form, Form::kRanges);
  EXPECT_EQ(Choose(Holes(), kPlain).form, Form::kMask);
  for (const MaskReading& mask : {Ranges(), Holes()}) {
    const Choice choice = Choose(mask, kPlain);
    EXPECT_FALSE(choice.prune);
    EXPECT_STREQ(choice.reason, "mask is not a causal prefix");
    EXPECT_EQ(choice.keys.begin, 0);
    EXPECT_EQ(choice.keys.end, 21);
  }
}

TEST(Choice, DenseLayersNeedNoReason) {
  const LayerFacts by_window{.prunable = true, .windowed = true, .ordered = true};
  const LayerFacts by_settings{.prunable = false, .windowed = false, .ordered = false};
  for (const LayerFacts& facts : {by_window, by_settings}) {
    for (const MaskReading& mask : {Causal(), Ranges(), Holes()}) {
      EXPECT_FALSE(Choose(mask, facts).prune);
      EXPECT_EQ(Choose(mask, facts).reason, nullptr);
    }
    EXPECT_EQ(Choose(Causal(), facts).form, Form::kCausal);
  }
}

TEST(Choice, KeysAreNeverEmpty) {
  MaskReading nothing;
  nothing.rows = {{0, 0}};
  nothing.ranges = true;
  EXPECT_EQ(Choose(nothing, kPlain).keys.begin, 0);
  EXPECT_EQ(Choose(nothing, kPlain).keys.end, 1);
}

}  // namespace
}  // namespace coppice::door
