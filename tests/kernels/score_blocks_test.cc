// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/problem.h"

namespace coppice::testing {
namespace {

class ScoreBlocks : public ::testing::TestWithParam<std::string> {
 protected:
  const KernelTable& kernels() const { return *FindKernels(GetParam()); }

  // What fast arithmetic does to many rows: AMX and vdpbf16ps round to bf16, VNNI rounds the queries of
  // q8_0 keys to int8.
  bool RoundsToBf16() const { return GetParam() == "amx" || GetParam() == "avx512_bf16"; }
  bool RoundsToInt8() const { return GetParam() == "avx512_vnni" || GetParam() == "avx512_bf16"; }
  // A bound on the error of a score, in parts of sum |q_i k_i|; of random numbers for int8.
  double Unit(DType type, int rows, bool fast) const {
    if (fast && rows > kernels().few_rows) {
      if (type == DType::kQ8_0 && RoundsToInt8()) return 0x1p-6;
      if (RoundsToBf16()) return 0x1p-8;
    }
    return GetParam() == "amx" ? 0x1p-17 : 0x1p-21;
  }
};

struct Product {
  double score = -kInfinity;
  double size = 0;  // sum |q_i k_i|
};

Product Highest(const Tensor& queries, const float* levels, const Tensor& keys, int begin,
                int end) {
  Product highest;
  for (int key = begin; key < end; ++key) {
    for (int row = 0; row < queries.heads; ++row) {
      Product now{.score = levels == nullptr ? 0.0 : -static_cast<double>(levels[row])};
      for (int i = 0; i < keys.dim; ++i) {
        const double product = static_cast<double>(queries.at(0, row, i)) * keys.at(key, 0, i);
        now.score += product;
        now.size += std::abs(product);
      }
      if (now.score > highest.score) highest = now;
    }
  }
  return highest;
}

TEST_P(ScoreBlocks, IsTheHighestProductAboveItsRowsLevel) {
  constexpr int kDim = 64, kKeys = 500;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0}) {
    const Tensor keys = RandomTensor(type, kKeys, 1, kDim, 2);
    for (const int rows : {1, 3, 4, 8, 9, 24, 64, 70}) {
      const Tensor queries = RandomTensor(DType::kF32, 1, rows, kDim, 1);
      const Tensor drawn = RandomTensor(DType::kF32, 1, 1, rows, 3, 10.0f);
      for (const int block_size : {1, 2, 8, 33}) {
        const float* levels = block_size == 2 ? nullptr : drawn.values.data();
        std::vector<std::int32_t> starts;
        for (int start = 0; start < kKeys; start += block_size + 3) starts.push_back(start);
        const auto exact = Score(kernels(), queries, levels, keys, starts, block_size);
        const auto fast = Score(kernels(), queries, levels, keys, starts, block_size, true);
        ASSERT_EQ(exact.size(), starts.size()) << "wrote beyond its scratch";
        ASSERT_EQ(fast.size(), starts.size()) << "wrote beyond its scratch";
        for (std::size_t b = 0; b < starts.size(); ++b) {
          const Product want =
              Highest(queries, levels, keys, starts[b], std::min(starts[b] + block_size, kKeys));
          const std::string what = NameOf(type) + std::string(" rows ") + std::to_string(rows) +
                                   " block " + std::to_string(block_size) + " at " +
                                   std::to_string(b);
          ASSERT_NEAR(exact[b], want.score, want.size * Unit(type, rows, false)) << what;
          ASSERT_NEAR(fast[b], want.score, want.size * Unit(type, rows, true)) << what;
        }
      }
    }
  }
}

// Bit for bit, so that a selection does not depend on what is selected with it.
TEST_P(ScoreBlocks, OfAGroupDoNotDependOnOtherGroups) {
  constexpr int kDim = 64, kKeys = 120;
  for (const DType type : {DType::kF16, DType::kBF16, DType::kQ8_0}) {
    const Tensor keys = RandomTensor(type, kKeys, 1, kDim, 2);
    for (const int rows : {8, 12, 24}) {
      for (const int groups : {2, 5}) {
        const Tensor queries = RandomTensor(DType::kF32, groups, rows, kDim, 1);
        const Tensor levels = RandomTensor(DType::kF32, groups, 1, rows, 3, 10.0f);
        for (const int block_size : {1, 2, 8, 33}) {
          std::vector<std::int32_t> starts;
          for (int start = 0; start < kKeys; start += block_size + 3) starts.push_back(start);
          for (const bool fast : {false, true}) {
            const auto together =
                Score(kernels(), queries, levels.values.data(), keys, starts, block_size, fast);
            ASSERT_EQ(together.size(), starts.size() * static_cast<std::size_t>(groups))
                << "wrote beyond its scratch";
            for (int group = 0; group < groups; ++group) {
              const float* const first =
                  &queries.values[static_cast<std::size_t>(group) * rows * kDim];
              const Tensor own(DType::kF32, 1, rows, kDim,
                               std::vector<float>(first, first + rows * kDim));
              const auto alone = Score(kernels(), own, levels.values.data() + group * rows, keys,
                                       starts, block_size, fast);
              const auto begin = together.begin() + group * std::ssize(starts);
              ASSERT_EQ(alone, std::vector<float>(begin, begin + std::ssize(starts)))
                  << NameOf(type) << " rows " << rows << " group " << group << " of " << groups
                  << " block " << block_size << " fast " << fast;
            }
          }
        }
      }
    }
  }
}

