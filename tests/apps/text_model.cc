// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "text_model.h"

#include <ggml.h>
#include <gguf.h>

#include <cmath>
#include <cstdint>
#include <iterator>
#include <vector>

namespace coppice::testing {
namespace {

constexpr int kLayers = 2;
constexpr int kEmbedding = 128;
constexpr int kFeedForward = 192;
constexpr int kHeads = 4;
constexpr int kKvHeads = 2;
constexpr int kHeadDim = 64;
constexpr int kBytes = 256;
constexpr const char* kControls[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};

std::string Utf8(int code_point) {
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xC0 | (code_point >> 6)),
          static_cast<char>(0x80 | (code_point & 0x3F))};
}

// GPT-2's names of bytes: what prints stands for itself, the others are moved behind 255.
std::vector<std::string> Vocabulary() {
  std::vector<std::string> names;
  int moved = 0;
  for (int byte = 0; byte < kBytes; ++byte) {
    const bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    names.push_back(Utf8(prints ? byte : 256 + moved++));
  }
  for (const char* control : kControls) names.emplace_back(control);
  return names;
}

void SetKeys(gguf_context* gguf) {
  gguf_set_val_str(gguf, "general.architecture", "llama");
  gguf_set_val_u32(gguf, "llama.context_length", kTextModelContext);
  gguf_set_val_u32(gguf, "llama.embedding_length", kEmbedding);
  gguf_set_val_u32(gguf, "llama.block_count", kLayers);
  gguf_set_val_u32(gguf, "llama.feed_forward_length", kFeedForward);
  gguf_set_val_u32(gguf, "llama.attention.head_count", kHeads);
  gguf_set_val_u32(gguf, "llama.attention.head_count_kv", kKvHeads);
  gguf_set_val_u32(gguf, "llama.attention.key_length", kHeadDim);
  gguf_set_val_u32(gguf, "llama.attention.value_length", kHeadDim);
  gguf_set_val_u32(gguf, "llama.rope.dimension_count", kHeadDim);
  gguf_set_val_f32(gguf, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
  gguf_set_val_str(gguf, "tokenizer.ggml.model", "gpt2");
  gguf_set_val_str(gguf, "tokenizer.ggml.pre", "gpt-2");
  gguf_set_val_u32(gguf, "tokenizer.ggml.bos_token_id", kBytes);
  gguf_set_val_u32(gguf, "tokenizer.ggml.eos_token_id", kBytes);
  gguf_set_val_str(gguf, "tokenizer.chat_template",
                   "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
                   "{% endfor %}<|im_start|>assistant\n");
  const std::vector<std::string> names = Vocabulary();
  std::vector<const char*> pointers;
  std::vector<std::int32_t> types;
  for (const std::string& name : names) {
    types.push_back(pointers.size() < kBytes ? 1 : 3);  // normal, control
    pointers.push_back(name.c_str());
  }
  gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", pointers.data(), pointers.size());
  gguf_set_arr_data(gguf, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
  gguf_set_arr_str(gguf, "tokenizer.ggml.merges", nullptr, 0);
}

class Weights {
 public:
  Weights(gguf_context* gguf, ggml_context* memory) : gguf_(gguf), memory_(memory) {}

  void Norm(const std::string& name) {
    ggml_tensor* tensor = ggml_new_tensor_1d(memory_, GGML_TYPE_F32, kEmbedding);
    for (int i = 0; i < kEmbedding; ++i) static_cast<float*>(tensor->data)[i] = 1;
    Add(tensor, name);
  }
  void Matrix(const std::string& name, int columns, int rows) {
    ggml_tensor* tensor = ggml_new_tensor_2d(memory_, GGML_TYPE_F32, columns, rows);
    const float scale = 2 / std::sqrt(static_cast<float>(columns));
    for (int i = 0; i < columns * rows; ++i) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      const float uniform = static_cast<float>(state_ >> 40) * 0x1p-24f - 0.5f;
      static_cast<float*>(tensor->data)[i] = 2 * scale * uniform;
    }
    Add(tensor, name);
  }

 private:
  void Add(ggml_tensor* tensor, const std::string& name) {
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(gguf_, tensor);
  }

  gguf_context* gguf_;
  ggml_context* memory_;
  std::uint64_t state_ = 1;
};

void AddWeights(gguf_context* gguf, ggml_context* memory) {
  Weights weights(gguf, memory);
  weights.Matrix("token_embd.weight", kEmbedding, kBytes + static_cast<int>(std::size(kControls)));
  weights.Norm("output_norm.weight");
  for (int layer = 0; layer < kLayers; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    weights.Norm(prefix + "attn_norm.weight");
    weights.Norm(prefix + "ffn_norm.weight");
    weights.Matrix(prefix + "attn_q.weight", kEmbedding, kHeads * kHeadDim);
    weights.Matrix(prefix + "attn_k.weight", kEmbedding, kKvHeads * kHeadDim);
    weights.Matrix(prefix + "attn_v.weight", kEmbedding, kKvHeads * kHeadDim);
    weights.Matrix(prefix + "attn_output.weight", kHeads * kHeadDim, kEmbedding);
    weights.Matrix(prefix + "ffn_gate.weight", kEmbedding, kFeedForward);
    weights.Matrix(prefix + "ffn_up.weight", kEmbedding, kFeedForward);
    weights.Matrix(prefix + "ffn_down.weight", kFeedForward, kEmbedding);
  }
}

}  // namespace

bool WriteTextModel(const std::string& path) {
  ggml_context* memory = ggml_init({.mem_size = 8 << 20, .mem_buffer = nullptr, .no_alloc = false});
  gguf_context* gguf = gguf_init_empty();
  SetKeys(gguf);
  AddWeights(gguf, memory);
  const bool written = gguf_write_to_file(gguf, path.c_str(), /*only_meta=*/false);
  gguf_free(gguf);
  ggml_free(memory);
  return written;
}

}  // namespace coppice::testing
