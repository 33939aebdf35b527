// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "door.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <utility>

namespace coppice::door {
namespace {

std::int64_t NowNs() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

void Add(const AttentionStats& from, AttentionStats& to) {
  to.keys_read += from.keys_read;
  to.keys_visible += from.keys_visible;
  to.select_s += from.select_s;
  to.attend_s += from.attend_s;
}

TensorView KeyRows(const TensorView& rows, const KeyRange& range) {
  TensorView part = rows;
  part.data = rows.Row(range.begin, 0);
  part.tokens = range.end - range.begin;
  return part;
}

AttentionInputs InputsOf(const FlashNode& node, const MaskReading& mask, const Choice& choice) {
  AttentionInputs inputs;
  inputs.queries = node.queries;
  inputs.keys = KeyRows(node.keys, choice.keys);
  inputs.values = KeyRows(node.values, choice.keys);
  inputs.output = node.output;
  inputs.scale = node.scale;
  inputs.softcap = node.softcap;
  inputs.sinks = node.sinks;
  if (choice.form != Choice::Form::kCausal) inputs.visible = mask.rows.data();
  if (choice.form == Choice::Form::kMask) {
    inputs.mask = {.data = node.mask, .type = DType::kF16, .row_stride = node.mask_stride};
  }
  return inputs;
}

// The cells of a cache from its first to the last that is in use.
void ReachRows(GrowingHugePages& pages, const TensorView& rows, std::int64_t first_cell) {
  const auto* first = static_cast<const std::byte*>(rows.data);
  pages.Reach(first - first_cell * rows.token_stride, first + rows.tokens * rows.token_stride);
}

std::size_t SampleBytes(const TensorView& keys) {
  return std::min<std::size_t>(64, static_cast<std::size_t>(RowBytes(keys.type, keys.dim)));
}

}  // namespace

Door::Door(AttentionSettings settings, std::string isa)
    : settings_(std::move(settings)),
      isa_(std::move(isa)),
      workspace_(std::make_unique<Workspace>(1)),
      records_(&Door::Run, this) {}

void Door::Configure(int threads, std::int32_t window) {
  workspace_ = std::make_unique<Workspace>(std::max(threads, 1));
  tracker_ = CacheTracker(window);
}

void Door::OnNode(ggml_tensor& node) noexcept {
  NodeRecord* record = nullptr;
  try {
    record = records_.Find(node);
    if (record != nullptr) {
      OnAttention(*record);
    } else {
      OnKeyEvent(node);
    }
  } catch (const std::exception&) {  // no memory, nothing else throws here
    if (record != nullptr) NodeRecords::GiveBack(*record);
  }
}

void Door::OnKeyEvent(const ggml_tensor& node) {
  const KeyEvent event = ReadKeyEvent(node, written_cells_);
  if (event.kind == KeyEvent::Kind::kChange) tracker_.OnChange(event.layer);
  if (event.kind != KeyEvent::Kind::kWrite) return;
  tracker_.OnWrite(event.layer, event.cache_cells, event.list, written_cells_);
  if (tracker_.batch() != batch_) BeginBatch();
}

void Door::BeginBatch() {
  batch_ = tracker_.batch();
  next_layer_ = 0;
  // Threads beyond those of the workspace have idled in the last batch.
  const int seen = threads_seen_.load();
  if (seen > workspace_->threads()) workspace_ = std::make_unique<Workspace>(seen);
}

void Door::OnAttention(NodeRecord& record) {
  const std::string refusal = Plan(record);
  if (refusal.empty()) {
    NodeRecords::Take(record);
  } else {
    NodeRecords::GiveBack(record);
    CountFallback(refusal);
  }
  const std::lock_guard lock(stats_mutex_);
  ++stats_.calls;
}

std::string Door::Plan(NodeRecord& record) {
  const int index = next_layer_++;
  FlashNode node;
  const FlashParams params = ReadFlashParams(record.flash_params.data());
  if (std::string refusal = ReadFlashNode(*record.node, params, node); !refusal.empty()) {
    return refusal;
  }
  CacheState* cache = tracker_.Find(node.key_layer);
  if (cache == nullptr) return "a KV cache that nobody wrote: left to llama.cpp";
  Result<Layer*> found = LayerAt(index);
  if (!found.ok()) return found.status().message() + ": left to llama.cpp";
  Layer& layer = **found;
  ReachRows(layer.key_pages, node.keys, node.first_cell);
  ReachRows(layer.value_pages, node.values, node.first_cell);

  const MaskReading& mask =
      cache->Mask(node.mask, node.mask_stride, static_cast<std::int32_t>(node.queries.tokens),
                  static_cast<std::int32_t>(node.keys.tokens), batch_);
  const LayerFacts facts{.prunable = layer.pruned.has_value(),
                         .windowed = tracker_.MayBeWindowed(*cache),
                         .ordered = cache->order().Ordered(node.first_cell + mask.span.begin,
                                                           node.first_cell + mask.span.end)};
  const Choice choice = Choose(mask, facts);
  if (choice.prune) {
    ForgetUnlessAppended(layer, node, *cache, choice.keys);
  } else {
    layer.cells = {};
  }
  Attention& attention = choice.prune ? *layer.pruned : layer.dense;
  attention.ClearStats();
  const Status planned = attention.Plan(InputsOf(node, mask, choice), *workspace_);
  if (!planned.ok()) {
    layer.cells = {};
    return planned.message() + ": left to llama.cpp";
  }
  if (choice.reason != nullptr) CountFallback(choice.reason);
  record.attention = &attention;
  record.prefill = node.queries.tokens > 1;
  record.items = attention.items();
  record.next_item = 0;
  record.threads_done = 0;
  record.start_ns = 0;
  return {};
}

Result<Door::Layer*> Door::LayerAt(int index) {
  const auto i = static_cast<std::size_t>(index);
  while (layers_.size() <= i) {
    AttentionSettings dense_settings = settings_;
    dense_settings.method = "dense";
    Result<Attention> dense = Attention::Create(dense_settings, isa_);
    if (!dense.ok()) return dense.status();
    auto layer = std::make_unique<Layer>(std::move(dense).value());
    const bool first = static_cast<int>(layers_.size()) < settings_.dense_layers;
    if (settings_.method != "dense" && !first) {
      Result<Attention> pruned = Attention::Create(settings_, isa_);
      if (!pruned.ok()) return pruned.status();
      layer->pruned = std::move(pruned).value();
    }
    layers_.push_back(std::move(layer));
  }
  return layers_[i].get();
}

// Appending shows in three ways: the keys end where the new tokens begin, nothing changed keys in
// place, and a key that was there before has still the same bytes (a state that was restored from
// a file passes no graph).
void Door::ForgetUnlessAppended(Layer& layer, const FlashNode& node, const CacheState& cache,
                                const KeyRange& keys) {
  const auto sample_at = [&node](std::int64_t cell) {
    return node.keys.Row(cell - node.first_cell, 0);
  };
  const auto first = static_cast<std::int32_t>(node.first_cell) + keys.begin;
  const auto end = static_cast<std::int32_t>(node.first_cell) + keys.end;
  const auto fresh = end - static_cast<std::int32_t>(node.queries.tokens);
  const bool appended =
      layer.cells.end > layer.cells.begin && layer.cells.begin == first &&
      layer.cells.end == fresh && layer.changes == cache.changes() &&
      (layer.sample_cell < 0 ||
       std::memcmp(layer.sample.data(), sample_at(layer.sample_cell), layer.sample.size()) == 0);
  if (!appended) layer.pruned->Reset();
  layer.cells = {first, end};
  layer.changes = cache.changes();
  layer.sample_cell = fresh > first ? fresh - 1 : -1;
  if (layer.sample_cell < 0) return;
  const std::byte* sample = sample_at(layer.sample_cell);
  layer.sample.assign(sample, sample + SampleBytes(node.keys));
}

void Door::Run(ggml_tensor* /*node*/, int thread, int threads, void* record) {
  auto* planned = static_cast<NodeRecord*>(record);
  planned->door->RunItems(*planned, thread, threads);
}

void Door::RunItems(NodeRecord& record, int thread, int threads) {
  std::int64_t unset = 0;
  record.start_ns.compare_exchange_strong(unset, NowNs());
  if (thread == 0 && threads > threads_seen_.load()) threads_seen_ = threads;
  if (thread < workspace_->threads()) {
    for (;;) {
      const int item = record.next_item.fetch_add(1, std::memory_order_relaxed);
      if (item >= record.items) break;
      record.attention->RunItem(item, thread);
    }
  }
  if (record.threads_done.fetch_add(1) + 1 == threads) Finish(record);
}

// By the thread that is out last, so the time is that of the slowest.
void Door::Finish(NodeRecord& record) {
  const double seconds = 1e-9 * static_cast<double>(NowNs() - record.start_ns.load());
  const AttentionStats stats = record.attention->stats();
  record.attention->ClearStats();
  const std::lock_guard lock(stats_mutex_);
  LlamaPhaseStats& phase = record.prefill ? stats_.prefill : stats_.decode;
  phase.seconds += seconds;
  Add(stats, phase.attention);
}

void Door::CountFallback(const std::string& reason) {
  const std::lock_guard lock(stats_mutex_);
  ++stats_.dense_fallbacks;
  ++stats_.fallback_reasons[reason];
}

LlamaStats Door::stats() const {
  const std::lock_guard lock(stats_mutex_);
  return stats_;
}

void Door::ClearStats() {
  const std::lock_guard lock(stats_mutex_);
  stats_ = {};
}

}  // namespace coppice::door
