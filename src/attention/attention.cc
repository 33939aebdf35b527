// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The operator: Create, Plan, RunItem. How work is cut is in plan.cc, what an item does in
// work_item.cc.
#include "coppice/attention.h"

#include <cmath>
#include <new>

#include "attention/attention_impl.h"

namespace coppice {

Result<Attention> Attention::Create(const AttentionSettings& settings, std::string_view isa) {
  if (Status status = Validate(settings); !status.ok()) return status;
  auto impl = std::make_unique<Impl>();
  impl->settings = settings;
  impl->kernels = AvailableKernels().back();
  if (!isa.empty()) {
    impl->isa_forced = true;
    impl->kernels = FindKernels(isa);
    if (impl->kernels == nullptr) {
      std::string known;
      for (const std::string& name : AvailableIsas()) known += (known.empty() ? "" : ", ") + name;
      return Status::NotFound("instruction set '" + std::string(isa) +
                              "' is not available here; available: " + known);
    }
  }
  if (settings.method != "dense") {
    Result<std::unique_ptr<Selector>> selector = MakeSelector(settings);
    if (!selector.ok()) return selector.status();
    impl->selector = std::move(selector).value();
  }
  return Attention(std::move(impl));
}

Attention::Attention(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Attention::Attention(Attention&&) noexcept = default;
Attention& Attention::operator=(Attention&&) noexcept = default;
Attention::~Attention() = default;

bool Attention::Impl::ShouldPrune(const AttentionInputs& new_inputs) const {
  if (selector == nullptr || new_inputs.visible != nullptr || new_inputs.mask.data != nullptr ||
      new_inputs.alibi_slopes != nullptr) {
    return false;
  }
  const std::int64_t always = static_cast<std::int64_t>(settings.sink) + settings.window;
  const std::int64_t budget = settings.method == "streaming" ? 0 : settings.budget;
  return new_inputs.keys.tokens > always + budget;
}

// A step of one query on one more key continues what the last step kept.
void Attention::Impl::KeepSelection() {
  const int keys = plan.keys;
  reuse_selection =
      plan.pruned && plan.queries == 1 && kept.keys == keys - 1 && kept.steps < settings.refresh;
  if (!plan.pruned || plan.queries != 1) {
    kept = {};
    return;
  }
  if (!reuse_selection) kept = {.keys = 0, .steps = 0, .made_at = keys - 1};
  kept.keys = keys;
  ++kept.steps;
}

Status Attention::Plan(const AttentionInputs& inputs, Workspace& workspace) {
  if (Status status = CheckInputs(inputs); !status.ok()) return status;
  Impl& impl = *impl_;
  const auto dim_k = static_cast<int>(inputs.keys.dim);
  const auto dim_v = static_cast<int>(inputs.values.dim);
  if (!impl.isa_forced) {
    impl.kernels = &BestKernels(dim_k, dim_v);
  } else if (dim_k % impl.kernels->dim_multiple != 0 || dim_v % impl.kernels->dim_multiple != 0) {
    return Status::Unimplemented("the " + std::string(impl.kernels->isa) +
                                 " kernels need dims that are multiples of " +
                                 std::to_string(impl.kernels->dim_multiple) + ", not " +
                                 std::to_string(dim_k) + " and " + std::to_string(dim_v));
  }
  const Selector* selector = impl.ShouldPrune(inputs) ? impl.selector.get() : nullptr;
  impl.inputs = inputs;
  if (impl.inputs.scale == 0) impl.inputs.scale = 1.0f / std::sqrt(static_cast<float>(dim_k));
  impl.plan = MakePlan(inputs, impl.settings, *impl.kernels, selector);
  impl.KeepSelection();
  try {
    if (impl.plan.pruned && !impl.reuse_selection) {
      impl.mask.block_size = impl.settings.block_k;
      impl.mask.query_block_size = impl.settings.block_q;
      impl.mask.shared_by_group = impl.settings.share_group;
      impl.mask.Resize(impl.plan.tile_heads, impl.plan.token_tiles, selector->Capacity());
    }
  } catch (const std::bad_alloc&) {
    return Status::ResourceExhausted("no memory for the block mask of " +
                                     std::to_string(impl.plan.tiles()) + " query blocks");
  }
  impl.workspace = workspace.impl_.get();
  impl.serial = ++impl.workspace->epoch;
  if (!impl.workspace->Reserve(impl.plan.thread_bytes, impl.plan.shared_bytes, impl.plan.tiles())) {
    return Status::ResourceExhausted("no memory for " + std::to_string(impl.plan.thread_bytes) +
                                     " bytes of scratch for each thread");
  }
  return Status::Ok();
}

int Attention::items() const { return impl_->plan.items(); }

void Attention::RunItem(int item, int thread) {
  if (impl_->plan.pruned) {
    RunPrunedItem(*impl_, item, static_cast<std::size_t>(thread));
  } else {
    RunDenseItem(*impl_, item, static_cast<std::size_t>(thread));
  }
}

const BlockMask& Attention::mask() const { return impl_->mask; }
bool Attention::pruned() const { return impl_->plan.pruned; }
void Attention::Reset() { impl_->kept = {}; }
std::string_view Attention::isa() const { return impl_->kernels->isa; }
std::string_view Attention::kernel() const { return impl_->kernels->kernel(impl_->plan.shape()); }

AttentionStats Attention::stats() const {
  constexpr auto kOrder = std::memory_order_relaxed;
  return {.keys_read = impl_->keys_read.load(kOrder),
          .keys_visible = impl_->keys_visible.load(kOrder),
          .select_s = static_cast<double>(impl_->select_ns.load(kOrder)) * 1e-9,
          .attend_s = static_cast<double>(impl_->attend_ns.load(kOrder)) * 1e-9};
}

void Attention::ClearStats() {
  impl_->keys_read = 0;
  impl_->keys_visible = 0;
  impl_->select_ns = 0;
  impl_->attend_ns = 0;
}

Status Attend(const AttentionInputs& inputs, const AttentionSettings& settings, ThreadPool& pool,
              AttentionStats* stats, std::string_view isa) {
  Workspace workspace(pool.threads());
  return Attend(inputs, settings, pool, workspace, stats, isa);
}

Status Attend(const AttentionInputs& inputs, const AttentionSettings& settings, ThreadPool& pool,
              Workspace& workspace, AttentionStats* stats, std::string_view isa) {
  Result<Attention> attention = Attention::Create(settings, isa);
  if (!attention.ok()) return attention.status();
  if (Status status = attention->Plan(inputs, workspace); !status.ok()) return status;
  pool.Run(attention->items(), [&](int item, int thread) { attention->RunItem(item, thread); });
  if (stats != nullptr) *stats = attention->stats();
  return Status::Ok();
}

}  // namespace coppice
