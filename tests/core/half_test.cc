// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "core/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace coppice {
namespace {

TEST(Half, EveryF16ComesBack) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = F32FromF16(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(F32FromF16(F16FromF32(value)))) << bits;
    } else {
      EXPECT_EQ(F16FromF32(value), bits);
    }
  }
}

TEST(Half, F16HasItsKnownValues) {
  EXPECT_EQ(F32FromF16(0x3C00), 1.0f);
  EXPECT_EQ(F32FromF16(0xC000), -2.0f);
  EXPECT_EQ(F32FromF16(0x7BFF), 65504.0f);
  EXPECT_EQ(F32FromF16(0x0001), 0x1p-24f);
  EXPECT_EQ(F32FromF16(0x0400), 0x1p-14f);
  EXPECT_EQ(F32FromF16(0x7C00), std::numeric_limits<float>::infinity());
}

TEST(Half, F16RoundsToNearestEven) {
  EXPECT_EQ(F16FromF32(1.0f + 0x1p-11f), 0x3C00);      // half way, down to even
  EXPECT_EQ(F16FromF32(1.0f + 3 * 0x1p-11f), 0x3C02);  // half way, up to even
  EXPECT_EQ(F16FromF32(1.0f + 0x1p-11f + 0x1p-20f), 0x3C01);
  EXPECT_EQ(F16FromF32(65519.9f), 0x7BFF);
  EXPECT_EQ(F16FromF32(65520.0f), 0x7C00);
  EXPECT_EQ(F16FromF32(0x1p-25f), 0x0000);
  EXPECT_EQ(F16FromF32(1.5f * 0x1p-24f), 0x0002);
}

TEST(Half, EveryBf16ComesBackAndRoundsToNearestEven) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = F32FromBf16(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(F32FromBf16(Bf16FromF32(value)))) << bits;
    } else {
      EXPECT_EQ(Bf16FromF32(value), bits);
    }
  }
  EXPECT_EQ(Bf16FromF32(1.0f + 0x1p-8f), 0x3F80);
  EXPECT_EQ(Bf16FromF32(1.0f + 3 * 0x1p-8f), 0x3F82);
}

}  // namespace
}  // namespace coppice
