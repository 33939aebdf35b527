// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "mask_reader.h"

#include <algorithm>
#include <cstddef>

namespace coppice::door {
namespace {

constexpr std::uint16_t kVisible = 0x0000;  // f16 0
constexpr std::uint16_t kHidden = 0xFC00;   // f16 -inf

// The first index in [begin, end) whose value is not `value`, or end. Whole blocks are compared
// without a branch, which compilers turn into vector code.
std::int32_t SkipEqual(const std::uint16_t* row, std::int32_t begin, std::int32_t end,
                       std::uint16_t value) {
  constexpr std::int32_t kBlock = 256;
  std::int32_t i = begin;
  for (; i + kBlock <= end; i += kBlock) {
    std::uint16_t differs = 0;
    for (std::int32_t j = 0; j < kBlock; ++j) {
      differs = static_cast<std::uint16_t>(differs | (row[i + j] ^ value));
    }
    if (differs != 0) break;
  }
  while (i < end && row[i] == value) ++i;
  return i;
}

struct RowReading {
  KeyRange range;
  std::int32_t visible = 0;
  bool whole = true;  // one range of zeros
};

RowReading ReadRow(const std::uint16_t* row, std::int32_t keys) {
  const std::int32_t begin = SkipEqual(row, 0, keys, kHidden);
  if (begin == keys) return {};
  const std::int32_t end = SkipEqual(row, begin, keys, kVisible);
  if (end > begin && SkipEqual(row, end, keys, kHidden) == keys) {
    return {{begin, end}, end - begin, true};
  }
  std::int32_t last = keys;
  while (row[last - 1] == kHidden) --last;
  const auto hidden = std::count(row + begin, row + last, kHidden);
  return {{begin, last}, last - begin - static_cast<std::int32_t>(hidden), false};
}

}  // namespace

void ReadMask(const void* mask, std::int64_t row_stride, std::int32_t rows, std::int32_t keys,
              MaskReading& reading) {
  reading.rows.resize(static_cast<std::size_t>(rows));
  reading.span = {keys, 0};
  reading.most_visible = 0;
  reading.ranges = true;
  reading.causal = rows > 0;
  KeyRange previous;
  for (std::int32_t r = 0; r < rows; ++r) {
    const auto* row = reinterpret_cast<const std::uint16_t*>(static_cast<const std::byte*>(mask) +
                                                             r * row_stride);
    const RowReading read = ReadRow(row, keys);
    reading.rows[static_cast<std::size_t>(r)] = read.range;
    reading.ranges = reading.ranges && read.whole;
    reading.most_visible = std::max(reading.most_visible, read.visible);
    reading.causal =
        reading.causal && read.visible > 0 &&
        (r == 0 || (read.range.begin == previous.begin && read.range.end == previous.end + 1));
    previous = read.range;
    if (read.visible == 0) continue;
    reading.span.begin = std::min(reading.span.begin, read.range.begin);
    reading.span.end = std::max(reading.span.end, read.range.end);
  }
  if (reading.span.end == 0) reading.span = {0, 0};
  reading.causal = reading.causal && reading.ranges;
}

}  // namespace coppice::door
