// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Who runs the work items of a plan. The library starts no thread that it was not asked for: hand
// it your own threads by calling RunItem yourself, or use the pool below.
//
//   coppice::ThreadPool pool(4);
//   pool.Run(items, [&](int item, int thread) { attention.RunItem(item, thread); });
#pragma once

#include <functional>
#include <memory>

namespace coppice {

// Threads that claim items from a shared counter and sleep when there is no work. The calling
// thread works too, as thread 0.
class ThreadPool {
 public:
  // Throws std::system_error where the system starts no more threads.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Calls work(item, thread) once for each item in [0, items), thread in [0, threads()), and
  // returns when all are done. One caller at a time. On Linux a thread, the caller's too, that
  // another process has put off its processor may be moved to one that a thread of the pool no
  // longer needs; which processors it may run on is as before when Run returns.
  void Run(int items, const std::function<void(int item, int thread)>& work);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace coppice
