// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Cache-line aligned memory, and cutting pieces from a scratch area without allocating.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace coppice {

inline constexpr std::size_t kCacheLine = 64;

constexpr std::size_t AlignUp(std::size_t bytes) {
  return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
}

struct FreeDeleter {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using AlignedBytes = std::unique_ptr<std::byte[], FreeDeleter>;

// Null when there is no memory.
inline AlignedBytes AllocateAligned(std::size_t bytes) {
  return AlignedBytes(
      static_cast<std::byte*>(std::aligned_alloc(kCacheLine, AlignUp(bytes == 0 ? 1 : bytes))));
}

// Hands out consecutive aligned arrays. With a null base it only adds up sizes, so that one
// function can both measure and lay out.
class ScratchCutter {
 public:
  explicit ScratchCutter(std::byte* base) : base_(base) {}

  template <typename T>
  T* Take(std::size_t count) {
    std::byte* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += AlignUp(count * sizeof(T));
    return reinterpret_cast<T*>(piece);
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

}  // namespace coppice
