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

enum Place : unsigned { kAway = 0, kAtWork = 1, kMoved = 2, kPlaces = 3, kNextBegin = 4 };

}  // namespace

// Another thread may Begin while this is looked at: what was read then is not acted upon.
struct StallableThread::System {
  std::atomic<pid_t> id{0};
  std::atomic<clockid_t> clock{0};
  std::atomic<int> processor{0};  // where it began
  cpu_set_t allowed;              // when it was moved

  // Whether it spends no processor time while the calling thread spends a little.
  bool HasNoProcessor() const {
    timespec before;
    timespec after;
    if (clock_gettime(clock, &before) != 0) return false;
    for (int spin = 0; spin < 200; ++spin) asm volatile("");
    if (clock_gettime(clock, &after) != 0) return false;
    return before.tv_sec == after.tv_sec && before.tv_nsec == after.tv_nsec;
  }
};

StallableThread::StallableThread() : system_(std::make_unique<System>()) {}

void StallableThread::Begin() {
  clockid_t clock = 0;
  pthread_getcpuclockid(pthread_self(), &clock);
  system_->clock = clock;
  system_->id = gettid();
  system_->processor = sched_getcpu();
  const unsigned before = state_.load(std::memory_order_relaxed) & ~kPlaces;
  state_.store(before + kNextBegin + kAtWork, std::memory_order_release);
}

// Waits for nobody: who moves it may have lost his processor to it.
void StallableThread::End(bool go_back) {
  const unsigned state = state_.fetch_and(~kPlaces, std::memory_order_acq_rel);
  if ((state & kPlaces) != kMoved) return;
  if (go_back) Allow(Only(system_->processor));
  Allow(system_->allowed);
}

bool StallableThread::BringTo(int processor, unsigned state) {
  const pid_t id = system_->id;
  cpu_set_t* const allowed = &system_->allowed;
  if (processor < 0 || processor >= CPU_SETSIZE) return false;
  if (sched_getaffinity(id, sizeof(*allowed), allowed) != 0) return false;
  if (!CPU_ISSET(static_cast<unsigned>(processor), allowed)) return false;
  const unsigned moved = state - kAtWork + kMoved;
  if (!state_.compare_exchange_strong(state, moved, std::memory_order_acq_rel)) return false;
  const cpu_set_t only = Only(processor);
  sched_setaffinity(id, sizeof(only), &only);
  // It may have come to its end before it was moved, and freed itself too early.
  if (state_.load(std::memory_order_acquire) != moved) {
    sched_setaffinity(id, sizeof(*allowed), allowed);
  }
  return true;
}

bool StallableThread::BringHereIfStalled(bool take_its_place) {
  if ((state_.load(std::memory_order_relaxed) & kPlaces) != kAtWork) return false;
  if (watched_.exchange(true, std::memory_order_acquire)) return true;
  const unsigned state = state_.load(std::memory_order_acquire);  // now nobody else moves it
  const int its_place = system_->processor;
  const bool moved =
      (state & kPlaces) == kAtWork && system_->HasNoProcessor() && BringTo(sched_getcpu(), state);
  watched_.store(false, std::memory_order_release);
  cpu_set_t own;
  if (moved && take_its_place && its_place >= 0 && its_place < CPU_SETSIZE &&
      sched_getaffinity(0, sizeof(own), &own) == 0 &&
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
bool StallableThread::BringTo(int, unsigned) { return false; }
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
