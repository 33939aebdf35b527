// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "cell_order.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace coppice::door {
namespace {

std::vector<std::int64_t> Cells(std::int64_t begin, std::int64_t end) {
  std::vector<std::int64_t> cells(static_cast<std::size_t>(end - begin));
  std::iota(cells.begin(), cells.end(), begin);
  return cells;
}

TEST(CellOrder, AppendingKeepsOrder) {
  CellOrder order(100);
  order.Write(Cells(0, 40));
  EXPECT_TRUE(order.Ordered(0, 40));
  order.Write(Cells(40, 41));
  EXPECT_TRUE(order.Ordered(0, 41));
}

TEST(CellOrder, OneRefilledCellBreaksIt) {
  CellOrder order(100);
  order.Write(Cells(0, 40));
  order.Write(Cells(20, 21));
  EXPECT_FALSE(order.Ordered(0, 40));
  EXPECT_TRUE(order.Ordered(0, 21));
  EXPECT_TRUE(order.Ordered(21, 40));
  EXPECT_FALSE(order.Ordered(20, 22));
}

TEST(CellOrder, TruncatingAndWritingAnewKeepsIt) {
  CellOrder order(100);
  order.Write(Cells(0, 80));
  order.Write(Cells(30, 50));  // the tail was removed first
  EXPECT_TRUE(order.Ordered(0, 50));
  EXPECT_FALSE(order.Ordered(0, 51));
}

TEST(CellOrder, UnknownCellsAreOldest) {
  CellOrder order(100);
  EXPECT_TRUE(order.Ordered(0, 100));
  order.Write(Cells(50, 60));
  EXPECT_TRUE(order.Ordered(0, 60));
  EXPECT_FALSE(order.Ordered(0, 61));
}

TEST(CellOrder, NumbersOutsideAreIgnored) {
  CellOrder order(4);
  const std::vector<std::int64_t> cells = {-1, 0, 3, 4, 1000};
  order.Write(cells);
  EXPECT_TRUE(order.Ordered(3, 4));
}

TEST(CellOrder, AgreesWithTheObviousLoop) {
  std::mt19937 random(9);
  for (int round = 0; round < 50; ++round) {
    CellOrder order(64);
    std::vector<int> stamps(64, 0);
    for (int clock = 1; clock < 120; ++clock) {
      const auto cell = static_cast<std::int64_t>(clock < 40 ? clock : random() % 64);
      order.Write({&cell, 1});
      stamps[static_cast<std::size_t>(cell)] = clock;
      const std::size_t begin = random() % 64;
      const std::size_t end = begin + random() % (65 - begin);
      bool ordered = true;
      for (std::size_t i = begin; i + 1 < end; ++i) ordered = ordered && stamps[i] <= stamps[i + 1];
      EXPECT_EQ(order.Ordered(static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end)),
                ordered);
    }
  }
}

}  // namespace
}  // namespace coppice::door
