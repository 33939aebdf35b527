// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "coppice/huge_pages.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdlib>
#include <memory>

#include "support/huge_pages.h"

namespace coppice {
namespace {

using testing::HugeKib;
using testing::SystemHasHugePages;

constexpr std::size_t kHugePage = std::size_t{1} << 21;
constexpr std::size_t kBytes = 4 * kHugePage;

struct Free {
  void operator()(std::byte* memory) const { std::free(memory); }
};

// Written to already, in small pages: as llama.cpp leaves a cache.
std::unique_ptr<std::byte[], Free> MakeMemory() {
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(kHugePage, kBytes));
  madvise(memory, kBytes, MADV_NOHUGEPAGE);
  for (std::size_t i = 0; i < kBytes; ++i) memory[i] = static_cast<std::byte>(i * 2654435761u >> 9);
  return std::unique_ptr<std::byte[], Free>(memory);
}

void ExpectContents(const std::byte* memory) {
  for (std::size_t i = 0; i < kBytes; ++i) {
    ASSERT_EQ(memory[i], static_cast<std::byte>(i * 2654435761u >> 9)) << i;
  }
}

TEST(HugePages, KeepContentsAndHoldWhatFillsThem) {
  const auto memory = MakeMemory();
  PreferHugePages(memory.get() + 100, kBytes - 200);  // all but the first and the last
  ExpectContents(memory.get());
  if (SystemHasHugePages()) {
    EXPECT_EQ(HugeKib(memory.get() + kHugePage), static_cast<long>(2 * kHugePage >> 10));
  }
}

TEST(HugePages, LeaveAloneWhatIsTooSmall) {
  const auto memory = MakeMemory();
  PreferHugePages(memory.get() + 1, kHugePage - 1);
  PreferHugePages(memory.get(), 0);
  PreferHugePages(nullptr, 0);
  ExpectContents(memory.get());
  EXPECT_LE(HugeKib(memory.get()), 0);
}

TEST(GrowingHugePages, TakeUpWhatIsAdded) {
  const auto memory = MakeMemory();
  const bool huge = SystemHasHugePages();
  GrowingHugePages pages;
  pages.Reach(memory.get(), memory.get() + kHugePage - 1);
  EXPECT_LE(HugeKib(memory.get()), 0);
  pages.Reach(memory.get(), memory.get() + kHugePage + 5);
  if (huge) {
    EXPECT_EQ(HugeKib(memory.get()), static_cast<long>(kHugePage >> 10));
  }
  pages.Reach(memory.get(), memory.get() + kBytes);
  pages.Reach(memory.get(), memory.get() + kHugePage);  // an earlier end is no news
  if (huge) {
    EXPECT_EQ(HugeKib(memory.get()), static_cast<long>(kBytes >> 10));
  }
  ExpectContents(memory.get());
}

}  // namespace
}  // namespace coppice
