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
  EXPECT_FALSE(trail.Take(1, 0, 0, 8));
  EXPECT_EQ(trail.next, ItemTrail::kNone);
  EXPECT_FALSE(trail.Take(1, 0, 2, 8));
  EXPECT_EQ(trail.next, 4);
  EXPECT_TRUE(trail.Take(1, 0, 4, 8));
  EXPECT_EQ(trail.next, 6);
  EXPECT_FALSE(trail.Take(1, 0, 5, 8)) << "6 was presumed";
  EXPECT_EQ(trail.next, 6);
  EXPECT_TRUE(trail.Take(1, 0, 6, 8));
  EXPECT_EQ(trail.next, 7);
  EXPECT_TRUE(trail.Take(1, 0, 7, 8));
  EXPECT_EQ(trail.next, ItemTrail::kNone) << "8 is the end";
}

TEST(ItemTrail, AnotherPlanOrAnotherRunOfItBeginsAnew) {
  ItemTrail trail;
  trail.Take(1, 0, 0, 8);
  trail.Take(1, 0, 1, 8);
  ASSERT_EQ(trail.next, 2);
  EXPECT_FALSE(trail.Take(2, 0, 2, 8)) << "of another plan";
  EXPECT_EQ(trail.next, ItemTrail::kNone);
  trail.Take(2, 0, 3, 8);
  ASSERT_EQ(trail.next, 4);
  EXPECT_FALSE(trail.Take(2, 0, 0, 8));
  EXPECT_EQ(trail.next, ItemTrail::kNone);
}

TEST(ItemTrail, FollowsAnItemOfTheSameTilesInTheSameRun) {
  ItemTrail trail;
  EXPECT_FALSE(trail.Follows(1, 0, 0, 8)) << "nothing was taken";
  trail.Take(1, /*now=*/5, 3, 8);
  EXPECT_TRUE(trail.Follows(1, 5, 0, 8));
  EXPECT_TRUE(trail.Follows(1, 5, 3, 4));
  EXPECT_FALSE(trail.Follows(1, 5, 4, 8)) << "of other tiles";
  EXPECT_FALSE(trail.Follows(1, 5, 0, 3)) << "of other tiles";
  EXPECT_FALSE(trail.Follows(2, 5, 0, 8)) << "of another plan";
  EXPECT_FALSE(trail.Follows(1, 6, 0, 8)) << "of another run";
}

struct Hints {
  KeyRange ahead;
  bool fetched;
  bool same_queries;
};
std::vector<Hints> hints;

// Four items of one token, whose kernel writes down what it was told.
class DenseItems : public ::testing::Test {
 protected:
  void SetUp() override {
    hints.clear();
    kernels_.few_rows = 8;
    kernels_.attend = [](const AttendArgs* problems, int count) {
      hints.push_back({problems[0].ahead, problems[0].fetched, problems[0].same_queries});
      FindKernels("generic")->attend(problems, count);
    };
    attention_.settings = Dense();
    attention_.kernels = &kernels_;
    attention_.inputs = layer_.Inputs();
    attention_.inputs.scale = static_cast<float>(layer_.Scale());
    attention_.plan = MakePlan(attention_.inputs, attention_.settings, kernels_, nullptr);
    attention_.workspace = &workspace_;
    attention_.serial = ++workspace_.epoch;
    ASSERT_EQ(attention_.plan.items(), 4);
    ASSERT_TRUE(workspace_.Reserve(attention_.plan.thread_bytes, attention_.plan.shared_bytes,
                                   attention_.plan.tiles()));
  }

  void Run(std::initializer_list<int> items, std::size_t thread) {
    for (const int item : items) RunDenseItem(attention_, item, thread);
  }

  Layer layer_{DType::kF16, 1, 1000, 2, 1, 32, 32};
  KernelTable kernels_ = *FindKernels("generic");
  Workspace::Impl workspace_{2};
  Attention::Impl attention_;
};

