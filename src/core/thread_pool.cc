// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The library's own threads, for callers that bring none. Workers claim items from an atomic
// counter, so that a thread that loses its core delays one item and not the whole call; between
// calls they spin for a few microseconds and then sleep.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "coppice/executor.h"
#include "core/stalled_thread.h"

namespace coppice {
namespace {

// About 20 microseconds: longer than the gap between two layers, far shorter than a time slice.
constexpr int kSpins = 2000;
// Between two looks at the threads that others wait for: longer than an item mostly takes.
constexpr std::chrono::microseconds kPatience{100};

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

struct ThreadPool::State {
  // Open while a run may be joined; the other bits count the workers in it. Closed with workers in
  // it, the caller waits for them, and for nobody that the system has not woken yet.
  static constexpr int kOpen = 1 << 30;

  std::atomic<int> generation{0};
  std::atomic<int> next_item{0};
  std::atomic<int> gate{0};
  std::atomic<bool> stop{false};
  int items = 0;
  const std::function<void(int, int)>* work = nullptr;
  std::vector<std::thread> workers;
  std::vector<StallableThread> threads;  // the caller's first

  explicit State(int count) : threads(static_cast<std::size_t>(count)) {}
  ~State() {
    stop.store(true, std::memory_order_release);
    Announce();
    for (std::thread& worker : workers) worker.join();
  }

  void ClaimItems(int thread) {
    for (int item; (item = next_item.fetch_add(1, std::memory_order_relaxed)) < items;) {
      (*work)(item, thread);
    }
  }

  bool Join() {
    int joined = gate.load(std::memory_order_relaxed);
    while ((joined & kOpen) != 0) {
      if (gate.compare_exchange_weak(joined, joined + 1, std::memory_order_acquire)) return true;
    }
    return false;
  }

  void Leave() {
    if (gate.fetch_sub(1, std::memory_order_acq_rel) == 1) Wake(gate);
  }

  // Until ready(word): spins, then sleeps, now and then with an eye on the threads at work. A worker
  // trades places with one that is stalled; the caller, who must go on, only makes room for it.
  template <typename Ready>
  void Wait(const std::atomic<int>& word, bool worker, Ready ready) {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (ready(word.load(std::memory_order_acquire))) return;
      Pause();
    }
    for (int seen; !ready(seen = word.load(std::memory_order_acquire));) {
      BringStalledThreads(worker) ? Sleep(word, seen, kPatience) : Sleep(word, seen);
    }
  }

  // Returns whether to look again later. A caller that waits for workers needs no processor.
  bool BringStalledThreads(bool take_their_place) {
    const int joined = gate.load(std::memory_order_acquire);
    const bool caller_sleeps = joined != 0 && (joined & kOpen) == 0;
    bool at_work = caller_sleeps;
    for (StallableThread& thread : threads) {
      if (caller_sleeps && &thread == &threads[0]) continue;
      at_work |= thread.BringHereIfStalled(take_their_place);
    }
    return at_work;
  }

  void WorkerLoop(int thread) {
    StallableThread& self = threads[static_cast<std::size_t>(thread)];
    for (int seen = 0; !stop.load(std::memory_order_acquire);) {
      Wait(generation, true, [&](int now) { return now != seen; });
      seen = generation.load(std::memory_order_acquire);
      self.Begin();
      if (Join()) {
        ClaimItems(thread);
        Leave();
      }
      self.End(/*go_back=*/true);
    }
  }

  void Announce() {
    generation.fetch_add(1, std::memory_order_release);
    Wake(generation);
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>(std::max(1, threads))) {
  for (int thread = 1; thread < threads; ++thread) {
    state_->workers.emplace_back([state = state_.get(), thread] { state->WorkerLoop(thread); });
  }
}

ThreadPool::~ThreadPool() = default;

int ThreadPool::threads() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::Run(int items, const std::function<void(int item, int thread)>& work) {
  if (items <= 0) return;
  if (state_->workers.empty() || items == 1) {
    for (int item = 0; item < items; ++item) work(item, 0);
    return;
  }
  StallableThread& self = state_->threads[0];
  self.Begin();
  state_->items = items;
  state_->work = &work;
  state_->next_item.store(0, std::memory_order_relaxed);
  state_->gate.store(State::kOpen, std::memory_order_release);
  state_->Announce();
  state_->ClaimItems(0);
  state_->gate.fetch_and(~State::kOpen, std::memory_order_acq_rel);
  state_->Wait(state_->gate, false, [](int joined) { return joined == 0; });
  self.End(/*go_back=*/false);
}

}  // namespace coppice
