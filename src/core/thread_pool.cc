// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The library's own threads, for callers that bring none. Workers claim items from an atomic
// counter, so that a thread that loses its core delays one item and not the whole call; between
// calls they spin for a few microseconds and then sleep.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "coppice/executor.h"

namespace coppice {
namespace {

// About 20 microseconds: longer than the gap between two layers, far shorter than a time slice.
constexpr int kSpins = 2000;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable done;
  std::atomic<int> generation{0};
  std::atomic<int> next_item{0};
  std::atomic<int> busy_workers{0};
  std::atomic<bool> stop{false};
  int items = 0;
  const std::function<void(int, int)>* work = nullptr;
  std::vector<std::thread> workers;

  void ClaimItems(int thread) {
    for (int item; (item = next_item.fetch_add(1, std::memory_order_relaxed)) < items;) {
      (*work)(item, thread);
    }
  }

  void WaitForGenerationAfter(int seen) {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (generation.load(std::memory_order_acquire) != seen) return;
      Pause();
    }
    std::unique_lock lock(mutex);
    wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
  }

  void WorkerLoop(int thread) {
    int seen = 0;
    while (true) {
      WaitForGenerationAfter(seen);
      if (stop.load(std::memory_order_acquire)) return;
      ++seen;
      ClaimItems(thread);
      if (busy_workers.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        const std::lock_guard lock(mutex);
        done.notify_one();
      }
    }
  }

  void Announce() {
    {
      const std::lock_guard lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
  }

  void WaitForWorkers() {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (busy_workers.load(std::memory_order_acquire) == 0) return;
      Pause();
    }
    std::unique_lock lock(mutex);
    done.wait(lock, [&] { return busy_workers.load(std::memory_order_acquire) == 0; });
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  for (int thread = 1; thread < threads; ++thread) {
    state_->workers.emplace_back([state = state_.get(), thread] { state->WorkerLoop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true, std::memory_order_release);
  state_->Announce();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::threads() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::Run(int items, const std::function<void(int item, int thread)>& work) {
  if (items <= 0) return;
  if (state_->workers.empty() || items == 1) {
    for (int item = 0; item < items; ++item) work(item, 0);
    return;
  }
  state_->items = items;
  state_->work = &work;
  state_->next_item.store(0, std::memory_order_relaxed);
  state_->busy_workers.store(static_cast<int>(state_->workers.size()), std::memory_order_relaxed);
  state_->Announce();
  state_->ClaimItems(0);
  state_->WaitForWorkers();
}

}  // namespace coppice
