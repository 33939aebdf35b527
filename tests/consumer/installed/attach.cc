// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The door into llama.cpp links and answers without a model.
#include <llama.h>

#include <cstdio>

#include "coppice/llama.h"

int main() {
  coppice::AttentionSettings settings;
  settings.method = "no such method";
  const auto refused = coppice::LlamaAttention::Create(settings);
  const auto made = coppice::LlamaAttention::Create(coppice::AttentionSettings());
  if (!made.ok()) std::fprintf(stderr, "%s\n", made.status().message().c_str());
  const llama_context_params params = llama_context_default_params();
  return !refused.ok() && made.ok() && params.cb_eval == nullptr ? 0 : 1;
}
