// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "coppice/huge_pages.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>

namespace coppice {
namespace {

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

// KiB of the mapping around `address` that lie in huge pages; -1 where the system does not tell.
long HugeKib(const std::byte* address) {
  std::ifstream maps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    unsigned long begin = 0;
    unsigned long end = 0;
    long kib = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      inside = begin <= wanted && wanted < end;
    } else if (inside && std::sscanf(line.c_str(), "AnonHugePages: %ld kB", &kib) == 1) {
      return kib;
    }
  }
  return -1;
}

bool SystemHasHugePages() {
  const auto memory = MakeMemory();
  constexpr int kCollapse = 25;
  return madvise(memory.get(), kBytes, MADV_HUGEPAGE) == 0 &&
         madvise(memory.get(), kBytes, kCollapse) == 0 && HugeKib(memory.get()) > 0;
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
