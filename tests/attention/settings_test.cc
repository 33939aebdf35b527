// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "coppice/attention.h"

namespace coppice {
namespace {

TEST(Settings, DefaultsAreValid) { EXPECT_TRUE(Validate(AttentionSettings{}).ok()); }

TEST(Settings, EachFieldIsCheckedAndNamed) {
  const auto message = [](auto change) {
    AttentionSettings settings;
    change(settings);
    const Status status = Validate(settings);
    EXPECT_FALSE(status.ok());
    EXPECT_FALSE(Attention::Create(settings).ok());
    return status.message();
  };
  using S = AttentionSettings&;
  EXPECT_EQ(message([](S s) { s.budget = 0; }), "budget is 0; it must be between 1 and 268435456");
  EXPECT_NE(message([](S s) { s.block_k = 0; }).find("block_k"), std::string::npos);
  EXPECT_NE(message([](S s) { s.block_q = -1; }).find("block_q"), std::string::npos);
  EXPECT_NE(message([](S s) { s.query_stride = 0; }).find("query_stride"), std::string::npos);
  EXPECT_NE(message([](S s) { s.breadth = 0; }).find("breadth"), std::string::npos);
  EXPECT_NE(message([](S s) { s.probe = -1; }).find("probe"), std::string::npos);
  EXPECT_NE(message([](S s) { s.sink = -1; }).find("sink"), std::string::npos);
  EXPECT_NE(message([](S s) { s.window = -1; }).find("window"), std::string::npos);
  EXPECT_NE(message([](S s) { s.dense_layers = -1; }).find("dense_layers"), std::string::npos);
  EXPECT_NE(message([](S s) { s.refresh = 0; }).find("refresh"), std::string::npos);
  EXPECT_EQ(message([](S s) { s.method = "magic"; }),
            "unknown attention method 'magic'; known: dense, hip, random, streaming");
}

TEST(Settings, AnUnknownInstructionSetListsTheKnown) {
  const Result<Attention> attention = Attention::Create({}, "sse9");
  ASSERT_FALSE(attention.ok());
  EXPECT_EQ(attention.status().code(), StatusCode::kNotFound);
  EXPECT_NE(attention.status().message().find("generic"), std::string::npos);
}

}  // namespace
}  // namespace coppice