// Which keys a kernel may fetch, and what it may count on.
TEST_F(DenseItems, TellOfTheLastAndTheNext) {
  Run({0, 1, 2, 3}, 0);
  ExpectMatches(layer_, layer_.CausalReference(), 1e-6, "with hints");

  const Hints want[] = {{{0, 0}, false, false},
                        {{512, 768}, false, true},
                        {{768, 1000}, true, true},
                        {{0, 0}, true, true}};
  ASSERT_EQ(hints.size(), 4u);
  for (std::size_t item = 0; item < 4; ++item) {
    EXPECT_EQ(hints[item].ahead.begin, want[item].ahead.begin) << item;
    EXPECT_EQ(hints[item].ahead.end, want[item].ahead.end) << item;
    EXPECT_EQ(hints[item].fetched, want[item].fetched) << item;
    EXPECT_EQ(hints[item].same_queries, want[item].same_queries) << item;
  }
}

// The caller may have written other queries where these were.
TEST_F(DenseItems, TakeQueriesAnewInTheNextRun) {
  Run({0, 1}, 0);
  Run({2, 3}, 1);
  hints.clear();
  Run({2, 3}, 0);
  Run({0, 1}, 1);
  ASSERT_EQ(hints.size(), 4u);
  EXPECT_FALSE(hints[0].same_queries);
  EXPECT_TRUE(hints[1].same_queries);
  EXPECT_FALSE(hints[2].same_queries);
  EXPECT_TRUE(hints[3].same_queries);
}

// Attention calls whose items take turns on one thread of a workspace.
class SharedWorkspace : public ::testing::TestWithParam<std::string> {
 protected:
  struct Call {
    Layer layer;
    Attention attention;
  };

  static AttentionSettings Fast(const std::string& method) {
    AttentionSettings settings;
    settings.method = method;
    settings.budget = 256;
    settings.fast = true;
    return settings;
  }
  Call MakeCall(const std::string& method, int keys, std::uint32_t seed) {
    return {Layer(DType::kQ8_0, 1, keys, 4, 2, 128, 128, seed),
            Attention::Create(Fast(method), GetParam()).value()};
  }
  void Plan(Call& call) {
    const Status status = call.attention.Plan(call.layer.Inputs(), workspace_);
    ASSERT_TRUE(status.ok()) << status.message();
  }
  // What the call gives with a workspace of its own.
  std::vector<float> Alone(const Call& call, const std::string& method) const {
    Layer layer = call.layer;
    ThreadPool pool(1);
    EXPECT_TRUE(Attend(layer.Inputs(), Fast(method), pool, nullptr, GetParam()).ok());
    return layer.output;
  }

  Workspace workspace_{1};
};

TEST_P(SharedWorkspace, DenseAndPrunedItemsTakeTurns) {
  Call dense = MakeCall("dense", 1000, 1);
  Call pruned = MakeCall("hip", 2000, 5);
  Plan(dense);
  Plan(pruned);
  ASSERT_TRUE(pruned.attention.pruned());
  ASSERT_GE(dense.attention.items(), 4);
  for (int item = 0; item < dense.attention.items(); ++item) {
    dense.attention.RunItem(item, 0);
    if (item < pruned.attention.items()) pruned.attention.RunItem(item, 0);
  }
  EXPECT_EQ(dense.layer.output, Alone(dense, "dense"));
  EXPECT_EQ(pruned.layer.output, Alone(pruned, "hip"));
}

TEST_P(SharedWorkspace, AnotherPlanInTheMiddleTakesMoreMemory) {
  Call first = MakeCall("dense", 1000, 1);
  Plan(first);
  first.attention.RunItem(0, 0);
  Call larger = MakeCall("hip", 20000, 5);
  Plan(larger);
  for (int item = 1; item < first.attention.items(); ++item) first.attention.RunItem(item, 0);
  EXPECT_EQ(first.layer.output, Alone(first, "dense"));
}

TEST_P(SharedWorkspace, QueriesMayChangeBetweenRuns) {
  Call call = MakeCall("dense", 1000, 1);
  Plan(call);
  const int items = call.attention.items();
  for (int item = 0; item < items; ++item) call.attention.RunItem(item, 0);
  const Layer other(DType::kQ8_0, 1, 1000, 4, 2, 128, 128, 77);
  std::copy(other.queries.bytes.begin(), other.queries.bytes.end(),
            call.layer.queries.bytes.begin());
  for (int item = items - 1; item >= 0; --item) call.attention.RunItem(item, 0);
  EXPECT_EQ(call.layer.output, Alone(call, "dense"));
}

INSTANTIATE_TEST_SUITE_P(Isas, SharedWorkspace, ::testing::ValuesIn(AvailableIsas()));

}  // namespace
}  // namespace coppice::testing
