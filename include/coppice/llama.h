// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The door into llama.cpp: give a llama_context our attention. It needs nothing but llama.cpp's
// public API; the kernels run on the context's own threads.
//
//   auto attention = coppice::LlamaAttention::Create(settings);
//   llama_context_params params = llama_context_default_params();
//   coppice::Status status = (*attention)->Attach(params, model);
//   llama_context* context = llama_init_from_model(model, params);
//   ...                          // llama_decode as ever
//   llama_free(context);         // before the attention object goes
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "coppice/attention.h"
#include "coppice/settings.h"
#include "coppice/status.h"

struct llama_context_params;
struct llama_model;

namespace coppice {

// What happened in one phase: prefill (batches of several tokens) or decode (one token).
struct LlamaPhaseStats {
  AttentionStats attention;
  double seconds =
      0;  // wall time in attention, all layers; from the first thread in to the last out
};

struct LlamaStats {
  LlamaPhaseStats prefill;
  LlamaPhaseStats decode;
  std::uint64_t calls = 0;  // attention operations, one for each layer and batch
  // Operations that were not done as the settings ask, and why: dense where they say pruned
  // ("mask is not a causal prefix", "keys are out of order"), or not by us at all
  // ("q8_0 keys: left to llama.cpp"). Layers that are dense by the settings, or because of the
  // model's own sliding window, do not count.
  std::uint64_t dense_fallbacks = 0;
  std::map<std::string, std::uint64_t> fallback_reasons;
};

class LlamaAttention {
 public:
  static Result<std::unique_ptr<LlamaAttention>> Create(const AttentionSettings& settings,
                                                        std::string_view isa = {});
  ~LlamaAttention();

  // Sets cb_eval, cb_eval_user_data and flash_attn_type of `params`, for one context of `model`
  // (which tells how long its sliding window is, if it has one).
  // kInvalidArgument when another cb_eval is set already, without a model, or on a second call.
  Status Attach(llama_context_params& params, const llama_model* model);

  LlamaStats stats() const;
  void ClearStats();

 private:
  struct Impl;
  explicit LlamaAttention(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace coppice
