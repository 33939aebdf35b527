// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// A thread that lost its processor to another process sits on its item until the scheduler's next
// tick, up to 4 ms where it ticks 250 times a second, while the threads beside it are done and wait.
// They can do better than wait: give it the processor that they no longer need.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>

namespace coppice {

class StallableThread {
 public:
  StallableThread();
  ~StallableThread();

  // By the thread itself, around its work. A thread that was moved and has a place of its own goes
  // back to it; one that is the user's stays where it is.
  void Begin();
  void End(bool go_back);

  // By a thread that has nothing left to do and is about to sleep: if this one is at work but has no
  // processor, moves it to the calling thread's, which takes the place that became free if asked to.
  // Does nothing where the two may not share a processor, or the system is not Linux. Returns whether
  // it is worth asking again later.
  bool BringHereIfStalled(bool take_its_place);

 private:
  struct System;
  bool BringTo(int processor, unsigned state);

  std::unique_ptr<System> system_;
  std::atomic<unsigned> state_{0};    // a count of Begin, and in its last bits where the thread is
  std::atomic<bool> watched_{false};  // by one at a time
};

// Sleeps while word is `seen`, until Wake, or for `limit` where the system can (Linux); may return
// early. No lock is held by anybody, so a thread that loses its processor here delays no other.
void Sleep(const std::atomic<int>& word, int seen, std::chrono::microseconds limit);
void Sleep(const std::atomic<int>& word, int seen);
void Wake(std::atomic<int>& word);

}  // namespace coppice
