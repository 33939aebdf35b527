// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Reads llama.cpp's attention mask: which cells of the KV cache may each token see? The mask is all
// that attention is told about causality, sequences and sliding windows.
// Does not know tensors or caches. Called once for each mask and batch by door.cc.
#pragma once

#include <cstdint>
#include <vector>

#include "coppice/attention.h"

namespace coppice::door {

struct MaskReading {
  std::vector<KeyRange> rows;  // from the first visible key to the last; {0, 0} where there is none
  KeyRange span;               // all rows together; {0, 0} when nothing is visible
  std::int32_t most_visible = 0;  // keys of the row that sees the most
  bool ranges = false;  // every row sees all of its range, with nothing but 0 added to its scores
  bool causal = false;  // ranges, all with one begin, each one key longer than the row before
};

// mask: f16 [rows, keys], rows `row_stride` bytes apart; 0 is visible, -inf is not, and any other
// value makes the row no range. Reads every value once: 128 MiB (512 x 131072) in 13 ms on a
// 2.8 GHz Xeon core. `reading` is overwritten, its memory reused.
void ReadMask(const void* mask, std::int64_t row_stride, std::int32_t rows, std::int32_t keys,
              MaskReading& reading);

}  // namespace coppice::door
