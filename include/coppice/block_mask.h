// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What a selector says and the block-sparse kernel reads: for each selection head and query block,
// the sorted first tokens of the selected key blocks. Sink and window are not listed.
//
//   for (int start : mask.Row(/*head=*/0, /*query_block=*/3)) std::printf("%d ", start);
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace coppice {

// Rows have a fixed capacity so that work items can fill them in any order, in place.
struct BlockMask {
  int block_size = 0;            // keys in a block
  int query_block_size = 0;      // query tokens in a row
  bool shared_by_group = false;  // a selection head is a KV head (true) or a query head
  int heads = 0;
  int query_blocks = 0;
  int capacity = 0;                  // blocks that a row can hold
  std::vector<std::int32_t> starts;  // [heads, query_blocks, capacity], token indices, ascending
  std::vector<std::int32_t> counts;  // [heads, query_blocks]; kEverything: all visible keys

  static constexpr std::int32_t kEverything = -1;  // the budget covers what is visible

  void Resize(int new_heads, int new_query_blocks, int new_capacity) {
    heads = new_heads;
    query_blocks = new_query_blocks;
    capacity = new_capacity;
    const auto rows = static_cast<std::size_t>(heads) * static_cast<std::size_t>(query_blocks);
    starts.resize(rows * static_cast<std::size_t>(capacity));
    counts.assign(rows, 0);
  }
  std::size_t RowIndex(int head, int query_block) const {
    return static_cast<std::size_t>(head) * static_cast<std::size_t>(query_blocks) +
           static_cast<std::size_t>(query_block);
  }
  std::int32_t* RowStarts(int head, int query_block) {
    return starts.data() + RowIndex(head, query_block) * static_cast<std::size_t>(capacity);
  }
  bool Everything(int head, int query_block) const {
    return counts[RowIndex(head, query_block)] == kEverything;
  }
  // Empty when Everything().
  std::span<const std::int32_t> Row(int head, int query_block) const {
    const std::size_t row = RowIndex(head, query_block);
    const std::int32_t count = counts[row] < 0 ? 0 : counts[row];
    return {starts.data() + row * static_cast<std::size_t>(capacity),
            static_cast<std::size_t>(count)};
  }
};

}  // namespace coppice
