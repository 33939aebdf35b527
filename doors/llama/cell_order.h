// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Do the cells of a KV cache hold their keys in the order in which they came? Cells that were freed
// are used again, so a range without holes may still be shuffled: pruning, which takes neighbours
// in memory for neighbours in the text, must not touch it.
// Knows only cell numbers; cache_tracker.cc feeds it.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <vector>

namespace coppice::door {

// Each write stamps its cell. A cell that is older than the one before it is a descent, and a range
// is in order when it has none. A write touches two neighbours, so a decoding step costs O(log n)
// whatever the length of the cache. Cells never seen written (a restored state) count as older than
// all others and as ordered among themselves; that may be wrong when the saved cache was shuffled.
class CellOrder {
 public:
  explicit CellOrder(std::int64_t cells) : stamps_(static_cast<std::size_t>(cells), 0) {}

  // In the order of the tokens. Numbers outside the cache are ignored.
  void Write(std::span<const std::int64_t> cells);

  bool Ordered(std::int64_t begin, std::int64_t end) const;

  std::int64_t cells() const { return static_cast<std::int64_t>(stamps_.size()); }

 private:
  void Compare(std::int64_t cell);

  std::vector<std::int64_t> stamps_;
  std::set<std::int64_t> descents_;  // cells whose right neighbour is older
  std::int64_t clock_ = 0;
};

}  // namespace coppice::door
