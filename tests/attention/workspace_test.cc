// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "attention/workspace.h"

#include <gtest/gtest.h>

namespace coppice::testing {
namespace {

TEST(ItemTrail, AThreadGoesOnByTheStepsItTook) {
  ItemTrail trail;
  EXPECT_FALSE(trail.Take(1, 0, 8));
  EXPECT_EQ(trail.next, ItemTrail::kNone);
  EXPECT_FALSE(trail.Take(1, 2, 8));
  EXPECT_EQ(trail.next, 4);
  EXPECT_TRUE(trail.Take(1, 4, 8));
  EXPECT_EQ(trail.next, 6);
  EXPECT_FALSE(trail.Take(1, 5, 8)) << "6 was presumed";
  EXPECT_EQ(trail.next, 6);
  EXPECT_TRUE(trail.Take(1, 6, 8));
  EXPECT_EQ(trail.next, 7);
  EXPECT_TRUE(trail.Take(1, 7, 8));
  EXPECT_EQ(trail.next, ItemTrail::kNone) << "8 is the end";
}

TEST(ItemTrail, AnotherPlanOrAnotherRunOfItBeginsAnew) {
  ItemTrail trail;
  trail.Take(1, 0, 8);
  trail.Take(1, 1, 8);
  ASSERT_EQ(trail.next, 2);
  EXPECT_FALSE(trail.Take(2, 2, 8)) << "of another plan";
  EXPECT_EQ(trail.next, ItemTrail::kNone);
  trail.Take(2, 3, 8);
  ASSERT_EQ(trail.next, 4);
  EXPECT_FALSE(trail.Take(2, 0, 8));
  EXPECT_EQ(trail.next, ItemTrail::kNone);
}

}  // namespace
}  // namespace coppice::testing
