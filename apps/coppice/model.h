// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// A GGUF model, checked before libllama sees it.
#pragma once

#include <llama.h>

#include <cstdint>
#include <memory>
#include <string>

#include "coppice/status.h"

namespace coppice::app {

struct ModelOptions {
  std::string path;
  bool check_tensors =
      false;  // read all weights and look for impossible values; small files always
  bool verbose = false;
};

class Model {
 public:
  static Result<Model> Load(const ModelOptions& options);

  llama_model* get() const { return model_.get(); }
  const llama_vocab* vocab() const { return llama_model_get_vocab(model_.get()); }
  int vocab_size() const { return llama_vocab_n_tokens(vocab()); }
  int trained_tokens() const { return llama_model_n_ctx_train(model_.get()); }
  const std::string& path() const { return path_; }
  std::string description() const;

  // Bytes that keys and values of one token take, if every layer keeps them.
  double KvBytesPerToken(ggml_type type) const;
  // No layer has a sliding window, or a state instead of keys and values.
  bool EveryLayerKeepsAll() const;

 private:
  struct Free {
    void operator()(llama_model* model) const { llama_model_free(model); }
  };
  std::unique_ptr<llama_model, Free> model_;
  std::string path_;
};

}  // namespace coppice::app
