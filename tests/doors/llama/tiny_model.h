// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Small language models with random weights, written as GGUF files through ggml's public writer.
// They know nothing, but each runs the real graph of its architecture. Used by the tests of the
// llama.cpp door.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

namespace coppice::testing {

struct TinyModel {
  std::string architecture;  // "llama", "qwen3", "gemma3", "cohere2"
  int layers = 4;
  int embedding = 128;
  int feed_forward = 192;
  int heads = 4;
  int kv_heads = 2;
  int head_dim = 64;
  int vocabulary = 320;
  int context = 8192;
  int window = 0;          // sliding window, tokens
  int window_pattern = 0;  // each so-manieth layer is global
  std::uint32_t seed = 1;
};

// What GoogleTest prints.
inline void PrintTo(const TinyModel& model, std::ostream* out) { *out << model.architecture; }

// One of each architecture, with head dims 64, 128 and 256 and different groups of heads.
TinyModel TinyLlama();
TinyModel TinyQwen3();
TinyModel TinyGemma3();
TinyModel TinyCohere2();

// False when the file cannot be written.
bool WriteGguf(const TinyModel& model, const std::string& path);

}  // namespace coppice::testing
