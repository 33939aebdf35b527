// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "core/stalled_thread.h"

#ifdef __linux__
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>
#endif

namespace coppice {

#ifdef __linux__

namespace {

cpu_set_t Only(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(processor), &set);
  return set;
}

void Allow(const cpu_set_t& processors) { sched_setaffinity(0, sizeof(processors), &processors); }

}  // namespace

struct StallableThread::System {
  pid_t id = 0;
  clockid_t clock = 0;
  int processor = 0;  // where it began
  cpu_set_t allowed;  // when it was moved

  // Whether it spends no processor time while the calling thread spends a little.
  bool HasNoProcessor() const {
    timespec before;
    timespec after;
    if (clock_gettime(clock, &before) != 0) return false;
    for (int spin = 0; spin < 200; ++spin) asm volatile("");
    if (clock_gettime(clock, &after) != 0) return false;
    return before.tv_sec == after.tv_sec && before.tv_nsec == after.tv_nsec;
  }

  bool BringTo(int here) {
    if (here < 0 || here >= CPU_SETSIZE || processor < 0 || processor >= CPU_SETSIZE) return false;
    if (sched_getaffinity(id, sizeof(allowed), &allowed) != 0) return false;
    if (!CPU_ISSET(static_cast<unsigned>(here), &allowed)) return false;
    const cpu_set_t only = Only(here);
    return sched_setaffinity(id, sizeof(only), &only) == 0;
  }
};

StallableThread::StallableThread() : system_(std::make_unique<System>()) {}

void StallableThread::Begin() {
  system_->id = gettid();
  system_->processor = sched_getcpu();
  pthread_getcpuclockid(pthread_self(), &system_->clock);
  place_.store(Place::kAtWork, std::memory_order_release);
}

void StallableThread::End(bool go_back) {
  for (Place place = Place::kAtWork;; place = Place::kAtWork) {
    if (place_.compare_exchange_strong(place, Place::kAway, std::memory_order_acq_rel)) return;
    if (place == Place::kMoved) break;
    sched_yield();  // whoever watches may be waiting for this processor
  }
  if (go_back) Allow(Only(system_->processor));
  Allow(system_->allowed);
  place_.store(Place::kAway, std::memory_order_release);
}

bool StallableThread::BringHereIfStalled(bool take_its_place) {
  Place place = Place::kAtWork;
  if (!place_.compare_exchange_strong(place, Place::kWatched, std::memory_order_acq_rel)) {
    return place == Place::kWatched;
  }
  const int its_place = system_->processor;
  const bool moved = system_->HasNoProcessor() && system_->BringTo(sched_getcpu());
  place_.store(moved ? Place::kMoved : Place::kAtWork, std::memory_order_release);
  cpu_set_t own;
  if (moved && take_its_place && sched_getaffinity(0, sizeof(own), &own) == 0 &&
      CPU_ISSET(static_cast<unsigned>(its_place), &own)) {
    Allow(Only(its_place));
    Allow(own);
  }
  return !moved;
}

namespace {

// An atomic int is a plain one in memory, as the system call wants it.
static_assert(sizeof(std::atomic<int>) == sizeof(int) && std::atomic<int>::is_always_lock_free);

void WaitForWord(const std::atomic<int>& word, int seen, const timespec* limit) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, limit, nullptr, 0);
}

}  // namespace

void Sleep(const std::atomic<int>& word, int seen, std::chrono::microseconds limit) {
  const timespec time = {.tv_sec = 0, .tv_nsec = limit.count() * 1000};
  WaitForWord(word, seen, &time);
}
void Sleep(const std::atomic<int>& word, int seen) { WaitForWord(word, seen, nullptr); }
void Wake(std::atomic<int>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

#else

struct StallableThread::System {};
StallableThread::StallableThread() = default;
void StallableThread::Begin() {}
void StallableThread::End(bool) {}
bool StallableThread::BringHereIfStalled(bool) { return false; }

void Sleep(const std::atomic<int>& word, int seen, std::chrono::microseconds) { word.wait(seen); }
void Sleep(const std::atomic<int>& word, int seen) { word.wait(seen); }
void Wake(std::atomic<int>& word) { word.notify_all(); }

#endif

StallableThread::~StallableThread() = default;

}  // namespace coppice
