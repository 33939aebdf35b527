// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The float64 reference of the bench against the one of the tests, which is written the plain way.
#include "accuracy.h"

#include <gtest/gtest.h>

#include "support/reference.h"

namespace coppice::bench {
namespace {

testing::Tensor Copy(const TensorView& view) {
  std::vector<float> values;
  for (std::int64_t t = 0; t < view.tokens; ++t) {
    for (std::int64_t h = 0; h < view.heads; ++h) {
      for (std::int64_t i = 0; i < view.dim; ++i) {
        values.push_back(LoadElement(view.Row(t, h), view.type, i));
      }
    }
  }
  return {view.type, view.tokens, view.heads, view.dim, values};
}

// Groups of 9 are cut into parts of 4, 4 and 1; a dim of 7 is no multiple of the sums side by side.
TEST(Float64Reference, IsTheDefinition) {
  ThreadPool pool(2);
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    const Shape shape = {
        .tokens = 50, .queries = 20, .heads = 18, .kv_heads = 2, .dim = 7, .type = type};
    const Result<Inputs> inputs = Inputs::Make(shape, Inputs::Kind::kSmooth, 3, pool);
    ASSERT_TRUE(inputs.ok());
    const testing::ReferenceResult plain = testing::Reference(
        Copy(inputs.value().queries()), Copy(inputs.value().keys()), Copy(inputs.value().values()),
        1 / std::sqrt(7.0), [](std::int64_t query, std::int64_t, std::int64_t key) {
          return testing::Causal(30 + query, key);
        });
    const Reference reference = Float64Reference(inputs.value(), 5, pool);
    ASSERT_EQ(reference.tokens, (std::vector<std::int64_t>{3, 7, 11, 15, 19}));
    const std::vector<float> output(plain.output.begin(), plain.output.end());
    EXPECT_LT(RelativeError(output.data(), inputs.value(), reference), 1e-7) << NameOf(type);
  }
}

}  // namespace
}  // namespace coppice::bench
