// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What LlamaAttention does inside: looks at each node of a graph before it is computed, plans our
// attention for those it can serve, and runs the plans on llama.cpp's threads.
//
//   llama_decode: inputs written -> OnNode(each node), one thread -> compute: Run(), all threads
//
// All of OnNode happens before the first Run of the same graph, so plans of later layers are made
// before earlier layers run: they share one workspace, which is only written while running.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cache_tracker.h"
#include "choice.h"
#include "coppice/attention.h"
#include "coppice/huge_pages.h"
#include "coppice/llama.h"
#include "coppice/settings.h"
#include "flash_node.h"
#include "node_records.h"

namespace coppice::door {

class Door {
 public:
  Door(AttentionSettings settings, std::string isa);

  // threads: how many will run; more are welcome later. window: keys in the model's sliding window,
  // 0 for none.
  void Configure(int threads, std::int32_t window);

  // For llama.cpp's cb_eval. Never throws: a node that cannot be planned is left to llama.cpp.
  void OnNode(ggml_tensor& node) noexcept;

  LlamaStats stats() const;
  void ClearStats();

 private:
  // The attention of one layer, and what its cache was like when it was last pruned.
  struct Layer {
    explicit Layer(Attention attention) : dense(std::move(attention)) {}

    Attention dense;
    std::optional<Attention> pruned;  // for layers that the settings prune
    GrowingHugePages key_pages;
    GrowingHugePages value_pages;
    // A selection may be kept from one step to the next only while keys are appended.
    KeyRange cells;
    std::uint64_t changes = 0;
    std::int64_t sample_cell = -1;
    std::vector<std::byte> sample;  // a key that was there before that batch
  };

  static void Run(ggml_tensor* node, int thread, int threads, void* record);
  void RunItems(NodeRecord& record, int thread, int threads);
  void Finish(NodeRecord& record);

  void OnKeyEvent(const ggml_tensor& node);
  void OnAttention(NodeRecord& record);
  // Empty when planned, else why not.
  std::string Plan(NodeRecord& record);
  void BeginBatch();
  Result<Layer*> LayerAt(int index);
  void ForgetUnlessAppended(Layer& layer, const FlashNode& node, const CacheState& cache,
                            const KeyRange& keys);
  void CountFallback(const std::string& reason);

  const AttentionSettings settings_;
  const std::string isa_;
  std::unique_ptr<Workspace> workspace_;
  std::atomic<int> threads_seen_ = 1;
  NodeRecords records_;
  CacheTracker tracker_{0};
  std::vector<std::unique_ptr<Layer>> layers_;  // in the order in which a graph runs them
  std::uint64_t batch_ = 0;
  int next_layer_ = 0;
  std::vector<std::int64_t> written_cells_;

  mutable std::mutex stats_mutex_;
  LlamaStats stats_;
};

}  // namespace coppice::door
