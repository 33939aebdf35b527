// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What models do to scores besides scaling them: soft caps, ALiBi, attention sinks, windows; alone
// and together, on every instruction set, against float64.
#include <string>
#include <tuple>

#include "attention/layer.h"

namespace coppice::testing {
namespace {

struct Shaping {
  float softcap = 0;
  bool alibi = false;
  bool sinks = false;
  int window = 0;  // 0: none
};

std::vector<float> Slopes(int heads) {
  std::vector<float> slopes;
  for (int h = 0; h < heads; ++h) {
    slopes.push_back(std::pow(2.0f, -8.0f * static_cast<float>(h + 1) / static_cast<float>(heads)));
  }
  return slopes;
}

std::vector<float> Sinks(int heads) {
  std::vector<float> sinks;
  for (int h = 0; h < heads; ++h) sinks.push_back(static_cast<float>(h % 5) * 2.0f - 3.0f);
  return sinks;
}

// In float64: cap, then ALiBi, then the sink as one more key without a value.
ReferenceResult Want(const Layer& layer, const Shaping& shaping, const std::vector<float>& slopes,
                     const std::vector<float>& sinks) {
  const std::int64_t heads = layer.queries.heads;
  const std::int64_t dim_v = layer.values.dim;
  ReferenceResult result;
  result.output.assign(static_cast<std::size_t>(layer.queries.tokens * heads * dim_v), 0);
  result.lse.assign(static_cast<std::size_t>(layer.queries.tokens * heads), -kInfinity);
  for (std::int64_t t = 0; t < layer.queries.tokens; ++t) {
    for (std::int64_t h = 0; h < heads; ++h) {
      const std::int64_t kv = h / (heads / layer.keys.heads);
      const std::int64_t first =
          shaping.window == 0 ? 0
                              : std::max<std::int64_t>(0, layer.Position(t) + 1 - shaping.window);
      const auto sink = static_cast<double>(sinks[static_cast<std::size_t>(h)]);
      std::vector<double> scores;
      double highest = shaping.sinks ? sink : -kInfinity;
      for (std::int64_t j = first; j <= layer.Position(t); ++j) {
        double score = 0;
        for (std::int64_t i = 0; i < layer.queries.dim; ++i) {
          score += static_cast<double>(layer.queries.at(t, h, i)) * layer.keys.at(j, kv, i);
        }
        score *= layer.Scale();
        if (shaping.softcap > 0) score = shaping.softcap * std::tanh(score / shaping.softcap);
        if (shaping.alibi) {
          score += static_cast<double>(slopes[static_cast<std::size_t>(h)]) *
                   static_cast<double>(j - layer.Position(t));
        }
        scores.push_back(score);
        highest = std::max(highest, score);
      }
      double total = shaping.sinks ? std::exp(sink - highest) : 0;
      double* out = &result.output[static_cast<std::size_t>((t * heads + h) * dim_v)];
      for (std::size_t j = 0; j < scores.size(); ++j) {
        const double weight = std::exp(scores[j] - highest);
        total += weight;
        for (std::int64_t i = 0; i < dim_v; ++i) {
          out[i] += weight * layer.values.at(first + static_cast<std::int64_t>(j), kv, i);
        }
      }
      for (std::int64_t i = 0; i < dim_v; ++i) out[i] /= total;
      result.lse[static_cast<std::size_t>(t * heads + h)] = highest + std::log(total);
    }
  }
  return result;
}

class Scores : public ::testing::TestWithParam<std::string> {
 protected:
  // Attends in a layer of `queries` tokens over `keys` and compares.
  void Expect(const Shaping& shaping, int queries, int keys, int heads, int kv_heads,
              const std::string& what) {
    Layer layer(DType::kF16, queries, keys, heads, kv_heads, 64, 64);
    for (float& q : layer.queries.values) q *= 4;  // scores of up to 15: the caps must bite
    layer.queries = Tensor(DType::kF32, queries, heads, 64, layer.queries.values);
    const std::vector<float> slopes = Slopes(heads);
    const std::vector<float> sinks = Sinks(heads);
    std::vector<KeyRange> visible;
    AttentionInputs inputs = layer.Inputs();
    inputs.softcap = shaping.softcap;
    if (shaping.alibi) inputs.alibi_slopes = slopes.data();
    if (shaping.sinks) inputs.sinks = sinks.data();
    if (shaping.window > 0) {
      for (int t = 0; t < queries; ++t) {
        const auto end = static_cast<std::int32_t>(layer.Position(t)) + 1;
        visible.push_back({std::max(0, end - shaping.window), end});
      }
      inputs.visible = visible.data();
    }
    ThreadPool pool(2);
    ASSERT_TRUE(Attend(inputs, Dense(), pool, nullptr, GetParam()).ok());
    ExpectMatches(layer, Want(layer, shaping, slopes, sinks), ExactBound(GetParam()), what);
  }

