// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// A llama.cpp context with the attention that the user chose.
#pragma once

#include <llama.h>

#include <memory>
#include <span>
#include <string>

#include "coppice/llama.h"
#include "coppice/status.h"
#include "model.h"
#include "settings_flags.h"

namespace coppice::app {

// Tokens that are computed together. llama.cpp's default, and the same whatever the attention is.
inline constexpr int kBatchTokens = 512;

struct ContextOptions {
  int tokens = 0;   // of the KV cache
  int outputs = 1;  // most tokens of a batch whose logits are asked for
  int threads = 1;
  std::string kv_type = "f16";  // f16, bf16, f32 or q8_0
};

class Context {
 public:
  static Result<Context> Create(const Model& model, const AttentionChoice& choice,
                                const ContextOptions& options);

  // Appends tokens, at most kBatchTokens. Logits are kept for the last `outputs` of them.
  Status Decode(std::span<const llama_token> tokens, int outputs);
  // Of the i-th token whose logits the last Decode kept; [vocab_size].
  const float* Logits(int i) const;
  // Forgets all tokens.
  void Clear();

  // All zero for llama.cpp's own attention.
  LlamaStats stats() const;
  void ClearStats();
  // What the tokens in the cache take.
  std::size_t KvBytes() const;

 private:
  struct Free {
    void operator()(llama_context* context) const { llama_free(context); }
  };
  // The attention outlives the context.
  std::unique_ptr<LlamaAttention> attention_;
  std::unique_ptr<llama_context, Free> context_;
  int first_output_ = 0;
};

// Keys read by all calls, as a share of those that dense attention reads.
double KeysReadFraction(const LlamaStats& stats);

}  // namespace coppice::app
