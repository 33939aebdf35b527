// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "mask_reader.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

namespace coppice::door {
namespace {

constexpr std::uint16_t kVisible = 0;
constexpr std::uint16_t kHidden = 0xFC00;

struct Mask {
  Mask(int rows, int keys)
      : rows(rows), keys(keys), values(static_cast<std::size_t>(rows * keys), kHidden) {}
  void Show(int row, int begin, int end, std::uint16_t value = kVisible) {
    for (int k = begin; k < end; ++k) values[static_cast<std::size_t>(row * keys + k)] = value;
  }
  MaskReading Read() const {
    MaskReading reading;
    ReadMask(values.data(), keys * 2, rows, keys, reading);
    return reading;
  }
  int rows;
  int keys;
  std::vector<std::uint16_t> values;
};

void ExpectRange(const KeyRange& range, int begin, int end) {
  EXPECT_EQ(range.begin, begin);
  EXPECT_EQ(range.end, end);
}

TEST(MaskReader, CausalPrefix) {
  Mask mask(5, 1024);
  for (int r = 0; r < 5; ++r) mask.Show(r, 0, 700 + r);
  const MaskReading reading = mask.Read();
  EXPECT_TRUE(reading.ranges);
  EXPECT_TRUE(reading.causal);
  ExpectRange(reading.span, 0, 704);
  ExpectRange(reading.rows[2], 0, 702);
  EXPECT_EQ(reading.most_visible, 704);
}

TEST(MaskReader, CausalFromTheMiddle) {
  Mask mask(3, 512);
  for (int r = 0; r < 3; ++r) mask.Show(r, 301, 302 + r);
  const MaskReading reading = mask.Read();
  EXPECT_TRUE(reading.causal);
  ExpectRange(reading.span, 301, 304);
}

TEST(MaskReader, SlidingWindowIsRanges) {
  Mask mask(4, 600);
  for (int r = 0; r < 4; ++r) mask.Show(r, 100 + r, 300 + r);
  const MaskReading reading = mask.Read();
  EXPECT_TRUE(reading.ranges);
  EXPECT_FALSE(reading.causal);
  EXPECT_EQ(reading.most_visible, 200);
  ExpectRange(reading.span, 100, 303);
}

TEST(MaskReader, NotCausalWhenRowsSeeTheSame) {
  Mask mask(2, 300);
  for (int r = 0; r < 2; ++r) mask.Show(r, 0, 10);
  EXPECT_TRUE(mask.Read().ranges);
  EXPECT_FALSE(mask.Read().causal);
}

TEST(MaskReader, HolesAreNoRange) {
  for (const int hole : {1, 255, 256, 257, 511, 698}) {
    Mask mask(1, 1000);
    mask.Show(0, 0, 700);
    mask.Show(0, hole, hole + 1, kHidden);
    const MaskReading reading = mask.Read();
    EXPECT_FALSE(reading.ranges) << hole;
    EXPECT_FALSE(reading.causal) << hole;
    EXPECT_EQ(reading.most_visible, 699) << hole;
    ExpectRange(reading.span, 0, 700);
  }
}

TEST(MaskReader, OtherValuesAreNoRange) {
  for (const std::uint16_t value : {0x8000, 0xBC00, 0x7E00}) {  // -0, -1, NaN
    Mask mask(1, 400);
    mask.Show(0, 0, 300);
    mask.Show(0, 40, 41, value);
    EXPECT_FALSE(mask.Read().ranges);
    EXPECT_EQ(mask.Read().most_visible, 300);
    mask.Show(0, 40, 41, kVisible);
    mask.Show(0, 0, 1, value);
    EXPECT_FALSE(mask.Read().ranges);
  }
}

TEST(MaskReader, HiddenRows) {
  Mask mask(3, 50);
  mask.Show(1, 3, 9);
  const MaskReading reading = mask.Read();
  EXPECT_TRUE(reading.ranges);
  EXPECT_FALSE(reading.causal);
  ExpectRange(reading.rows[0], 0, 0);
  ExpectRange(reading.span, 3, 9);
  ExpectRange(Mask(2, 50).Read().span, 0, 0);
  EXPECT_FALSE(Mask(2, 50).Read().causal);
}

TEST(MaskReader, AgreesWithTheObviousLoop) {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    const int keys = 1 + static_cast<int>(random() % 900);
    Mask mask(1, keys);
    const int begin = static_cast<int>(random() % static_cast<unsigned>(keys));
    const int end = begin + static_cast<int>(random() % static_cast<unsigned>(keys - begin + 1));
    mask.Show(0, begin, end);
    const bool hole = end - begin > 2 && round % 2 == 0;
    if (hole) mask.Show(0, begin + 1, begin + 2, kHidden);
    const MaskReading reading = mask.Read();
    EXPECT_EQ(reading.ranges, !hole);
    ExpectRange(reading.rows[0], end > begin ? begin : 0, end > begin ? end : 0);
    EXPECT_EQ(reading.most_visible, end - begin - (hole ? 1 : 0));
  }
}

TEST(MaskReader, ReadsALongMaskAtMemorySpeed) {
  Mask mask(512, 1 << 17);
  for (int r = 0; r < mask.rows; ++r) mask.Show(r, 0, 130000 + r);
  MaskReading reading;
  double best = 1;
  for (int i = 0; i < 3; ++i) {
    const auto start = std::chrono::steady_clock::now();
    ReadMask(mask.values.data(), mask.keys * 2, mask.rows, mask.keys, reading);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  EXPECT_TRUE(reading.causal);
  RecordProperty("milliseconds", std::to_string(1000 * best));
}

}  // namespace
}  // namespace coppice::door
