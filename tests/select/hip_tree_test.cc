// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The tree search against the vectors of tools/make_hip_tree_vectors.py, with every kernel table
// that runs here and every key type, and the corners that vectors cannot hold: ties, NaN, infinite
// scores, huge settings, and how many blocks are scored.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "select/select_support.h"
#include "select/selector.h"

namespace coppice {
namespace {

using testing::KeyCache;
using testing::PlainKernels;
using testing::RunSelector;
using testing::Selection;
using testing::SelectProblem;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The generator's streams and hash; see the script for what they mean.
enum Stream : std::uint64_t { kQueries = 0, kKeys = 1, kKnots = 2 };

int RandomByte(std::uint64_t seed, Stream stream, std::uint64_t index) {
  std::uint64_t x = (index ^ (stream << 32) ^ (seed << 40)) + 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return static_cast<int>((x ^ (x >> 31)) >> 56) - 128;
}

struct Vector {
  std::string text;
  std::string key_kind;
  std::uint64_t seed = 0;
  AttentionSettings settings = PaperSearch();
  SelectProblem problem;
  bool everything = false;
  std::vector<std::int32_t> starts;
};

int KeyElement(const Vector& vector, int token, int channel) {
  constexpr int kKnotSpacing = 32;
  const int dim = vector.problem.dim;
  const int noise = RandomByte(vector.seed, kKeys, token * dim + channel);
  if (vector.key_kind == "random") return noise;
  const int knot = token / kKnotSpacing;
  const int step = token % kKnotSpacing;
  const int before = RandomByte(vector.seed, kKnots, knot * dim + channel);
  const int after = RandomByte(vector.seed, kKnots, (knot + 1) * dim + channel);
  const int mean = (before * (kKnotSpacing - step) + after * step) >> 5;
  return std::clamp(mean + (noise >> 4), -128, 127);
}

void FillInputs(Vector& vector) {
  SelectProblem& problem = vector.problem;
  problem.Resize();
  for (std::size_t i = 0; i < problem.queries.size(); ++i) {
    problem.queries[i] = static_cast<float>(RandomByte(vector.seed, kQueries, i)) / 128;
  }
  for (int t = 0; t < problem.visible; ++t) {
    for (int i = 0; i < problem.dim; ++i) {
      problem.keys[static_cast<std::size_t>(t) * problem.dim + i] =
          static_cast<float>(KeyElement(vector, t, i)) / 16;
    }
  }
}

Vector Parse(const std::string& line) {
  Vector vector;
  vector.text = line.substr(0, line.find(':'));
  std::istringstream fields(vector.text);
  std::string representative;
  SelectProblem& problem = vector.problem;
  AttentionSettings& settings = vector.settings;
  fields >> representative >> vector.key_kind >> problem.dim >> problem.visible >> problem.tokens >>
      problem.heads >> settings.budget >> settings.block_k >> settings.query_stride >>
      settings.sink >> settings.window >> vector.seed;
  EXPECT_FALSE(fields.fail()) << line;
  settings.representative =
      representative == "center" ? Representative::kCenter : Representative::kFirst;
  FillInputs(vector);

  std::istringstream answer(line.substr(line.find(':') + 1));
  for (std::int32_t start; answer >> start;) vector.starts.push_back(start);
  vector.everything = vector.starts.empty();
  return vector;
}

std::vector<Vector> ReadVectors() {
  std::vector<Vector> vectors;
  std::ifstream file(COPPICE_TEST_DATA_DIR "/hip_tree_vectors.txt");
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line[0] != '#') vectors.push_back(Parse(line));
  }
  return vectors;
}

using VectorsParam = std::tuple<const KernelTable*, DType>;
class HipTreeVectors : public ::testing::TestWithParam<VectorsParam> {};

TEST_P(HipTreeVectors, AgreeIndexForIndex) {
  const auto [kernels, type] = GetParam();
  static const std::vector<Vector> vectors = ReadVectors();
  ASSERT_GE(vectors.size(), 60u);
  int checked = 0;
  for (const Vector& vector : vectors) {
    if (vector.problem.dim % kernels->dim_multiple != 0) continue;
    SCOPED_TRACE(vector.text);
    const std::unique_ptr<Selector> selector = MakeSelector(vector.settings).value();
    const KeyCache cache(vector.problem, type);
    const Selection selection = RunSelector(*selector, *kernels, vector.problem, cache.View());
    EXPECT_TRUE(selection.in_bounds);
    EXPECT_EQ(selection.everything, vector.everything);
    EXPECT_EQ(selection.starts, vector.starts);
    ++checked;
  }
  EXPECT_GE(checked, 50);
}

