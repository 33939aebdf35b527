// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

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

#ifdef __linux__

// Threads that lose their processor are moved about; afterwards nobody is bound to one.
TEST(ThreadPool, BesideBusyThreadsAllIsDoneAndNobodyStaysBound) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  const auto is_free = [&before] {
    cpu_set_t now;
    return sched_getaffinity(0, sizeof(now), &now) == 0 && CPU_EQUAL(&now, &before);
  };
  std::atomic<bool> stop{false};
  std::vector<std::thread> busy;
  for (int i = 0; i < 2; ++i) {
    busy.emplace_back([&] {
      while (!stop.load()) {
      }
    });
  }
  ThreadPool pool(4);
  std::atomic<int> done{0};
  constexpr int kRounds = 200;
  for (int round = 0; round < kRounds; ++round) {
    pool.Run(8, [&](int item, int) {
      if (item % 4 == 3) std::this_thread::sleep_for(std::chrono::microseconds(200));
      done.fetch_add(1);
    });
  }
  EXPECT_EQ(done.load(), kRounds * 8);
  stop = true;
  for (std::thread& thread : busy) thread.join();
  EXPECT_TRUE(is_free());
  std::atomic<int> bound{0};
  pool.Run(64, [&](int, int) {
    if (!is_free()) bound.fetch_add(1);
  });
  EXPECT_EQ(bound.load(), 0);
}

#endif

}  // namespace
}  // namespace coppice