// What may be fast is: 1 + 2^-10 becomes 1 in bf16, and a 254th of the largest nothing in int8.
TEST_P(ScoreBlocks, FastRoundsManyRows) {
  constexpr int kDim = 64;
  const std::vector<float> ones(40 * kDim, 1 + 0x1p-10f);
  const Tensor queries(DType::kF32, 1, 40, kDim, ones);
  const Tensor keys(DType::kF16, 40, 1, kDim, ones);
  const float exact = kDim * (1 + 0x1p-10f) * (1 + 0x1p-10f);
  EXPECT_NEAR(Score(kernels(), queries, nullptr, keys, {0}, 40)[0], exact, 1e-3);
  EXPECT_NEAR(Score(kernels(), queries, nullptr, keys, {0}, 40, true)[0],
              RoundsToBf16() ? kDim : exact, 1e-3);

  std::vector<float> small(40 * kDim, 1.0f / 256);
  for (std::size_t i = 0; i < small.size(); i += kQ8BlockSize) small[i] = 1.0f;
  const Tensor peaked(DType::kF32, 1, 40, kDim, small);
  const Tensor q8_keys(DType::kQ8_0, 40, 1, kDim, std::vector<float>(40 * kDim, 1.0f));
  EXPECT_NEAR(Score(kernels(), peaked, nullptr, q8_keys, {0}, 40)[0], 2 + 62.0 / 256, 2e-3);
  EXPECT_NEAR(Score(kernels(), peaked, nullptr, q8_keys, {0}, 40, true)[0],
              RoundsToInt8() ? 2 : 2 + 62.0 / 256, 2e-3);
}

TEST_P(ScoreBlocks, NanProductsDoNotCount) {
  constexpr int kDim = 64, kKeys = 40;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Tensor keys = RandomTensor(DType::kF32, kKeys, 1, kDim, 2);
  for (const int key : {3, 16, 17, 18, 19, 20, 21, 22, 23}) keys.values[key * kDim + 5] = nan;
  keys = Tensor(DType::kF32, kKeys, 1, kDim, keys.values);
  for (const int rows : {4, 40}) {
    const Tensor queries = RandomTensor(DType::kF32, 1, rows, kDim, 1, 0.0f);
    EXPECT_EQ(Score(kernels(), queries, nullptr, keys, {0, 8, 16, 24, 32}, 8),
              (std::vector<float>{0, 0, static_cast<float>(-kInfinity), 0, 0}))
        << rows;
  }
}

// Neither an infinity nor a number above the largest bf16 is lost.
TEST_P(ScoreBlocks, HugeKeysCount) {
  constexpr int kDim = 64, kKeys = 40;
  constexpr float kLargest = std::numeric_limits<float>::max();
  const auto infinity = static_cast<float>(kInfinity);
  std::vector<float> values(kKeys * kDim, 0.0f);
  values[9 * kDim + 5] = infinity;
  values[20 * kDim + 5] = kLargest;
  values[39 * kDim + 5] = 0x1p10f;
  const Tensor keys(DType::kF32, kKeys, 1, kDim, values);
  for (const int rows : {4, 40}) {
    const Tensor queries(DType::kF32, 1, rows, kDim,
                         std::vector<float>(static_cast<std::size_t>(rows * kDim), 0x1p-10f));
    for (const bool fast : {false, true}) {
      EXPECT_EQ(Score(kernels(), queries, nullptr, keys, {0, 8, 16, 24, 32}, 8, fast),
                (std::vector<float>{0, infinity, kLargest * 0x1p-10f, 0, 1}))
          << rows << fast;
    }
  }
}

// Queries that bf16 and the scale of an int8 block cannot hold.
TEST_P(ScoreBlocks, HugeQueriesCount) {
  constexpr int kDim = 64, kKeys = 40;
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (const DType type : {DType::kF16, DType::kBF16, DType::kQ8_0}) {
    std::vector<float> values(kKeys * kDim, 0.0f);
    values[20 * kDim + 5] = 0x1p-10f;
    const Tensor keys(type, kKeys, 1, kDim, values);
    for (const int rows : {4, 40}) {
      for (const float huge : {kLargest, static_cast<float>(kInfinity)}) {
        std::vector<float> numbers(static_cast<std::size_t>(rows * kDim), 0.0f);
        for (int row = 0; row < rows; ++row) numbers[row * kDim + 5] = huge;
        const Tensor queries(DType::kF32, 1, rows, kDim, numbers);
        EXPECT_EQ(Score(kernels(), queries, nullptr, keys, {16}, 8, true),
                  Score(kernels(), queries, nullptr, keys, {16}, 8, false))
            << NameOf(type) << " rows " << rows << " " << huge;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, ScoreBlocks, ::testing::ValuesIn(AvailableIsas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace coppice::testing