INSTANTIATE_TEST_SUITE_P(All, HipTreeVectors,
                         ::testing::Combine(::testing::ValuesIn(AvailableKernels()),
                                            ::testing::Values(DType::kF32, DType::kF16,
                                                              DType::kBF16)),
                         [](const ::testing::TestParamInfo<VectorsParam>& info) {
                           return std::string(std::get<0>(info.param)->isa) + "_" +
                                  NameOf(std::get<1>(info.param));
                         });

// One query of one channel, 1: a key's only channel is its score.
struct ScoresCase {
  AttentionSettings settings = PaperSearch();
  SelectProblem problem;

  explicit ScoresCase(const std::vector<float>& scores) {
    settings.block_k = 1;
    settings.sink = 0;
    settings.window = 0;
    settings.representative = Representative::kFirst;
    problem.visible = static_cast<int>(scores.size());
    problem.Resize();
    problem.queries[0] = 1;
    problem.keys = scores;
  }

  Selection Run() const {
    const Selection selection =
        RunSelector(*MakeSelector(settings).value(), PlainKernels(), problem);
    EXPECT_TRUE(selection.in_bounds);
    return selection;
  }
};

using Starts = std::vector<std::int32_t>;

// Rounded products move what is kept only at its edge.
TEST(HipTree, FastScoresKeepNearlyAllBlocks) {
  AttentionSettings settings = PaperSearch();
  settings.budget = 512;
  SelectProblem problem{.tokens = 32, .heads = 4, .dim = 64, .visible = 8192};
  problem.Resize();
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::generate(problem.queries.begin(), problem.queries.end(), [&] { return normal(random); });
  std::generate(problem.keys.begin(), problem.keys.end(), [&] { return normal(random); });
  for (const KernelTable* kernels : AvailableKernels()) {
    settings.fast = false;
    const auto exact = RunSelector(*MakeSelector(settings).value(), *kernels, problem).starts;
    settings.fast = true;
    const auto fast = RunSelector(*MakeSelector(settings).value(), *kernels, problem).starts;
    std::vector<std::int32_t> same;
    std::set_intersection(exact.begin(), exact.end(), fast.begin(), fast.end(),
                          std::back_inserter(same));
    EXPECT_GE(static_cast<double>(same.size()), 0.93 * static_cast<double>(exact.size()))
        << kernels->isa;
  }
}

TEST(HipTree, TiesKeepTheLeftMost) {
  ScoresCase equal(std::vector<float>(16, 3.0f));
  equal.settings.budget = 4;
  EXPECT_EQ(equal.Run().starts, (Starts{0, 1, 2, 3}));
  equal.settings.representative = Representative::kCenter;
  EXPECT_EQ(equal.Run().starts, (Starts{0, 1, 2, 3}));
}

TEST(HipTree, BothZerosTie) {
  ScoresCase zeros({-0.0f, 0.0f, 0.0f, -0.0f});
  zeros.settings.budget = 2;
  EXPECT_EQ(zeros.Run().starts, (Starts{0, 1}));
}

TEST(HipTree, NegativeScoresKeepTheirOrder) {
  ScoresCase falling({-5, -1, -9, -2, -1e30f, -0.5f, -kInfinity, -4});
  falling.settings.budget = 4;
  EXPECT_EQ(falling.Run().starts, (Starts{1, 3, 5, 7}));
}

