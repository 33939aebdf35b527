// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The same input gives the same bits on any number of threads, in any order of the work items,
// and over many repeats.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "attention/layer.h"

namespace coppice::testing {
namespace {

struct Case {
  const char* name;
  const char* method;
  int queries, keys;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class Determinism : public ::testing::TestWithParam<Case> {
 protected:
  AttentionSettings Settings() const {
    AttentionSettings settings;
    settings.method = GetParam().method;
    settings.budget = 128;
    settings.window = 64;
    return settings;
  }
  Layer MakeLayer() const {
    return {DType::kF16, GetParam().queries, GetParam().keys, 6, 2, 64, 64};
  }
};

TEST_P(Determinism, AnyNumberOfThreads) {
  Layer one = MakeLayer();
  ThreadPool single(1);
  ASSERT_TRUE(Attend(one.Inputs(), Settings(), single).ok());
  for (const int threads : {2, 3, 8}) {
    ThreadPool pool(threads);
    for (int repeat = 0; repeat < 34; ++repeat) {
      Layer many = MakeLayer();
      ASSERT_TRUE(Attend(many.Inputs(), Settings(), pool).ok());
      ASSERT_EQ(many.output, one.output) << threads << " threads";
      ASSERT_EQ(many.lse, one.lse);
    }
  }
}

TEST_P(Determinism, AnyOrderOfItems) {
  Layer forward = MakeLayer();
  ThreadPool pool(1);
  ASSERT_TRUE(Attend(forward.Inputs(), Settings(), pool).ok());
  std::mt19937 random(1);
  for (int repeat = 0; repeat < 10; ++repeat) {
    Layer shuffled = MakeLayer();
    Workspace workspace(1);
    Attention attention = Attention::Create(Settings()).value();
    ASSERT_TRUE(attention.Plan(shuffled.Inputs(), workspace).ok());
    std::vector<int> order(static_cast<std::size_t>(attention.items()));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    for (const int item : order) attention.RunItem(item, 0);
    ASSERT_EQ(shuffled.output, forward.output);
    ASSERT_EQ(shuffled.lse, forward.lse);
  }
}

// Plans of several layers come before the first run, as in a graph of llama.cpp.
TEST_P(Determinism, LayersShareAWorkspace) {
  Layer alone = MakeLayer();
  ThreadPool pool(2);
  ASSERT_TRUE(Attend(alone.Inputs(), Settings(), pool).ok());
  Workspace workspace(2);
  std::vector<Layer> layers(3, MakeLayer());
  layers[1] = Layer(DType::kF32, 5, 900, 4, 4, 128, 128);
  std::vector<Attention> attentions;
  for (Layer& layer : layers) {
    attentions.push_back(Attention::Create(Settings()).value());
    ASSERT_TRUE(attentions.back().Plan(layer.Inputs(), workspace).ok());
  }
  for (Attention& attention : attentions) {
    pool.Run(attention.items(), [&](int item, int thread) { attention.RunItem(item, thread); });
  }
  EXPECT_EQ(layers[0].output, alone.output);
  EXPECT_EQ(layers[2].output, alone.output);
}

INSTANTIATE_TEST_SUITE_P(Shapes, Determinism,
                         ::testing::Values(Case{"dense_prefill", "dense", 100, 700},
                                           Case{"dense_decode", "dense", 1, 3000},
                                           Case{"hip_prefill", "hip", 100, 700},
                                           Case{"hip_prefill_of_many_blocks", "hip", 268, 700},
                                           Case{"hip_decode", "hip", 1, 1500},
                                           Case{"streaming", "streaming", 70, 700}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace coppice::testing
