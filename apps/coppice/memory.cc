// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace coppice::app {
namespace {

constexpr std::uint64_t kUnknown = std::numeric_limits<std::uint64_t>::max() / 4;

std::uint64_t MemAvailable() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("MemAvailable:", 0) == 0) return std::stoull(line.substr(13)) * 1024;
  }
  return kUnknown;
}

std::uint64_t NumberIn(const char* path) {
  std::ifstream file(path);
  std::uint64_t number = 0;
  return file >> number ? number : kUnknown;  // "max" is no number
}

std::uint64_t ControlGroupLeft() {
  const std::uint64_t most = NumberIn("/sys/fs/cgroup/memory.max");
  const std::uint64_t used = NumberIn("/sys/fs/cgroup/memory.current");
  if (most >= kUnknown || used >= kUnknown) return kUnknown;
  std::uint64_t reclaimable = 0;  // page cache counts as used, but is given back on demand
  std::ifstream file("/sys/fs/cgroup/memory.stat");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("inactive_file ", 0) == 0) reclaimable = std::stoull(line.substr(14));
  }
  return most - std::min(most, used - std::min(used, reclaimable));
}

std::uint64_t AddressSpaceUsed() {
  std::uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

std::uint64_t AvailableMemory() {
  std::uint64_t available = std::min(MemAvailable(), ControlGroupLeft());
  struct rlimit limit = {};
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    const std::uint64_t used = AddressSpaceUsed();
    available = std::min(available, limit.rlim_cur - std::min<std::uint64_t>(limit.rlim_cur, used));
  }
  return available;
}

std::uint64_t PeakResidentBytes() {
  struct rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

MemoryCeiling::MemoryCeiling(std::uint64_t extra) {
  const std::uint64_t available = AvailableMemory();
  if (available >= kUnknown || getrlimit(RLIMIT_AS, &old_) != 0) return;
  struct rlimit limit = old_;
  limit.rlim_cur = std::min<rlim_t>(old_.rlim_cur, AddressSpaceUsed() + available + extra);
  active_ = setrlimit(RLIMIT_AS, &limit) == 0;
}

MemoryCeiling::~MemoryCeiling() {
  if (active_) setrlimit(RLIMIT_AS, &old_);
}

}  // namespace coppice::app