TEST(HipTree, ANanIsReadLikeTheHighestScore) {
  const float positive = std::numeric_limits<float>::quiet_NaN();
  const float negative = std::copysign(positive, -1.0f);
  for (const float nan : {positive, negative}) {
    ScoresCase poisoned({1, 2, 3, 4, 5, 6, nan, 8});
    poisoned.settings.budget = 2;
    EXPECT_EQ(poisoned.Run().starts, (Starts{6, 7}));
  }
  ScoresCase all(std::vector<float>(1000, negative));
  all.settings.budget = 10;
  EXPECT_EQ(all.Run().starts, (Starts{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
}

TEST(HipTree, InfiniteScoresKeepTheListWhole) {
  ScoresCase low(std::vector<float>(500, -kInfinity));
  low.settings.budget = 3;
  EXPECT_EQ(low.Run().starts, (Starts{0, 1, 2}));
  ScoresCase high(std::vector<float>(500, kInfinity));
  high.settings.budget = 3;
  EXPECT_EQ(high.Run().starts, (Starts{0, 1, 2}));
}

TEST(HipTree, WhatTheBudgetCoversIsEverythingAndScoresNothing) {
  ScoresCase covered(std::vector<float>(300, 1.0f));
  covered.settings.sink = 32;
  covered.settings.window = 100;
  covered.settings.budget = 168;
  testing::scored_blocks = 0;
  EXPECT_TRUE(covered.Run().everything);
  EXPECT_EQ(testing::scored_blocks, 0);
  covered.settings.budget = 167;
  EXPECT_FALSE(covered.Run().everything);

  covered.settings.block_k = 8;  // 168 keys and 167 are both 21 blocks: nothing to choose
  testing::scored_blocks = 0;
  EXPECT_EQ(covered.Run().starts.size(), 21u);
  EXPECT_EQ(testing::scored_blocks, 0);
}

TEST(HipTree, ALeftHalfKeepsItsFirstBlocksScore) {
  ScoresCase all(std::vector<float>(1024, 1.0f));
  all.settings.budget = 64;  // 16 blocks a branch, 4 rounds
  testing::scored_blocks = 0;
  all.Run();
  EXPECT_EQ(testing::scored_blocks, 128 + 3 * 64);

  all.settings.representative = Representative::kCenter;
  testing::scored_blocks = 0;
  all.Run();
  // In the last round a right half of one block is its parent's middle.
  EXPECT_EQ(testing::scored_blocks, 3 * 128 + 64);
}

// Four query blocks of 16 tokens, each a little further: with branches of the paper each would ask for
// representatives of its own.
TEST(HipTree, NeighbouringQueryBlocksScoreTheSameRepresentatives) {
  SelectProblem problem;
  problem.tokens = 64;
  problem.visible = 20096;
  problem.Resize();
  std::fill(problem.queries.begin(), problem.queries.end(), 1.0f);
  for (int j = 0; j < problem.visible; ++j) {
    problem.keys[j] = std::sin(static_cast<float>(j) / 300);
  }
  const KeyCache cache(problem, DType::kF32);
  const auto scored = [&](AttentionSettings settings, int block_q) {
    settings.balance = false;
    settings.sink = 0;
    testing::scored_blocks = 0;
    testing::RunTogether(*MakeSelector(settings).value(), PlainKernels(), problem, cache.View(),
                         block_q);
    return testing::scored_blocks;
  };
  AttentionSettings settings;
  EXPECT_LT(scored(settings, 16), scored(settings, 64) * 1.05);
  settings.breadth = 1;
  EXPECT_GT(scored(settings, 16), scored(settings, 64) * 1.5);
}

// A kernel that gains by sharing gets neighbours to share with, where nothing that they share lies behind
// what one of them sees.
TEST(HipTree, BlocksAreSearchedTogetherWhereTheKernelGains) {
  KernelTable sharing = PlainKernels();
  sharing.search_groups = 6;
  sharing.few_rows = 8;
  AttentionSettings settings;
  const auto together = [&](int tokens, int heads, int keys = 10000) {
    return MakeSelector(settings).value()->BlocksTogether(
        sharing, {.tokens = tokens, .heads_per_token = heads, .keys = keys, .dim = 64});
  };
  EXPECT_EQ(together(16, 4), 6);
  EXPECT_EQ(together(16, 2), 1);  // 8 rows
  sharing.search_groups = 1;
  EXPECT_EQ(together(16, 4), 1);
  const int all = settings.sink + settings.window + 1024 * 8;  // every block is a branch
  EXPECT_EQ(together(16, 4, all), 4);
  EXPECT_EQ(together(16, 4, all + 1), 1);
  EXPECT_EQ(together(16, 2, all), 1);
  sharing.search_groups = 6;
  EXPECT_EQ(together(16, 4, all), 6);
  settings.window = settings.block_k - 1;
  EXPECT_EQ(together(16, 4), 1);
}

TEST(HipTree, HugeSettingsDoNotOverflow) {
  constexpr int kHuge = std::numeric_limits<int>::max();
  ScoresCase small(std::vector<float>(100, 1.0f));
  small.settings.budget = 10;
  small.settings.query_stride = kHuge;
  EXPECT_EQ(small.Run().starts.size(), 10u);
  small.settings.sink = kHuge;
  small.settings.window = kHuge;
  EXPECT_TRUE(small.Run().everything);

  AttentionSettings settings;
  settings.budget = kHuge;
  settings.block_k = 1;
  EXPECT_EQ(MakeSelector(settings).value()->Capacity(), kHuge);
}

// A lone high score is missed by the paper's search unless it sits on a representative; followed
// branches that reach every block find it wherever it is.
TEST(HipTree, EnoughBreadthFindsEveryLoneKey) {
  for (int place = 0; place < 256; ++place) {
    std::vector<float> scores(256, 0.0f);
    scores[static_cast<std::size_t>(place)] = 1.0f;
    ScoresCase wide(scores);
    wide.settings.budget = 4;
    wide.settings.breadth = 64;
    const std::vector<std::int32_t> starts = wide.Run().starts;
    ASSERT_EQ(starts.size(), 4u);
    EXPECT_NE(std::find(starts.begin(), starts.end(), place), starts.end()) << place;
  }
}

TEST(HipTree, BreadthFollowsBranchesThatTheBudgetWouldDrop) {
  // Of 32 blocks in two branches the left one looks better at its representative; the best block
  // hides in the right one, and shows when that one is followed too.
  std::vector<float> scores(32, 0.0f);
  scores[0] = 2.0f;
  scores[16] = 1.0f;
  scores[24] = 5.0f;
  ScoresCase paper(scores);
  paper.settings.budget = 1;
  EXPECT_EQ(paper.Run().starts, std::vector<std::int32_t>{0});
  ScoresCase wide(scores);
  wide.settings.budget = 1;
  wide.settings.breadth = 2;
  EXPECT_EQ(wide.Run().starts, std::vector<std::int32_t>{24});
}

// The rounds see the middle keys of a block alone, the last step sees all of it.
TEST(HipTree, ProbesScoreTheMiddleAndTheLastStepTheWholeBlock) {
  std::vector<float> scores(64, 0.0f);
  scores[3] = 3.0f;   // block 0, in its probe: keys 3 and 4 of 8
  scores[11] = 1.0f;  // block 1, in its probe
  scores[17] = 9.0f;  // block 2, outside of its probe
  ScoresCase probing(scores);
  probing.settings.block_k = 8;
  probing.settings.budget = 8;
  probing.settings.probe = 2;
  probing.settings.breadth = 8;  // every block is a branch: the last step decides
  probing.settings.representative = Representative::kCenter;
  EXPECT_EQ(probing.Run().starts, std::vector<std::int32_t>{16});
  probing.settings.breadth = 1;  // the rounds decide: block 2 never shows its 9
  EXPECT_NE(probing.Run().starts, std::vector<std::int32_t>{16});
}

TEST(HipTree, AProbeLiesInTheMiddleOfItsBlock) {
  std::vector<float> scores(64, 0.0f);
  scores[16] = 9.0f;  // first key of block 2, which stands for the left half
  scores[51] = 5.0f;  // middle of block 6, which stands for the right half
  scores[59] = 4.0f;  // middle of block 7, which stands for the right half of that
  ScoresCase probing(scores);
  probing.settings.block_k = 8;
  probing.settings.budget = 8;
  probing.settings.probe = 2;
  probing.settings.representative = Representative::kCenter;
  EXPECT_EQ(probing.Run().starts, std::vector<std::int32_t>{48});
}

TEST(HipTree, OnlyTheLastTokenOfAStrideScores) {
  ScoresCase two({0, 9, 0, 0, 0, 0, 7, 0});
  two.settings.budget = 2;
  two.settings.query_stride = 2;
  two.problem.tokens = 2;
  two.problem.queries = {1, -1};  // the second token wants the lowest keys
  EXPECT_EQ(two.Run().starts, (Starts{0, 2}));
}

}  // namespace
}  // namespace coppice
