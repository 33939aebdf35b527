// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What is known about the KV caches of one context: which layers share one, in which order its
// cells were written, what its mask says, whether it may belong to sliding-window layers. A model
// with sliding windows has two caches, each with its own cells and mask.
// Learns from the writes and masks that pass by in a batch; makes no decision. Used by door.cc.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cell_order.h"
#include "mask_reader.h"

namespace coppice::door {

// One cache, shared by several layers.
class CacheState {
 public:
  explicit CacheState(std::int64_t cells) : order_(cells) {}

  const CellOrder& order() const { return order_; }
  // Counts what happened to keys in place, such as the rotation of a context shift.
  std::uint64_t changes() const { return changes_; }

  // What a mask says; read once in a batch, valid until the next.
  const MaskReading& Mask(const void* mask, std::int64_t row_stride, std::int32_t rows,
                          std::int32_t keys, std::uint64_t batch);

 private:
  friend class CacheTracker;
  CellOrder order_;
  std::uint64_t changes_ = 0;
  std::uint64_t written_in_ = 0;        // batch
  const void* written_with_ = nullptr;  // that batch's list of cells
  struct ReadOnce {
    std::uint64_t batch = 0;
    const void* mask = nullptr;
    MaskReading reading;
  };
  std::vector<std::unique_ptr<ReadOnce>> readings_;  // one, unless layers differ in their masks
  std::int32_t most_visible_ = 0;                    // keys that one row was ever seen to see
};

class CacheTracker {
 public:
  // window: keys in the model's sliding window, 0 when it has none.
  explicit CacheTracker(std::int32_t window) : window_(window) {}

  // A batch writes the keys of `layer` to `cells` of its cache. Layers whose lists of cells are one
  // and the same object share a cache. `cache_cells`: how many it has.
  void OnWrite(int layer, std::int64_t cache_cells, const void* list,
               std::span<const std::int64_t> cells);
  // Something else than a write of new tokens changed the keys of `layer`.
  void OnChange(int layer);

  // Null for a layer that was never written.
  CacheState* Find(int layer) const;

  // Goes up when the first layer is written.
  std::uint64_t batch() const { return batch_; }

  // May this cache belong to layers with a sliding window? Until a row sees more than the window.
  bool MayBeWindowed(const CacheState& cache) const {
    return window_ > 0 && cache.most_visible_ <= window_;
  }

 private:
  CacheState& Assign(int layer, std::int64_t cache_cells, const void* list);

  std::int32_t window_;
  std::uint64_t batch_ = 0;
  std::optional<int> first_layer_;
  std::map<int, std::shared_ptr<CacheState>> caches_;  // by layer
};

}  // namespace coppice::door
