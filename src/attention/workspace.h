// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The memory behind Workspace: a private piece for each thread and one that all share. It only
// grows, in Plan; runs fetch the pointers anew, so that plans of several layers can come before
// the first run.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "coppice/attention.h"
#include "core/align.h"

namespace coppice {

// The item that a thread runs, and which it will presumably run next: who took every second one will do so
// again.
struct alignas(kCacheLine) ItemTrail {
  static constexpr int kNone = -1;

  std::uint64_t plan = 0;
  std::uint64_t epoch = 0;  // of the workspace, when the item was taken
  int item = kNone;
  int next = kNone;

  // The thread's scratch is as an item in [begin, end) of this plan left it, in the run at hand.
  bool Follows(std::uint64_t its_plan, std::uint64_t now, int begin, int end) const {
    return its_plan == plan && now == epoch && begin <= item && item < end;
  }

  // Moves on to an item, behind which `end` comes after the last that is worth presuming. Returns whether
  // it is the one that was presumed.
  bool Take(std::uint64_t new_plan, std::uint64_t now, int new_item, int end) {
    const bool same_plan = new_plan == plan;
    const bool presumed = same_plan && new_item == next;
    const int step = same_plan && item != kNone ? new_item - item : 0;
    next = step > 0 && step < end - new_item ? new_item + step : kNone;
    item = new_item;
    plan = new_plan;
    epoch = now;
    return presumed;
  }
};

struct Workspace::Impl {
  explicit Impl(int thread_count)
      : threads(static_cast<std::size_t>(thread_count)), trails(threads.size()) {}

  // False when there is no memory; what was there stays.
  bool Reserve(std::size_t thread_bytes, std::size_t shared_bytes, int tiles);
  std::size_t bytes() const { return thread_size * threads.size() + shared_size; }

  std::vector<AlignedBytes> threads;
  std::vector<ItemTrail> trails;  // of the threads
  // Moves on with every plan, whose serial number it is, and whenever pieces were merged: no run of a plan shares one
  // with another.
  std::atomic<std::uint64_t> epoch{0};
  std::size_t thread_size = 0;
  AlignedBytes shared;
  std::size_t shared_size = 0;
  // How many pieces of each tile are done; whoever does the last one merges and sets it back to 0.
  std::unique_ptr<std::atomic<int>[]> finished;
  int finished_size = 0;
};

}  // namespace coppice
