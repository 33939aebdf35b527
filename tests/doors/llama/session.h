// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// A llama.cpp context under test, with our attention or without, that remembers every row of logits
// it was made to compute; and the comparison of two such runs.
#pragma once

#include <llama.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coppice/llama.h"
#include "tiny_model.h"

namespace coppice::testing {

// A loaded model; null when the file is no good.
using ModelPtr = std::unique_ptr<llama_model, void (*)(llama_model*)>;
ModelPtr LoadModel(const std::string& path);
ModelPtr LoadTiny(const TinyModel& model);
// The model of environment variable COPPICE_TEST_MODEL; null when there is none.
ModelPtr LoadRealModel();

struct SessionOptions {
  int context = 1024;
  int batch = 128;  // tokens in a micro-batch
  int threads = 1;  // more only where that is tested: llama.cpp spins when cores are taken
  int sequences = 1;
  bool unified = true;
  ggml_type key_type = GGML_TYPE_F16;
  ggml_type value_type = GGML_TYPE_F16;
  bool flash = true;              // stock llama.cpp uses its flash attention
  bool full_window_cache = true;  // sliding-window layers keep all cells
  std::optional<AttentionSettings> attention = std::nullopt;  // none: stock llama.cpp
};

struct SequenceToken {
  llama_token token;
  llama_pos position;
  llama_seq_id sequence;
};

class Session {
 public:
  Session(llama_model* model, const SessionOptions& options);

  // Decodes and keeps the logits of the last `keep` tokens. Fails the test when llama_decode does.
  void Decode(const std::vector<SequenceToken>& tokens, int keep = 16);
  // `count` pseudo-random tokens of a sequence from `position` on, in one call or one by one.
  void Feed(int count, llama_pos position, llama_seq_id sequence = 0);
  void Step(int count, llama_pos position, llama_seq_id sequence = 0);

  llama_context* context() const { return context_.get(); }
  llama_memory_t memory() const { return llama_get_memory(context_.get()); }
  LlamaAttention& attention() { return *attention_; }
  bool ok() const { return context_ != nullptr; }

  const std::vector<std::vector<float>>& logits() const { return logits_; }
  void ForgetLogits() { logits_.clear(); }

 private:
  llama_token TokenAt(llama_pos position, llama_seq_id sequence) const;

  int vocabulary_;
  std::unique_ptr<LlamaAttention> attention_;  // goes after the context
  std::unique_ptr<llama_context, void (*)(llama_context*)> context_;
  std::vector<std::vector<float>> logits_;
};

using Script = std::function<void(Session&)>;

struct Comparison {
  double worst = 0;  // largest of |a - b| / |b| (L2) over the rows of logits
  bool same_bits = true;
  std::size_t rows = 0;
};
Comparison Compare(const Session& a, const Session& b);

// Runs `script` on stock llama.cpp, with `options`, and with `settings` attached.
struct AgainstStock {
  Comparison difference;
  LlamaStats stats;
};
AgainstStock RunAgainstStock(llama_model* model, const SessionOptions& options,
                             const AttentionSettings& settings, const Script& script);

AttentionSettings DenseSettings();
// Prunes from the first layer and from short contexts on.
AttentionSettings EagerSettings();

}  // namespace coppice::testing
