// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The public face of the door; door.cc does the work.
#include <llama.h>

#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "coppice/llama.h"
#include "door.h"

namespace coppice {

struct LlamaAttention::Impl {
  door::Door door;
  bool attached = false;
};

namespace {

// Returning false says that llama.cpp need not stop after this node for us to see its result.
bool OnEvaluate(ggml_tensor* node, bool ask, void* door) {
  if (ask) static_cast<door::Door*>(door)->OnNode(*node);
  return !ask;
}

}  // namespace

LlamaAttention::LlamaAttention(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LlamaAttention::~LlamaAttention() = default;

Result<std::unique_ptr<LlamaAttention>> LlamaAttention::Create(const AttentionSettings& settings,
                                                               std::string_view isa) try {
  if (Status status = Validate(settings); !status.ok()) return status;
  const Result<Attention> probe = Attention::Create(settings, isa);
  if (!probe.ok()) return probe.status();
  std::unique_ptr<Impl> impl(new Impl{.door = door::Door(settings, std::string(isa))});
  return std::unique_ptr<LlamaAttention>(new LlamaAttention(std::move(impl)));
} catch (const std::bad_alloc&) {
  return Status::ResourceExhausted("no memory for the attention of a llama.cpp context");
}

Status LlamaAttention::Attach(llama_context_params& params, const llama_model* model) try {
  if (impl_->attached) {
    return Status::InvalidArgument("attach: this object serves a context already; make another");
  }
  if (params.cb_eval != nullptr) {
    return Status::InvalidArgument("attach: cb_eval of the context parameters is set already");
  }
  if (model == nullptr) return Status::InvalidArgument("attach: model is null");
  impl_->door.Configure(std::max(params.n_threads, params.n_threads_batch),
                        llama_model_n_swa(model));
  params.cb_eval = &OnEvaluate;
  params.cb_eval_user_data = &impl_->door;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  impl_->attached = true;
  return Status::Ok();
} catch (const std::bad_alloc&) {
  return Status::ResourceExhausted("attach: no memory for the scratch of the context's threads");
}

LlamaStats LlamaAttention::stats() const { return impl_->door.stats(); }
void LlamaAttention::ClearStats() { impl_->door.ClearStats(); }

}  // namespace coppice
