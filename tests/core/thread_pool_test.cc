// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "coppice/executor.h"

namespace coppice {
namespace {

TEST(ThreadPool, RunsEachItemOnceOnAKnownThread) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.threads(), threads);
    for (const int items : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(items));
      std::atomic<bool> known{true};
      pool.Run(items, [&](int item, int thread) {
        runs[static_cast<std::size_t>(item)].fetch_add(1);
        if (thread < 0 || thread >= threads) known = false;
      });
      for (const std::atomic<int>& run : runs) EXPECT_EQ(run.load(), 1);
      EXPECT_TRUE(known);
    }
  }
}

TEST(ThreadPool, NoTwoItemsShareAThreadNumberAtOneTime) {
  ThreadPool pool(4);
  std::atomic<int> inside[4] = {};
  std::atomic<bool> clash{false};
  for (int round = 0; round < 200; ++round) {
    pool.Run(16, [&](int, int thread) {
      if (inside[thread].fetch_add(1) != 0) clash = true;
      inside[thread].fetch_sub(1);
    });
  }
  EXPECT_FALSE(clash);
}

// What an item wrote is visible after Run, and workers wake after they went to sleep.
TEST(ThreadPool, SleepsBetweenRunsAndPublishesResults) {
  ThreadPool pool(2);
  std::vector<int> plain(64);
  for (int round = 1; round <= 20; ++round) {
    if (round % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    pool.Run(64, [&](int item, int) { plain[static_cast<std::size_t>(item)] = round; });
    for (const int value : plain) ASSERT_EQ(value, round);
  }
}

TEST(ThreadPool, StopsWithoutEverHavingRun) { const ThreadPool pool(3); }

}  // namespace
}  // namespace coppice
