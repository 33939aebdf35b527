// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Dense attention through the public API against float64: GQA, dims, strides, prefill and decode,
// causal, ranges and masks, on every instruction set.
#include <gtest/gtest.h>

#include "attention/layer.h"
#include "attention/plan.h"

namespace coppice::testing {
namespace {

class DenseAttention : public ::testing::TestWithParam<std::string> {
 protected:
  void Run(const AttentionInputs& inputs, const std::string& what) {
    ThreadPool pool(1);
    const Status status = Attend(inputs, Dense(), pool, nullptr, GetParam());
    ASSERT_TRUE(status.ok()) << what << ": " << status.message();
  }
};

TEST_P(DenseAttention, HeadGroupsAndDims) {
  for (const auto& [heads, kv_heads] :
       {std::pair{1, 1}, {9, 3}, {8, 2}, {7, 1}, {16, 1}, {8, 1}, {4, 4}}) {
    for (const auto& [dim_k, dim_v] : {std::pair{64, 64}, {128, 128}, {256, 256}, {192, 128}}) {
      for (const int queries : {1, 37}) {
        Layer layer(DType::kF16, queries, 150, heads, kv_heads, dim_k, dim_v);
        Run(layer.Inputs(), "");
        ExpectMatches(layer, layer.CausalReference(), ExactBound(GetParam()),
                      std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads, dims " +
                          std::to_string(dim_k) + "/" + std::to_string(dim_v) + ", queries " +
                          std::to_string(queries));
      }
    }
  }
}

TEST_P(DenseAttention, KeysAreSplitAndMerged) {
  for (const int queries : {1, 3, 8, 20}) {
    Layer layer(DType::kBF16, queries, 3000, 6, 2, 64, 64);
    Run(layer.Inputs(), "");
    ExpectMatches(layer, layer.CausalReference(), ExactBound(GetParam()),
                  "queries " + std::to_string(queries));
  }
}

TEST_P(DenseAttention, FullPrefillFromTheFirstToken) {
  Layer layer(DType::kF32, 300, 300, 9, 3, 64, 64);
  Run(layer.Inputs(), "");
  ExpectMatches(layer, layer.CausalReference(), ExactBound(GetParam()), "");
}

// Rows as they lie in a llama.cpp cache: KV heads side by side, here with room between tokens.
TEST_P(DenseAttention, StridedRowsAreReadInPlace) {
  Layer layer(DType::kF16, 20, 100, 8, 2, 64, 64);
  const ReferenceResult want = layer.CausalReference();
  const auto spread = [](const Tensor& from, std::vector<std::byte>& to) {
    const std::int64_t stride = from.view().token_stride + 64;
    to.assign(static_cast<std::size_t>(from.tokens * stride), std::byte{0x7C});
    for (std::int64_t t = 0; t < from.tokens; ++t) {
      std::memcpy(to.data() + t * stride, from.view().Row(t, 0),
                  static_cast<std::size_t>(from.view().token_stride));
    }
    TensorView view = from.view();
    view.data = to.data();
    view.token_stride = stride;
    return view;
  };
  std::vector<std::byte> keys, values;
  AttentionInputs inputs = layer.Inputs();
  inputs.keys = spread(layer.keys, keys);
  inputs.values = spread(layer.values, values);
  // Queries as ggml has them: [heads][tokens][dim].
  std::vector<float> queries(layer.queries.values.size());
  for (std::int64_t t = 0; t < 20; ++t) {
    for (std::int64_t h = 0; h < 8; ++h) {
      for (std::int64_t i = 0; i < 64; ++i) {
        queries[static_cast<std::size_t>((h * 20 + t) * 64 + i)] = layer.queries.at(t, h, i);
      }
    }
  }
  inputs.queries = {queries.data(), DType::kF32, 20, 8, 64, 64 * 4, 20 * 64 * 4};
  Run(inputs, "");
  ExpectMatches(layer, want, ExactBound(GetParam()), "");
}

TEST_P(DenseAttention, RangesOfEachQuery) {
  for (const int queries : {1, 2, 40}) {
    Layer layer(DType::kF16, queries, 500, 6, 2, 64, 64);
    std::vector<KeyRange> visible;
    for (int t = 0; t < queries; ++t) visible.push_back({t * 3, 300 + t});
    visible.back() = {10, 10};
    AttentionInputs inputs = layer.Inputs();
    inputs.visible = visible.data();
    Run(inputs, "");
    const ReferenceResult want =
        Reference(layer.queries, layer.keys, layer.values, layer.Scale(),
                  [&](std::int64_t t, std::int64_t, std::int64_t key) {
                    const KeyRange range = visible[static_cast<std::size_t>(t)];
                    return key >= range.begin && key < range.end ? 0 : -kInfinity;
                  });
    ExpectMatches(layer, want, ExactBound(GetParam()), "queries " + std::to_string(queries));
  }
}

TEST_P(DenseAttention, MasksOfBothTypes) {
  for (const DType type : {DType::kF16, DType::kF32}) {
    for (const int queries : {1, 2, 40}) {
      Layer layer(DType::kF16, queries, 700, 6, 2, 64, 64);
      std::vector<float> mask = Gaussian(static_cast<std::size_t>(queries) * 700, 4);
      for (std::size_t i = 0; i < mask.size(); ++i) {
        if (i % 3 == 0) mask[i] = -std::numeric_limits<float>::infinity();
      }
      const Tensor stored(type, queries, 1, 700, mask);
      AttentionInputs inputs = layer.Inputs();
      inputs.mask = {stored.bytes.data(), type, stored.view().token_stride};
      Run(inputs, "");
      const ReferenceResult want = Reference(layer.queries, layer.keys, layer.values, layer.Scale(),
                                             [&](std::int64_t t, std::int64_t, std::int64_t key) {
                                               return static_cast<double>(stored.at(t, 0, key));
                                             });
      ExpectMatches(layer, want, ExactBound(GetParam()),
                    std::string(NameOf(type)) + " " + std::to_string(queries));
    }
  }
}

TEST(DenseAttentionInputs, MistakesAreNamed) {
  ThreadPool pool(1);
  const auto message = [&](auto change) {
    Layer layer(DType::kF16, 4, 16, 4, 2, 64, 64);
    AttentionInputs inputs = layer.Inputs();
    change(inputs);
    const Status status = Attend(inputs, Dense(), pool);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  };
  using In = AttentionInputs&;
  EXPECT_NE(message([](In in) { in.keys.data = nullptr; }).find("keys"), std::string::npos);
  EXPECT_NE(message([](In in) { in.queries.dim = 32; }).find("queries"), std::string::npos);
  EXPECT_NE(message([](In in) { in.values.tokens = 15; }).find("values"), std::string::npos);
  EXPECT_NE(message([](In in) { in.queries.heads = in.output.heads = 3; }).find("multiple"),
            std::string::npos);
  EXPECT_NE(message([](In in) { in.queries.type = DType::kF16; }).find("f32"), std::string::npos);
  EXPECT_NE(message([](In in) { in.output.dim = 32; }).find("output"), std::string::npos);
  EXPECT_NE(message([](In in) { in.keys.tokens = in.values.tokens = 3; }).find("queries (4)"),
            std::string::npos);
  EXPECT_NE(message([](In in) { in.keys.tokens = in.values.tokens = 0; }).find("positive"),
            std::string::npos);
}

// 512 tokens fill one tile of 341 and a half: two of 341 and 171 would leave one of two threads waiting.
TEST(DensePlan, TilesAreOfOneSize) {
  KernelTable kernels = *FindKernels("generic");
  kernels.tile_rows = 1024;
  Layer layer(DType::kF16, 512, 600, 9, 3, 64, 64);
  const AttentionPlan plan = MakePlan(layer.Inputs(), Dense(), kernels, nullptr);
  EXPECT_EQ(plan.token_tiles, 2);
  EXPECT_EQ(plan.tile_tokens, 256);
}

INSTANTIATE_TEST_SUITE_P(Isa, DenseAttention, ::testing::ValuesIn(AvailableIsas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace coppice::testing
