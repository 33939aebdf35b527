// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "cache_tracker.h"

#include <algorithm>

namespace coppice::door {

const MaskReading& CacheState::Mask(const void* mask, std::int64_t row_stride, std::int32_t rows,
                                    std::int32_t keys, std::uint64_t batch) {
  ReadOnce* free = nullptr;
  for (const auto& read : readings_) {
    if (read->batch == batch && read->mask == mask) return read->reading;
    if (read->batch != batch) free = read.get();
  }
  if (free == nullptr) free = readings_.emplace_back(std::make_unique<ReadOnce>()).get();
  ReadMask(mask, row_stride, rows, keys, free->reading);
  free->batch = batch;
  free->mask = mask;
  most_visible_ = std::max(most_visible_, free->reading.most_visible);
  return free->reading;
}

void CacheTracker::OnWrite(int layer, std::int64_t cache_cells, const void* list,
                           std::span<const std::int64_t> cells) {
  if (!first_layer_ || layer <= *first_layer_) {
    first_layer_ = layer;
    ++batch_;
  }
  CacheState& cache = Assign(layer, cache_cells, list);
  if (cache.written_in_ == batch_ && cache.written_with_ == list) return;
  cache.written_in_ = batch_;
  cache.written_with_ = list;
  cache.order_.Write(cells);
}

CacheState& CacheTracker::Assign(int layer, std::int64_t cache_cells, const void* list) {
  std::shared_ptr<CacheState>& mine = caches_[layer];
  if (mine) return *mine;
  for (const auto& [other, cache] : caches_) {
    if (cache && cache->written_in_ == batch_ && cache->written_with_ == list &&
        cache->order_.cells() == cache_cells) {
      mine = cache;
      return *mine;
    }
  }
  mine = std::make_shared<CacheState>(cache_cells);
  return *mine;
}

void CacheTracker::OnChange(int layer) {
  if (CacheState* cache = Find(layer)) ++cache->changes_;
}

CacheState* CacheTracker::Find(int layer) const {
  const auto found = caches_.find(layer);
  return found == caches_.end() ? nullptr : found->second.get();
}

}  // namespace coppice::door
