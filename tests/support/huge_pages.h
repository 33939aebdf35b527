// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What Linux tells of the huge pages of this process.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

namespace coppice::testing {

// KiB in huge pages: of the mapping around `address`, or of all of them. 0 where nobody tells.
inline long HugeKib(const void* address = nullptr) {
  std::ifstream maps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  bool counted = address == nullptr;
  long sum = 0;
  for (std::string line; std::getline(maps, line);) {
    unsigned long begin = 0;
    unsigned long end = 0;
    long kib = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      if (address != nullptr) counted = begin <= wanted && wanted < end;
    } else if (counted && std::sscanf(line.c_str(), "AnonHugePages: %ld kB", &kib) == 1) {
      sum += kib;
    }
  }
  return sum;
}

// It has them, gives them at once (Linux 6.1), and tells.
inline bool SystemHasHugePages() {
  constexpr int kCollapse = 25;
  constexpr std::size_t kBytes = std::size_t{4} << 20;  // one whole page, wherever it begins
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return false;
  std::memset(memory, 1, kBytes);
  const bool has = madvise(memory, kBytes, MADV_HUGEPAGE) == 0 &&
                   madvise(memory, kBytes, kCollapse) == 0 && HugeKib(memory) > 0;
  munmap(memory, kBytes);
  return has;
}

}  // namespace coppice::testing
