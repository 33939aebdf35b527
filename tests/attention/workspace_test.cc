// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "attention/workspace.h"

#include <gtest/gtest.h>

#include <vector>

#include "attention/attention_impl.h"
#include "attention/layer.h"

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

struct Hints {
  KeyRange ahead;
  bool fetched;
};
std::vector<Hints> hints;

// Which keys a kernel may fetch, and which it may count on.
TEST(DenseItems, NameTheKeysOfTheNextOne) {
  hints.clear();
  KernelTable kernels = *FindKernels("generic");
  kernels.few_rows = 8;
  kernels.attend = [](const AttendArgs* problems, int count) {
    hints.push_back({problems[0].ahead, problems[0].fetched});
    FindKernels("generic")->attend(problems, count);
  };
  Layer layer(DType::kF16, 1, 1000, 2, 1, 32, 32);
  Workspace::Impl workspace(1);
  Attention::Impl attention;
  attention.settings = Dense();
  attention.kernels = &kernels;
  attention.inputs = layer.Inputs();
  attention.inputs.scale = static_cast<float>(layer.Scale());
  attention.plan = MakePlan(attention.inputs, attention.settings, kernels, nullptr);
  attention.workspace = &workspace;
  attention.serial = ++workspace.plans;
  ASSERT_EQ(attention.plan.items(), 4);
  ASSERT_TRUE(workspace.Reserve(attention.plan.thread_bytes, attention.plan.shared_bytes,
                                attention.plan.tiles()));
  for (int item = 0; item < 4; ++item) RunDenseItem(attention, item, /*thread=*/0);
  ExpectMatches(layer, layer.CausalReference(), 1e-6, "with hints");

  const Hints want[] = {{{0, 0}, false}, {{512, 768}, false}, {{768, 1000}, true}, {{0, 0}, true}};
  ASSERT_EQ(hints.size(), 4u);
  for (std::size_t item = 0; item < 4; ++item) {
    EXPECT_EQ(hints[item].ahead.begin, want[item].ahead.begin) << item;
    EXPECT_EQ(hints[item].ahead.end, want[item].ahead.end) << item;
    EXPECT_EQ(hints[item].fetched, want[item].fetched) << item;
  }
}

}  // namespace
}  // namespace coppice::testing
