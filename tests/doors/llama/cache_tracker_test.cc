// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "cache_tracker.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace coppice::door {
namespace {

const int kGlobalList = 0;  // their addresses are the identities of lists of cells
const int kSlidingList = 0;

void Write(CacheTracker& tracker, int layer, const void* list, std::int64_t cache_cells,
           const std::vector<std::int64_t>& cells) {
  tracker.OnWrite(layer, cache_cells, list, cells);
}

TEST(CacheTracker, LayersWithOneListShareACache) {
  CacheTracker tracker(0);
  Write(tracker, 0, &kSlidingList, 512, {0, 1});
  Write(tracker, 1, &kGlobalList, 4096, {5, 6});
  Write(tracker, 2, &kSlidingList, 512, {0, 1});
  EXPECT_EQ(tracker.Find(0), tracker.Find(2));
  EXPECT_NE(tracker.Find(0), tracker.Find(1));
  EXPECT_EQ(tracker.Find(3), nullptr);
  EXPECT_EQ(tracker.batch(), 1U);
}

TEST(CacheTracker, ABatchBeginsWithTheFirstLayer) {
  CacheTracker tracker(0);
  for (int batch = 1; batch <= 3; ++batch) {
    Write(tracker, 2, &kGlobalList, 64, {batch});
    Write(tracker, 5, &kGlobalList, 64, {batch});
    EXPECT_EQ(tracker.batch(), static_cast<std::uint64_t>(batch));
  }
}

TEST(CacheTracker, EachBatchIsWrittenOnce) {
  CacheTracker tracker(0);
  Write(tracker, 0, &kGlobalList, 64, {0, 1, 2, 3});
  Write(tracker, 1, &kGlobalList, 64, {0, 1, 2, 3});
  EXPECT_TRUE(tracker.Find(0)->order().Ordered(0, 4));
  Write(tracker, 0, &kGlobalList, 64, {1});  // the list of the next batch, at the same address
  Write(tracker, 1, &kGlobalList, 64, {1});
  EXPECT_FALSE(tracker.Find(1)->order().Ordered(0, 4));
}

TEST(CacheTracker, ChangesAreCounted) {
  CacheTracker tracker(0);
  tracker.OnChange(0);
  Write(tracker, 0, &kGlobalList, 64, {0});
  EXPECT_EQ(tracker.Find(0)->changes(), 0U);
  tracker.OnChange(0);
  EXPECT_EQ(tracker.Find(0)->changes(), 1U);
}

void ShowMask(CacheState& cache, int visible, std::uint64_t batch) {
  std::vector<std::uint16_t> mask(128, 0xFC00);
  for (int i = 0; i < visible; ++i) mask[static_cast<std::size_t>(i)] = 0;
  EXPECT_EQ(cache.Mask(mask.data(), 256, 1, 128, batch).most_visible, visible);
}

TEST(CacheTracker, AKnownWindowHoldsUntilARowSeesMore) {
  CacheTracker tracker(32);
  Write(tracker, 0, &kGlobalList, 64, {0});
  CacheState& cache = *tracker.Find(0);
  EXPECT_TRUE(tracker.MayBeWindowed(cache));
  ShowMask(cache, 32, 1);
  EXPECT_TRUE(tracker.MayBeWindowed(cache));
  ShowMask(cache, 33, 2);
  EXPECT_FALSE(tracker.MayBeWindowed(cache));
  ShowMask(cache, 2, 3);
  EXPECT_FALSE(tracker.MayBeWindowed(cache));
}

TEST(CacheTracker, WithoutWindowNothingIsWindowed) {
  CacheTracker tracker(0);
  Write(tracker, 0, &kSlidingList, 64, {0});
  Write(tracker, 1, &kGlobalList, 128, {0});
  EXPECT_FALSE(tracker.MayBeWindowed(*tracker.Find(0)));
}

TEST(CacheState, ReadsAMaskOncePerBatch) {
  CacheState cache(64);
  std::vector<std::uint16_t> first(64, 0);
  std::vector<std::uint16_t> second(64, 0xFC00);
  const MaskReading& one = cache.Mask(first.data(), 128, 1, 64, 1);
  const MaskReading& two = cache.Mask(second.data(), 128, 1, 64, 1);
  EXPECT_EQ(one.most_visible, 64);
  EXPECT_EQ(two.most_visible, 0);
  first[0] = 0xFC00;
  EXPECT_EQ(cache.Mask(first.data(), 128, 1, 64, 1).most_visible, 64);
  EXPECT_EQ(cache.Mask(first.data(), 128, 1, 64, 2).most_visible, 63);
}

}  // namespace
}  // namespace coppice::door
