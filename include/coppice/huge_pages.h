// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// A KV cache is read from end to end for each decoded token. In pages of 4 KiB the processor has to
// look up another page at every few rows; huge pages take that away (Zen 4, decode of 32/8 heads x
// 128 over 64 Ki keys: 18.6 GB/s against 16.5). The door into llama.cpp does this by itself.
//
//   coppice::PreferHugePages(cache, cache_bytes);                // all of it now
//
//   coppice::GrowingHugePages pages;                             // or as it fills
//   pages.Reach(cache, cache + tokens_so_far * bytes_per_token);
#pragma once

#include <cstddef>

namespace coppice {

// Moves what lies in [data, data + bytes) into huge pages, as far as it fills whole ones of 2 MiB.
// Contents and addresses stay; others may read and write meanwhile. What is there is copied once. A
// wish: where the system has none to give (not Linux, or older than 6.1), nothing changes.
void PreferHugePages(const void* data, std::size_t bytes);

// The same for memory that is filled from front to back: each call takes up what has been added since
// the one before.
class GrowingHugePages {
 public:
  // [begin, end) is in use. Another begin starts anew; an earlier end changes nothing.
  void Reach(const std::byte* begin, const std::byte* end);

 private:
  const std::byte* begin_ = nullptr;
  const std::byte* done_ = nullptr;
};

}  // namespace coppice
