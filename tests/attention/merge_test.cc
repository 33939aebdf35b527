// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "attention/layer.h"
#include "kernels/table.h"

namespace coppice::testing {
namespace {

constexpr float kEmpty = -std::numeric_limits<float>::infinity();

struct Parts {
  int dim;
  std::vector<std::vector<float>> values;
  std::vector<const float*> rows;
  std::vector<float> lses;

  Parts(int count, int dim) : dim(dim), lses(Gaussian(static_cast<std::size_t>(count), 1000)) {
    for (int p = 0; p < count; ++p) {
      values.push_back(Gaussian(static_cast<std::size_t>(dim), static_cast<std::uint32_t>(p)));
    }
    for (const std::vector<float>& row : values) rows.push_back(row.data());
  }

  // merge(out) against the sum in float64; what is empty holds NaN.
  template <typename Merge>
  void ExpectMerged(Merge merge) const {
    double total = 0;
    std::vector<double> want(static_cast<std::size_t>(dim));
    for (std::size_t p = 0; p < rows.size(); ++p) {
      if (lses[p] == kEmpty) continue;
      const double weight = std::exp(static_cast<double>(lses[p]));
      total += weight;
      for (std::size_t i = 0; i < want.size(); ++i) want[i] += weight * rows[p][i];
    }
    std::vector<float> out(want.size(), 12345.0f);
    EXPECT_NEAR(merge(out.data()), std::log(total), 1e-5);
    for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(out[i], want[i] / total, 1e-6) << i;
  }
};

// Any cut of the keys gives the whole.
TEST(Merge, PartsOverDisjointKeysGiveTheWhole) {
  Layer whole(DType::kF32, 1, 300, 1, 1, 64, 64);
  ThreadPool pool(1);
  ASSERT_TRUE(Attend(whole.Inputs(), Dense(), pool).ok());
  for (const int cut : {1, 100, 299}) {
    std::vector<float> outputs[2] = {std::vector<float>(64), std::vector<float>(64)};
    float lses[2];
    const KeyRange ranges[2] = {{0, cut}, {cut, 300}};
    for (int part = 0; part < 2; ++part) {
      AttentionInputs inputs = whole.Inputs();
      inputs.output = Contiguous(outputs[part].data(), 1, 1, 64);
      inputs.lse = &lses[part];
      inputs.visible = &ranges[part];
      ASSERT_TRUE(Attend(inputs, Dense(), pool).ok());
    }
    const float* parts[2] = {outputs[0].data(), outputs[1].data()};
    std::vector<float> merged(64);
    EXPECT_NEAR(MergePartials(parts, lses, 64, merged.data()), whole.lse[0], 1e-5);
    for (std::size_t i = 0; i < 64; ++i) EXPECT_NEAR(merged[i], whole.output[i], 1e-6);
  }
}

TEST(Merge, EmptyPartsAreNeutral) {
  const float a[2] = {1, 2};
  const float garbage[2] = {7, std::numeric_limits<float>::quiet_NaN()};
  const float* parts[3] = {garbage, a, garbage};
  const float lses[3] = {kEmpty, 0.5f, kEmpty};
  float out[2];
  EXPECT_FLOAT_EQ(MergePartials(parts, lses, 2, out), 0.5f);
  EXPECT_EQ(out[0], 1);
  EXPECT_EQ(out[1], 2);
}

TEST(Merge, OnlyEmptyPartsGiveZero) {
  const float garbage[2] = {7, 7};
  const float* parts[2] = {garbage, garbage};
  const float lses[2] = {kEmpty, kEmpty};
  float out[2] = {9, 9};
  EXPECT_EQ(MergePartials(parts, lses, 2, out), kEmpty);
  EXPECT_EQ(out[0], 0);
  EXPECT_EQ(out[1], 0);
}

TEST(Merge, OrderDoesNotMatterBeyondRounding) {
  const std::vector<float> a = Gaussian(64, 1), b = Gaussian(64, 2), c = Gaussian(64, 3);
  const float* forward[3] = {a.data(), b.data(), c.data()};
  const float* backward[3] = {c.data(), b.data(), a.data()};
  const float lses[3] = {2.0f, -1.0f, 40.0f};
  const float reversed[3] = {40.0f, -1.0f, 2.0f};
  std::vector<float> x(64), y(64);
  EXPECT_FLOAT_EQ(MergePartials(forward, lses, 64, x.data()),
                  MergePartials(backward, reversed, 64, y.data()));
  for (std::size_t i = 0; i < 64; ++i) EXPECT_NEAR(x[i], y[i], 1e-6);
}

TEST(Merge, AnyDim) {
  for (const int dim : {1, 32, 70}) {
    const Parts parts(150, dim);
    parts.ExpectMerged([&](float* out) { return MergePartials(parts.rows, parts.lses, dim, out); });
  }
}

TEST(Merge, NanMakesTheResultNan) {
  const float a[1] = {1};
  const float* parts[2] = {a, a};
  const float lses[2] = {1.0f, std::numeric_limits<float>::quiet_NaN()};
  float out[1];
  EXPECT_TRUE(std::isnan(MergePartials(parts, lses, 1, out)));
  EXPECT_TRUE(std::isnan(out[0]));
}

class MergeKernel : public ::testing::TestWithParam<std::string> {
 protected:
  float Merge(const Parts& parts, float* out) const {
    return FindKernels(GetParam())
        ->merge(parts.rows.data(), parts.lses.data(), static_cast<int>(parts.rows.size()),
                parts.dim, out);
  }
};

TEST_P(MergeKernel, IsTheWeightedSum) {
  for (const int count : {1, 5, 16, 64, 65, 150}) {
    for (const int dim : {16, 80, 128, 256}) {
      Parts parts(count, dim);
      parts.ExpectMerged([&](float* out) { return Merge(parts, out); });
      parts.lses[0] = 90;  // no exponential of f32 holds it
      parts.ExpectMerged([&](float* out) { return Merge(parts, out); });
    }
  }
}

TEST_P(MergeKernel, EmptyPartsMayHoldAnything) {
  Parts parts(70, 48);
  for (const std::size_t p : {0u, 3u, 17u, 69u}) {
    parts.lses[p] = kEmpty;
    parts.values[p].assign(48, std::numeric_limits<float>::quiet_NaN());
  }
  parts.ExpectMerged([&](float* out) { return Merge(parts, out); });
  parts.lses.assign(70, kEmpty);
  std::vector<float> out(48, 7);
  EXPECT_EQ(Merge(parts, out.data()), kEmpty);
  EXPECT_EQ(out, std::vector<float>(48, 0.0f));
}

TEST_P(MergeKernel, NanMakesTheResultNan) {
  Parts parts(20, 16);
  parts.lses[7] = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> out(16);
  EXPECT_TRUE(std::isnan(Merge(parts, out.data())));
  for (const float x : out) EXPECT_TRUE(std::isnan(x));
}

INSTANTIATE_TEST_SUITE_P(Isas, MergeKernel, ::testing::ValuesIn(AvailableIsas()));

}  // namespace
}  // namespace coppice::testing
