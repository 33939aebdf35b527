// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "coppice/huge_pages.h"

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace coppice {
namespace {

// Of x86-64, and of 64-bit ARM with pages of 4 KiB. Where they are larger, nothing is moved.
constexpr std::uintptr_t kHugePage = std::uintptr_t{1} << 21;

}  // namespace

void PreferHugePages(const void* data, std::size_t bytes) {
#ifdef __linux__
#ifdef MADV_COLLAPSE
  constexpr int kCollapse = MADV_COLLAPSE;
#else
  constexpr int kCollapse = 25;  // of Linux 6.1; an older one refuses it
#endif
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  if (begin >= end) return;
  auto* pages = reinterpret_cast<void*>(begin);
  if (madvise(pages, end - begin, MADV_HUGEPAGE) == 0) madvise(pages, end - begin, kCollapse);
#else
  (void)data;
  (void)bytes;
#endif
}

void GrowingHugePages::Reach(const std::byte* begin, const std::byte* end) {
  if (begin != begin_) begin_ = done_ = begin;
  const auto last = reinterpret_cast<std::uintptr_t>(end) / kHugePage * kHugePage;
  if (last <= reinterpret_cast<std::uintptr_t>(done_)) return;
  const auto* reached = reinterpret_cast<const std::byte*>(last);
  PreferHugePages(done_, static_cast<std::size_t>(reached - done_));
  done_ = reached;
}

}  // namespace coppice
