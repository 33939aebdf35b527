// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The memory behind Workspace: a private piece for each thread and one that all share. It only
// grows, in Plan; runs fetch the pointers anew, so that plans of several layers can come before
// the first run.
#pragma once

#include <atomic>
#include <vector>

#include "coppice/attention.h"
#include "core/align.h"

namespace coppice {

struct Workspace::Impl {
  explicit Impl(int thread_count) : threads(static_cast<std::size_t>(thread_count)) {}

  // False when there is no memory; what was there stays.
  bool Reserve(std::size_t thread_bytes, std::size_t shared_bytes, int tiles);
  std::size_t bytes() const { return thread_size * threads.size() + shared_size; }

  std::vector<AlignedBytes> threads;
  std::size_t thread_size = 0;
  AlignedBytes shared;
  std::size_t shared_size = 0;
  // How many pieces of each tile are done; whoever does the last one merges and sets it back to 0.
  std::unique_ptr<std::atomic<int>[]> finished;
  int finished_size = 0;
};

}  // namespace coppice
