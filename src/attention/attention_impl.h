// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What an Attention object holds between Plan and the last RunItem, and between decoding steps.
#pragma once

#include <atomic>
#include <memory>

#include "attention/plan.h"
#include "attention/workspace.h"
#include "coppice/attention.h"

namespace coppice {

// What decoding steps share: the selection is made once and read `refresh` times. Its window start
// stays where it was, so that no key between old and new window is lost meanwhile.
struct KeptSelection {
  int keys = 0;     // at the last step; 0: nothing is kept
  int steps = 0;    // times that the selection was read
  int made_at = 0;  // position of the query that made it
};

struct Attention::Impl {
  AttentionSettings settings;
  bool isa_forced = false;
  const KernelTable* kernels = nullptr;
  std::unique_ptr<Selector> selector;  // null: dense

  AttentionInputs inputs;
  AttentionPlan plan;
  Workspace::Impl* workspace = nullptr;
  std::uint64_t serial = 0;  // of the plan, among those of the workspace
  BlockMask mask;
  KeptSelection kept;
  bool reuse_selection = false;

  std::atomic<std::uint64_t> keys_read{0};
  std::atomic<std::uint64_t> keys_visible{0};
  std::atomic<std::int64_t> select_ns{0};
  std::atomic<std::int64_t> attend_ns{0};

  // Whether the search can leave anything out of these inputs.
  bool ShouldPrune(const AttentionInputs& new_inputs) const;
  void KeepSelection();
};

// work_item.cc
void RunDenseItem(Attention::Impl& attention, int item, std::size_t thread);
void RunPrunedItem(Attention::Impl& attention, int item, std::size_t thread);

}  // namespace coppice