  // In prefill, and in decode with the keys in one piece and in several.
  void ExpectEverywhere(const Shaping& shaping, const std::string& what) {
    for (const auto& [heads, kv_heads] :
         {std::pair{4, 4}, {6, 2}, {8, 2}, {7, 1}, {16, 2}, {16, 1}}) {
      const std::string group = what + ", group " + std::to_string(heads / kv_heads);
      Expect(shaping, 50, 130, heads, kv_heads, group + ", prefill");
      Expect(shaping, 1, 100, heads, kv_heads, group + ", decode");
      Expect(shaping, 1, 1100, heads, kv_heads, group + ", decode in pieces");
    }
  }
};

TEST_P(Scores, Capped) { ExpectEverywhere({.softcap = 5}, "cap 5"); }
TEST_P(Scores, CappedFarAboveThem) { ExpectEverywhere({.softcap = 3000}, "cap 3000"); }
TEST_P(Scores, Alibi) { ExpectEverywhere({.alibi = true}, "ALiBi"); }
TEST_P(Scores, Sinks) { ExpectEverywhere({.sinks = true}, "sinks"); }
TEST_P(Scores, Window) { ExpectEverywhere({.window = 37}, "window"); }
TEST_P(Scores, AllAtOnce) {
  ExpectEverywhere({.softcap = 8, .alibi = true, .sinks = true, .window = 61}, "all");
}

TEST_P(Scores, AlibiIsDense) {
  Layer layer(DType::kF16, 1, 4096, 4, 2, 64, 64);
  const std::vector<float> slopes = Slopes(4);
  AttentionInputs inputs = layer.Inputs();
  AttentionSettings settings;
  settings.method = "hip";
  settings.budget = 128;
  Result<Attention> attention = Attention::Create(settings, GetParam());
  ASSERT_TRUE(attention.ok());
  Workspace workspace(1);
  ASSERT_TRUE(attention->Plan(inputs, workspace).ok());
  EXPECT_TRUE(attention->pruned());
  inputs.alibi_slopes = slopes.data();
  ASSERT_TRUE(attention->Plan(inputs, workspace).ok());
  EXPECT_FALSE(attention->pruned());
}

TEST_P(Scores, PrunedRowsSeeTheirSinks) {
  Layer layer(DType::kF16, 20, 2048, 4, 2, 64, 64);
  AttentionSettings settings;
  settings.method = "streaming";
  const std::vector<float> sinks = Sinks(4);
  ThreadPool pool(1);
  ASSERT_TRUE(Attend(layer.Inputs(), settings, pool, nullptr, GetParam()).ok());
  const std::vector<float> output = layer.output;
  const std::vector<float> lse = layer.lse;
  AttentionInputs inputs = layer.Inputs();
  inputs.sinks = sinks.data();
  ASSERT_TRUE(Attend(inputs, settings, pool, nullptr, GetParam()).ok());
  for (std::size_t row = 0; row < lse.size(); ++row) {
    const double with = std::log(std::exp(static_cast<double>(lse[row])) +
                                 std::exp(static_cast<double>(sinks[row % 4])));
    EXPECT_NEAR(layer.lse[row], with, 1e-5 * (1 + std::abs(with)));
    EXPECT_NEAR(layer.output[row * 64], output[row * 64] * std::exp(lse[row] - with), 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, Scores, ::testing::ValuesIn(AvailableIsas()),
                         [](const auto& info) { return info.param; });

TEST(ScoresInput, ANegativeCapIsRefused) {
  Layer layer(DType::kF16, 1, 8, 2, 1, 64, 64);
  AttentionInputs inputs = layer.Inputs();
  inputs.softcap = -1;
  ThreadPool pool(1);
  EXPECT_EQ(Attend(inputs, Dense(), pool).code(), StatusCode::kInvalidArgument);
}

TEST(ScoresInput, QuantisedRowsAreMadeOfWholeBlocks) {
  Layer layer(DType::kQ8_0, 1, 8, 2, 1, 64, 64);
  AttentionInputs inputs = layer.Inputs();
  inputs.values.dim = 48;
  inputs.output.dim = 48;
  ThreadPool pool(1);
  const Status status = Attend(inputs, Dense(), pool);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("32"), std::string::npos);
}

}  // namespace
}  // namespace coppice::testing
