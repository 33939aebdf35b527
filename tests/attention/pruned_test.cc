// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Pruned attention: exactly the softmax over sink, selected blocks and window, and the dense bits
// where the budget covers the context.
#include <gtest/gtest.h>

#include <set>

#include "attention/layer.h"

namespace coppice::testing {
namespace {

AttentionSettings Hip() {
  AttentionSettings settings;
  settings.method = "hip";
  settings.budget = 64;
  settings.block_k = 8;
  settings.block_q = 16;
  settings.sink = 8;
  settings.window = 32;
  return settings;
}

struct LayerRun {
  Workspace workspace{1};
  Attention attention;

  explicit LayerRun(const AttentionSettings& settings, const std::string& isa = "")
      : attention(Attention::Create(settings, isa).value()) {}

  void operator()(const AttentionInputs& inputs) {
    const Status status = attention.Plan(inputs, workspace);
    ASSERT_TRUE(status.ok()) << status.message();
    for (int item = 0; item < attention.items(); ++item) attention.RunItem(item, 0);
  }
};

// What the mask of a run says that (query, head) reads, in float64.
ReferenceResult MaskedReference(const Layer& layer, const BlockMask& mask,
                                const AttentionSettings& settings) {
  std::vector<std::vector<std::set<int>>> selected(static_cast<std::size_t>(mask.heads));
  for (int h = 0; h < mask.heads; ++h) {
    for (int b = 0; b < mask.query_blocks; ++b) {
      const auto row = mask.Row(h, b);
      selected[static_cast<std::size_t>(h)].emplace_back(row.begin(), row.end());
    }
  }
  const auto heads_per_row = layer.queries.heads / mask.heads;
  return Reference(layer.queries, layer.keys, layer.values, layer.Scale(),
                   [&](std::int64_t t, std::int64_t head, std::int64_t key) {
                     const std::int64_t position = layer.Position(t);
                     if (key > position) return -kInfinity;
                     if (position - key < settings.window || key < settings.sink) return 0.0;
                     const auto row = static_cast<std::size_t>(head / heads_per_row);
                     const int block = static_cast<int>(t) / settings.block_q;
                     if (mask.Everything(static_cast<int>(row), block)) return 0.0;
                     for (const int start : selected[row][static_cast<std::size_t>(block)]) {
                       if (key >= start && key < start + settings.block_k) return 0.0;
                     }
                     return -kInfinity;
                   });
}

class PrunedAttention : public ::testing::TestWithParam<std::string> {};

TEST_P(PrunedAttention, IsTheSoftmaxOverWhatWasSelected) {
  for (const bool share : {true, false}) {
    for (const int block_k : {1, 8, 32}) {
      for (const auto& [queries, keys] : {std::pair{1, 700}, {50, 700}, {333, 333}, {16, 200}}) {
        AttentionSettings settings = Hip();
        settings.share_group = share;
        settings.block_k = block_k;
        Layer layer(DType::kF16, queries, keys, 6, 2, 64, 64,
                    static_cast<std::uint32_t>(keys + block_k));
        LayerRun run(settings, GetParam());
        run(layer.Inputs());
        EXPECT_TRUE(run.attention.pruned());
        ExpectMatches(layer, MaskedReference(layer, run.attention.mask(), settings),
                      ExactBound(GetParam()),
                      "share " + std::to_string(share) + " block_k " + std::to_string(block_k) +
                          " queries " + std::to_string(queries));
        const AttentionStats stats = run.attention.stats();
        EXPECT_LT(stats.keys_read, stats.keys_visible);
      }
    }
  }
}

// Many query blocks are searched together, some of them ragged; `Select` searches for each alone.
TEST_P(PrunedAttention, ReadsWhatSelectSelects) {
  const AttentionSettings large = Hip();
  AttentionSettings small = Hip();
  small.block_q = 4;
  small.query_stride = 1;
  for (const AttentionSettings& settings : {large, small}) {
    Layer layer(DType::kF16, 268, 700, 6, 2, 64, 64);
    LayerRun run(settings, GetParam());
    run(layer.Inputs());
    const BlockMask& mask = run.attention.mask();
    const int blocks = mask.heads * mask.query_blocks;
    EXPECT_LT(run.attention.items(), blocks);
    ThreadPool pool(1);
    const Result<BlockMask> selected =
        Select(layer.queries.view(), layer.keys.view(), settings, pool, GetParam());
    ASSERT_TRUE(selected.ok());
    EXPECT_EQ(run.attention.mask().counts, selected->counts);
    EXPECT_EQ(run.attention.mask().starts, selected->starts);
  }
}

TEST_P(PrunedAttention, SinkAndWindowOfAnySize) {
  for (const int sink : {0, 1, 40, 600}) {
    for (const int window : {0, 1, 17, 300}) {
      AttentionSettings settings = Hip();
      settings.sink = sink;
      settings.window = window;
      settings.block_k = 4;
      Layer layer(DType::kF32, 40, 1200, 4, 2, 64, 64, 77);
      LayerRun run(settings, GetParam());
      run(layer.Inputs());
      ExpectMatches(layer, MaskedReference(layer, run.attention.mask(), settings),
                    ExactBound(GetParam()),
                    "sink " + std::to_string(sink) + " window " + std::to_string(window));
    }
  }
}

TEST_P(PrunedAttention, StreamingReadsSinkAndWindow) {
  AttentionSettings settings = Hip();
  settings.method = "streaming";
  Layer layer(DType::kBF16, 60, 500, 6, 2, 64, 64);
  LayerRun run(settings, GetParam());
  run(layer.Inputs());
  const ReferenceResult want = Reference(
      layer.queries, layer.keys, layer.values, layer.Scale(),
      [&](std::int64_t t, std::int64_t, std::int64_t key) {
        const std::int64_t p = layer.Position(t);
        return key <= p && (key < settings.sink || p - key < settings.window) ? 0 : -kInfinity;
      });
  ExpectMatches(layer, want, ExactBound(GetParam()), "");
  EXPECT_EQ(run.attention.stats().keys_read, 60u * 6 * (8 + 32));
}

TEST_P(PrunedAttention, ABudgetThatCoversTheContextGivesTheDenseBits) {
  for (const int queries : {1, 100}) {
    Layer dense(DType::kF16, queries, 400, 6, 2, 64, 64);
    Layer pruned = dense;
    LayerRun run_dense(Dense(), GetParam());
    run_dense(dense.Inputs());
    AttentionSettings settings = Hip();
    settings.budget = 400;
    LayerRun run(settings, GetParam());
    run(pruned.Inputs());
    EXPECT_EQ(dense.output, pruned.output);
    EXPECT_EQ(dense.lse, pruned.lse);
    EXPECT_FALSE(run.attention.pruned());
  }
}

// A key that stands out, on a slope that leads to it, must be read. (Without a slope a tree search
// has nothing to follow: locality is what HiP builds on.)
TEST_P(PrunedAttention, APlantedKeyIsFound) {
  AttentionSettings settings = Hip();
  settings.budget = 128;
  Layer layer(DType::kF32, 1, 4096, 1, 1, 64, 64, 5);
  for (const int at : {300, 1111, 2048, 3333}) {
    Layer planted = layer;
    std::vector<float> keys = layer.keys.values;
    for (int j = at - 250; j < at + 250; ++j) {
      const float slope = 1.5f * (1 - static_cast<float>(std::abs(j - at)) / 250);
      for (int i = 0; i < 64; ++i) {
        keys[static_cast<std::size_t>(j * 64 + i)] +=
            (j == at ? 6.0f : slope) * planted.queries.values[static_cast<std::size_t>(i)];
      }
    }
    planted.keys = Tensor(DType::kF32, 4096, 1, 64, keys);
    LayerRun run(settings, GetParam());
    run(planted.Inputs());
    bool found = false;
    for (const int start : run.attention.mask().Row(0, 0)) {
      found |= start <= at && at < start + settings.block_k;
    }
    EXPECT_TRUE(found) << at;
    EXPECT_LE(RelativeError(planted.output.data(), planted.CausalReference().output), 1e-2);
  }
}

TEST_P(PrunedAttention, DecodingReusesASelectionAndLosesNoKey) {
  AttentionSettings settings = Hip();
  settings.refresh = 4;
  constexpr int kKeys = 600, kSteps = 9;
  Layer all(DType::kF16, kSteps, kKeys + kSteps, 6, 2, 64, 64);
  LayerRun run(settings, GetParam());
  std::vector<std::int32_t> last;
  int changes = 0;
  for (int step = 0; step < kSteps; ++step) {
    AttentionInputs inputs = all.Inputs();
    inputs.queries.data = inputs.queries.Row(step, 0);
    inputs.queries.tokens = 1;
    inputs.keys.tokens = inputs.values.tokens = kKeys + step + 1;
    inputs.output.data = inputs.output.Row(step, 0);
    inputs.output.tokens = 1;
    inputs.lse += step * 6;
    const std::uint64_t before = run.attention.stats().keys_read;
    run(inputs);
    // The window grows by a key each step until the refresh.
    const std::uint64_t read = run.attention.stats().keys_read - before;
    // The newest searched block may reach into the window, whose keys count once.
    const auto most = 6u * static_cast<std::uint64_t>(8 + 64 + 32 + step % 4);
    EXPECT_LE(read, most) << step;
    EXPECT_GE(read, most - 6u * static_cast<std::uint64_t>(settings.block_k - 1)) << step;
    if (run.attention.mask().starts != last) ++changes;
    last = run.attention.mask().starts;
  }
  EXPECT_EQ(changes, 3);
}

TEST_P(PrunedAttention, AJumpInTheKeysMakesANewSelection) {
  AttentionSettings settings = Hip();
  settings.refresh = 100;
  Layer layer(DType::kF16, 1, 800, 4, 2, 64, 64);
  LayerRun run(settings, GetParam());
  const auto starts_at = [&](int keys) {
    AttentionInputs inputs = layer.Inputs();
    inputs.keys.tokens = inputs.values.tokens = keys;
    run(inputs);
    return run.attention.mask().starts;
  };
  const auto first = starts_at(600);
  EXPECT_EQ(starts_at(601), first);
  EXPECT_NE(starts_at(800), first);
  EXPECT_EQ(starts_at(600), first);
}

TEST_P(PrunedAttention, MasksAndRangesAreNeverPruned) {
  Layer layer(DType::kF16, 2, 800, 4, 2, 64, 64);
  const std::vector<KeyRange> visible(2, KeyRange{0, 700});
  AttentionInputs inputs = layer.Inputs();
  inputs.visible = visible.data();
  LayerRun run(Hip(), GetParam());
  run(inputs);
  EXPECT_FALSE(run.attention.pruned());
  EXPECT_EQ(run.attention.stats().keys_read, 700u * 2 * 4);
}

INSTANTIATE_TEST_SUITE_P(Isa, PrunedAttention, ::testing::ValuesIn(AvailableIsas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace coppice::testing
