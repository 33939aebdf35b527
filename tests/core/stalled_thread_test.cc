// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "core/stalled_thread.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

namespace coppice {
namespace {

TEST(Sleep, EndsWhenTheWordChangedOrSomebodyWakes) {
  std::atomic<int> word{1};
  Sleep(word, 0);
  std::thread other([&] {
    while (word.load() == 1) Sleep(word, 1);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  word = 2;
  Wake(word);
  other.join();
}

TEST(StallableThread, IsLeftAloneWhenNotAtWork) {
  StallableThread thread;
  EXPECT_FALSE(thread.BringHereIfStalled(true));
  thread.Begin();
  thread.End(true);
  EXPECT_FALSE(thread.BringHereIfStalled(true));
}

#ifdef __linux__

TEST(Sleep, EndsWhenTheTimeIsOver) {
  const std::atomic<int> word{1};
  Sleep(word, 1, std::chrono::microseconds(100));
}

cpu_set_t Allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  return set;
}

void Allow(const cpu_set_t& set) { EXPECT_EQ(sched_setaffinity(0, sizeof(set), &set), 0); }

cpu_set_t Only(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(processor), &set);
  return set;
}

// A thread that is at work on a processor until Finish.
class Worker {
 public:
  enum Kind { kSleeps, kSpins };  // one that sleeps has no processor, like one that lost it

  Worker(Kind kind, int processor, const cpu_set_t& allowed)
      : thread_([this, kind, processor, allowed] {
          Allow(Only(processor));
          Allow(allowed);
          at_work_.Begin();
          for (begun_ = true; !finish_.load();) {
            if (kind == kSleeps) std::this_thread::sleep_for(std::chrono::milliseconds(1));
          }
          worked_on = sched_getcpu();
          at_work_.End(/*go_back=*/true);
          ended_on = sched_getcpu();
          const cpu_set_t now = Allowed();
          is_free = CPU_EQUAL(&now, &allowed) != 0;
        }) {
    while (!begun_.load()) std::this_thread::yield();
  }

  // Whether it came here at the first, second, .. call.
  bool Bring(int calls, bool take_its_place) {
    for (int call = 0; call < calls; ++call) {
      if (!at_work_.BringHereIfStalled(take_its_place)) return true;
    }
    return false;
  }

  void Finish() {
    finish_ = true;
    thread_.join();
  }

  int worked_on = -1;
  int ended_on = -1;
  bool is_free = false;

 private:
  StallableThread at_work_;
  std::atomic<bool> begun_{false};
  std::atomic<bool> finish_{false};
  std::thread thread_;
};

class Moving : public testing::Test {
 protected:
  void SetUp() override {
    for (int i = 0; i < CPU_SETSIZE && there_ < 0; ++i) {
      if (CPU_ISSET(static_cast<unsigned>(i), &all_)) (here_ < 0 ? here_ : there_) = i;
    }
    if (there_ < 0) GTEST_SKIP() << "there is one processor";
    Allow(Only(here_));
  }
  void TearDown() override { Allow(all_); }

  // The system may move a free thread at any time: what must be possible is seen in one of some tries.
  template <typename Try>
  static bool Once(Try attempt) {
    for (int i = 0; i < 20; ++i) {
      if (attempt()) return true;
    }
    return false;
  }

  const cpu_set_t all_ = Allowed();
  int here_ = -1;
  int there_ = -1;
};

TEST_F(Moving, BringsTheStalledAndLetsThemGoBack) {
  EXPECT_TRUE(Once([&] {
    Worker worker(Worker::kSleeps, there_, all_);
    const bool moved = worker.Bring(1000, false);
    worker.Finish();
    EXPECT_TRUE(worker.is_free);
    return moved && worker.worked_on == here_ && worker.ended_on == there_;
  }));
}

TEST_F(Moving, TakesThePlaceThatBecameFree) {
  EXPECT_TRUE(Once([&] {
    Worker worker(Worker::kSleeps, there_, all_);
    Allow(all_);
    const bool moved = worker.Bring(1000, true);
    const int now_on = sched_getcpu();
    const cpu_set_t now = Allowed();
    EXPECT_TRUE(CPU_EQUAL(&now, &all_));
    worker.Finish();
    Allow(Only(here_));
    return moved && now_on == there_;
  }));
}

TEST_F(Moving, LeavesAloneWhoHasAProcessor) {
  EXPECT_TRUE(Once([&] {
    Worker worker(Worker::kSpins, there_, all_);
    const bool moved = worker.Bring(1, false);
    worker.Finish();
    EXPECT_TRUE(worker.is_free);
    return !moved;
  }));
}

TEST_F(Moving, LeavesAloneWhoMustNotComeHere) {
  Worker worker(Worker::kSleeps, there_, Only(there_));
  EXPECT_FALSE(worker.Bring(100, false));
  worker.Finish();
  EXPECT_EQ(worker.worked_on, there_);
  EXPECT_TRUE(worker.is_free);
}

#endif

}  // namespace
}  // namespace coppice
