// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "coppice/settings.h"
#include "select/selector.h"

namespace coppice {
namespace {

TEST(Registry, NamesStandInOrder) {
  EXPECT_EQ(SelectorNames(), (std::vector<std::string>{"hip", "random", "streaming"}));
}

TEST(Registry, EveryNameMakesASelector) {
  for (const std::string& name : SelectorNames()) {
    AttentionSettings settings;
    settings.method = name;
    const Result<std::unique_ptr<Selector>> selector = MakeSelector(settings);
    ASSERT_TRUE(selector.ok()) << name;
    EXPECT_NE(selector.value(), nullptr) << name;
  }
}

TEST(Registry, AnUnknownNameIsNotFoundAndListsTheKnown) {
  AttentionSettings settings;
  for (const char* name : {"dense", "", "hop"}) {
    settings.method = name;
    const Result<std::unique_ptr<Selector>> selector = MakeSelector(settings);
    ASSERT_FALSE(selector.ok());
    EXPECT_EQ(selector.status().code(), StatusCode::kNotFound);
    EXPECT_EQ(selector.status().message(), "no selector is called \"" + std::string(name) +
                                               "\": choose one of hip, random, streaming");
  }
}

}  // namespace
}  // namespace coppice
