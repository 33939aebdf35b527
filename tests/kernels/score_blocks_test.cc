// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/align.h"
#include "kernels/table.h"
#include "support/reference.h"

namespace coppice::testing {
namespace {

class ScoreBlocks : public ::testing::TestWithParam<std::string> {};

TEST_P(ScoreBlocks, IsTheHighestProductAboveItsRowsLevel) {
  const KernelTable& kernels = *FindKernels(GetParam());
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int rows : {1, 3, 4, 8, 9, 24, 64, 70}) {
      for (const int block_size : {1, 2, 8, 33}) {
        constexpr int kDim = 64, kKeys = 500;
        const Tensor queries = RandomTensor(DType::kF32, 1, rows, kDim, 1);
        const Tensor keys = RandomTensor(type, kKeys, 1, kDim, 2);
        std::vector<const float*> pointers;
        for (int row = 0; row < rows; ++row) pointers.push_back(&queries.values[row * kDim]);
        const Tensor levels = RandomTensor(DType::kF32, 1, 1, rows, 3, 10.0f);
        const bool leveled = block_size != 2;
        std::vector<std::int32_t> starts;
        for (int start = 0; start < kKeys; start += block_size + 3) starts.push_back(start);
        std::vector<float> scores(starts.size(), 99);
        AlignedBytes scratch = AllocateAligned(kernels.score_scratch(rows, kDim));
        kernels.score_blocks({.rows = rows,
                              .queries = pointers.data(),
                              .levels = leveled ? levels.values.data() : nullptr,
                              .keys = {keys.bytes.data(), keys.view().token_stride, type, kDim},
                              .starts = starts.data(),
                              .count = static_cast<int>(starts.size()),
                              .block_size = block_size,
                              .limit = kKeys,
                              .scores = scores.data(),
                              .scratch = scratch.get()});
        for (std::size_t b = 0; b < starts.size(); ++b) {
          double want = -kInfinity;
          double size = 0;  // of the products that made it
          for (int key = starts[b]; key < std::min(starts[b] + block_size, kKeys); ++key) {
            for (int row = 0; row < rows; ++row) {
              double dot = leveled ? -static_cast<double>(levels.at(0, 0, row)) : 0.0;
              double sum = 0;
              for (int i = 0; i < kDim; ++i) {
                const double product =
                    static_cast<double>(queries.at(0, row, i)) * keys.at(key, 0, i);
                dot += product;
                sum += std::abs(product);
              }
              if (dot > want) size = sum;
              want = std::max(want, dot);
            }
          }
          // With AMX, of numbers in two parts of bf16.
          ASSERT_NEAR(scores[b], want, GetParam() == "amx" ? size * 0x1p-17 : 1e-4)
              << NameOf(type) << " rows " << rows << " block " << block_size << " at " << b;
        }
      }
    }
  }
}

TEST_P(ScoreBlocks, NanProductsDoNotCount) {
  const KernelTable& kernels = *FindKernels(GetParam());
  constexpr int kDim = 64, kKeys = 40, kBlock = 8;
  for (const int rows : {4, 40}) {
    const Tensor queries = RandomTensor(DType::kF32, 1, rows, kDim, 1, 0.0f);
    Tensor keys = RandomTensor(DType::kF32, kKeys, 1, kDim, 2);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (const int key : {3, 16, 17, 18, 19, 20, 21, 22, 23}) keys.values[key * kDim + 5] = nan;
    keys = Tensor(DType::kF32, kKeys, 1, kDim, keys.values);
    std::vector<const float*> pointers;
    for (int row = 0; row < rows; ++row) pointers.push_back(&queries.values[row * kDim]);
    const std::vector<std::int32_t> starts = {0, 8, 16, 24, 32};
    std::vector<float> scores(starts.size(), 99);
    AlignedBytes scratch = AllocateAligned(kernels.score_scratch(rows, kDim));
    kernels.score_blocks({.rows = rows,
                          .queries = pointers.data(),
                          .keys = {keys.bytes.data(), keys.view().token_stride, keys.type, kDim},
                          .starts = starts.data(),
                          .count = static_cast<int>(starts.size()),
                          .block_size = kBlock,
                          .limit = kKeys,
                          .scores = scores.data(),
                          .scratch = scratch.get()});
    const auto none = -std::numeric_limits<float>::infinity();
    EXPECT_EQ(scores, (std::vector<float>{0, 0, none, 0, 0})) << rows;
  }
}

// Neither an infinity nor a number above the largest bf16 is lost.
TEST_P(ScoreBlocks, HugeKeysCount) {
  const KernelTable& kernels = *FindKernels(GetParam());
  constexpr int kDim = 64, kKeys = 40, kBlock = 8;
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (const int rows : {4, 40}) {
    const std::vector<float> query(kDim, 0x1p-10f);
    const std::vector<const float*> pointers(static_cast<std::size_t>(rows), query.data());
    std::vector<float> values(kKeys * kDim, 0.0f);
    values[9 * kDim + 5] = std::numeric_limits<float>::infinity();
    values[20 * kDim + 5] = kLargest;
    values[39 * kDim + 5] = 0x1p10f;
    const Tensor keys(DType::kF32, kKeys, 1, kDim, values);
    const std::vector<std::int32_t> starts = {0, 8, 16, 24, 32};
    std::vector<float> scores(starts.size(), 99);
    AlignedBytes scratch = AllocateAligned(kernels.score_scratch(rows, kDim));
    kernels.score_blocks({.rows = rows,
                          .queries = pointers.data(),
                          .keys = {keys.bytes.data(), keys.view().token_stride, keys.type, kDim},
                          .starts = starts.data(),
                          .count = static_cast<int>(starts.size()),
                          .block_size = kBlock,
                          .limit = kKeys,
                          .scores = scores.data(),
                          .scratch = scratch.get()});
    const float infinity = std::numeric_limits<float>::infinity();
    EXPECT_EQ(scores, (std::vector<float>{0, infinity, kLargest * 0x1p-10f, 0, 1})) << rows;
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, ScoreBlocks, ::testing::ValuesIn(AvailableIsas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace coppice::testing
