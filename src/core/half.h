// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Scalar conversion of the 2-byte float types. Kernels convert whole vectors themselves.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace coppice {

inline float F32FromBf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Rounds to nearest even; NaN stays NaN.
inline std::uint16_t Bf16FromF32(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (value != value) return static_cast<std::uint16_t>((bits >> 16) | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline float F32FromF16(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16;
  const std::uint32_t magnitude = bits & 0x7FFF;
  if (magnitude >= 0x7C00) {  // inf, NaN
    return std::bit_cast<float>(sign | 0x7F800000 | ((magnitude & 0x3FF) << 13));
  }
  // Reading the bits as an f32 with a too small exponent and multiplying by 2^112 puts normal and
  // denormal numbers right alike.
  const float value = std::bit_cast<float>(magnitude << 13) * std::bit_cast<float>(0x77800000u);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
}

// Rounds to nearest even; overflow gives inf, NaN stays NaN.
inline std::uint16_t F16FromF32(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000);
  const float magnitude = std::bit_cast<float>(bits & 0x7FFFFFFF);
  if (!(magnitude < 65520.0f)) {
    return static_cast<std::uint16_t>(sign | (value != value ? 0x7E00 : 0x7C00));
  }
  if (magnitude < 0x1p-14f) {  // denormal in f16: the spacing is 2^-24
    return static_cast<std::uint16_t>(
        sign | static_cast<std::uint16_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const std::uint32_t rounded = (bits & 0x7FFFFFFF) + 0xFFF + ((bits >> 13) & 1);
  return static_cast<std::uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

}  // namespace coppice
