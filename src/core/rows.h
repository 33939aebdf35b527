// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Rows of any type, one element at a time: what is plain rather than fast reads and writes them
// with these. Kernels convert whole vectors themselves.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "coppice/tensor.h"
#include "core/half.h"

namespace coppice {

// Element i of a row.
inline float LoadElement(const std::byte* row, DType type, std::int64_t i) {
  float wide = 0;
  std::uint16_t half = 0;
  switch (type) {
    case DType::kF32:
      std::memcpy(&wide, row + 4 * i, 4);
      return wide;
    case DType::kF16:
      std::memcpy(&half, row + 2 * i, 2);
      return F32FromF16(half);
    case DType::kBF16:
      std::memcpy(&half, row + 2 * i, 2);
      return F32FromBf16(half);
    case DType::kQ8_0:
      break;
  }
  const std::byte* block = row + i / kQ8BlockSize * kQ8BlockBytes;
  std::memcpy(&half, block, 2);
  return F32FromF16(half) *
         static_cast<float>(static_cast<std::int8_t>(block[2 + i % kQ8BlockSize]));
}

// Rounds `dim` numbers into a row: to nearest even, and for q8_0 to the grid whose step is the
// block's largest magnitude / 127.
inline void StoreRow(const float* values, DType type, std::int64_t dim, std::byte* row) {
  if (type == DType::kQ8_0) {
    for (std::int64_t at = 0; at < dim; at += kQ8BlockSize, row += kQ8BlockBytes) {
      float largest = 0;
      for (int i = 0; i < kQ8BlockSize; ++i) largest = std::max(largest, std::abs(values[at + i]));
      const std::uint16_t scale = F16FromF32(largest / 127);
      std::memcpy(row, &scale, 2);
      const float inverse = largest == 0 ? 0 : 127 / largest;
      for (int i = 0; i < kQ8BlockSize; ++i) {
        row[2 + i] =
            static_cast<std::byte>(static_cast<std::int8_t>(std::lround(values[at + i] * inverse)));
      }
    }
    return;
  }
  for (std::int64_t i = 0; i < dim; ++i) {
    if (type == DType::kF32) {
      std::memcpy(row + 4 * i, &values[i], 4);
    } else {
      const std::uint16_t half =
          type == DType::kF16 ? F16FromF32(values[i]) : Bf16FromF32(values[i]);
      std::memcpy(row + 2 * i, &half, 2);
    }
  }
}

}  // namespace coppice
