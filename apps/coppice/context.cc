// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "context.h"

#include <cstdint>
#include <vector>

#include "console.h"
#include "interrupt.h"
#include "llama_runtime.h"
#include "memory.h"

namespace coppice::app {
namespace {

ggml_type TypeOf(const std::string& kv_type) {
  if (kv_type == "f32") return GGML_TYPE_F32;
  if (kv_type == "bf16") return GGML_TYPE_BF16;
  if (kv_type == "q8_0") return GGML_TYPE_Q8_0;
  return GGML_TYPE_F16;
}

llama_context_params Params(const ContextOptions& options) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(options.tokens);
  params.n_batch = kBatchTokens;
  params.n_ubatch = kBatchTokens;
  params.n_seq_max = 1;
  params.n_outputs_max = static_cast<std::uint32_t>(options.outputs);
  params.n_threads = options.threads;
  params.n_threads_batch = options.threads;
  params.type_k = TypeOf(options.kv_type);
  params.type_v = params.type_k;
  params.offload_kqv = false;
  params.op_offload = false;
  params.swa_full = false;
  params.abort_callback = InterruptedCallback;
  return params;
}

double KvBytes(const Model& model, const ContextOptions& options) {
  return model.KvBytesPerToken(TypeOf(options.kv_type)) * options.tokens;
}

// libllama fills the cells of its cache first, 10 GB for 200 million tokens, and asks for the memory of keys
// and values after that. Twice, for layers may share them.
bool CannotFit(const Model& model, const ContextOptions& options) {
  return model.EveryLayerKeepsAll() &&
         KvBytes(model, options) > 2 * static_cast<double>(AvailableMemory());
}

Status NoContext(const Model& model, const ContextOptions& options) {
  const std::string error = TakeLlamaError();
  const double bytes = KvBytes(model, options);
  return Status::ResourceExhausted(
      "no context of " + WithCommas(options.tokens) + " tokens for model '" + model.path() +
      "': its KV cache takes up to " + HumanBytes(bytes) + ", " +
      HumanBytes(static_cast<double>(AvailableMemory())) + " are free" +
      (error.empty() ? "" : " (" + error + ")") + "; use a smaller --ctx or --kv-type q8_0");
}

}  // namespace

Result<Context> Context::Create(const Model& model, const AttentionChoice& choice,
                                const ContextOptions& options) {
  TakeLlamaError();
  if (CannotFit(model, options)) return NoContext(model, options);
  llama_context_params params = Params(options);
  Context context;
  if (!choice.off) {
    Result<std::unique_ptr<LlamaAttention>> attention =
        LlamaAttention::Create(choice.settings, choice.isa);
    if (!attention.ok()) return attention.status();
    context.attention_ = std::move(attention).value();
    Status status = context.attention_->Attach(params, model.get());
    if (!status.ok()) return status;
  }
  const DamageGuard guard(model.path());
  {
    const MemoryCeiling ceiling;
    context.context_.reset(llama_init_from_model(model.get(), params));
  }
  if (context.context_ == nullptr) return NoContext(model, options);
  return context;
}

Status Context::Decode(std::span<const llama_token> tokens, int outputs) {
  std::vector<std::int8_t> keep(tokens.size(), 0);
  first_output_ = static_cast<int>(tokens.size()) - outputs;
  for (int i = 0; i < outputs; ++i) keep[static_cast<std::size_t>(first_output_ + i)] = 1;
  // Without positions and sequences, libllama appends to sequence 0. It does not write to tokens.
  llama_batch batch = {};
  batch.n_tokens = static_cast<std::int32_t>(tokens.size());
  batch.token = const_cast<llama_token*>(tokens.data());
  batch.logits = keep.data();
  const std::int32_t code = llama_decode(context_.get(), batch);
  if (Interrupted() || code == 2) return InterruptedStatus();
  if (code == 1) {
    return Status::ResourceExhausted("the KV cache is full; use a larger --ctx or a smaller -n");
  }
  if (code != 0) {
    const std::string error = TakeLlamaError();
    return Status::Internal("llama.cpp failed with code " + std::to_string(code) +
                            (error.empty() ? "" : ": " + error) + "; see --verbose");
  }
  llama_synchronize(context_.get());
  return Status::Ok();
}

const float* Context::Logits(int i) const {
  return llama_get_logits_ith(context_.get(), first_output_ + i);
}

void Context::Clear() { llama_memory_clear(llama_get_memory(context_.get()), /*data=*/true); }

LlamaStats Context::stats() const {
  return attention_ == nullptr ? LlamaStats() : attention_->stats();
}

void Context::ClearStats() {
  if (attention_ != nullptr) attention_->ClearStats();
}

std::size_t Context::KvBytes() const { return llama_state_seq_get_size(context_.get(), 0); }

double KeysReadFraction(const LlamaStats& stats) {
  const auto read = static_cast<double>(stats.prefill.attention.keys_read) +
                    static_cast<double>(stats.decode.attention.keys_read);
  const auto visible = static_cast<double>(stats.prefill.attention.keys_visible) +
                       static_cast<double>(stats.decode.attention.keys_visible);
  return visible > 0 ? read / visible : 1;
}

}  // namespace coppice::app
