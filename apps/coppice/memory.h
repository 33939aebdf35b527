// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// How much memory there is, and making too large an allocation fail instead of waking the kernel's
// out-of-memory killer: Linux promises more memory than it has.
#pragma once

#include <sys/resource.h>

#include <cstdint>

namespace coppice::app {

// What this process can still have without swapping: the least of /proc/meminfo's MemAvailable, the
// control group's limit and the address-space limit. A huge number where nothing is known.
std::uint64_t AvailableMemory();

std::uint64_t PeakResidentBytes();

// While one lives, allocations beyond the available memory plus `extra` (of mapped files, which
// need addresses and no memory) return null.
class MemoryCeiling {
 public:
  explicit MemoryCeiling(std::uint64_t extra = 0);
  ~MemoryCeiling();
  MemoryCeiling(const MemoryCeiling&) = delete;
  MemoryCeiling& operator=(const MemoryCeiling&) = delete;

 private:
  struct rlimit old_ = {};
  bool active_ = false;
};

}  // namespace coppice::app
