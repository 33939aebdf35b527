// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "tiny_model.h"

#include <ggml.h>
#include <gguf.h>

#include <cmath>
#include <initializer_list>
#include <random>

namespace coppice::testing {
namespace {

class Writer {
 public:
  explicit Writer(const TinyModel& model)
      : model_(model),
        random_(model.seed),
        gguf_(gguf_init_empty()),
        context_(ggml_init({std::size_t{64} << 20, nullptr, false})) {}
  ~Writer() {
    ggml_free(context_);
    gguf_free(gguf_);
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  void Keys();
  void Tensors();
  bool Write(const std::string& path) { return gguf_write_to_file(gguf_, path.c_str(), false); }

 private:
  std::string Key(const char* name) const { return model_.architecture + "." + name; }
  void Set(const char* name, int value) {
    gguf_set_val_u32(gguf_, Key(name).c_str(), static_cast<std::uint32_t>(value));
  }
  void Set(const char* name, float value) { gguf_set_val_f32(gguf_, Key(name).c_str(), value); }
  void Layer(const std::string& block);
  // gain: standard deviation of an output, for inputs of 1.
  void Matrix(const std::string& name, int inputs, int outputs, float gain);
  void Norm(const std::string& name, int size);
  ggml_tensor* Add(const std::string& name, std::initializer_list<std::int64_t> shape);

  const TinyModel& model_;
  std::mt19937 random_;
  gguf_context* gguf_;
  ggml_context* context_;
};

void Writer::Keys() {
  gguf_set_val_str(gguf_, "general.architecture", model_.architecture.c_str());
  gguf_set_val_str(gguf_, "tokenizer.ggml.model", "none");
  Set("vocab_size", model_.vocabulary);
  Set("context_length", model_.context);
  Set("embedding_length", model_.embedding);
  Set("block_count", model_.layers);
  Set("feed_forward_length", model_.feed_forward);
  Set("attention.head_count", model_.heads);
  Set("attention.head_count_kv", model_.kv_heads);
  Set("attention.key_length", model_.head_dim);
  Set("attention.value_length", model_.head_dim);
  Set("rope.dimension_count", model_.head_dim);
  if (model_.architecture == "cohere2") {
    Set("attention.layer_norm_epsilon", 1e-5F);
    Set("logit_scale", 1.0F);
  } else {
    Set("attention.layer_norm_rms_epsilon", 1e-5F);
  }
  if (model_.window > 0) {
    Set("attention.sliding_window", model_.window);
    Set("attention.sliding_window_pattern", model_.window_pattern);
  }
}

void Writer::Tensors() {
  Matrix("token_embd.weight", model_.embedding, model_.vocabulary, 1);
  Norm("output_norm.weight", model_.embedding);
  for (int i = 0; i < model_.layers; ++i) Layer("blk." + std::to_string(i) + ".");
}

void Writer::Layer(const std::string& block) {
  const int embedding = model_.embedding;
  const int query_dims = model_.heads * model_.head_dim;
  const int key_dims = model_.kv_heads * model_.head_dim;
  const bool cohere = model_.architecture == "cohere2";
  const bool gemma = model_.architecture == "gemma3";
  // A gain above 1 spreads the scores, so that attention is neither uniform nor a single key.
  const float score_gain = 1.2F;
  Norm(block + "attn_norm.weight", embedding);
  Matrix(block + "attn_q.weight", embedding, query_dims, score_gain);
  Matrix(block + "attn_k.weight", embedding, key_dims, score_gain);
  Matrix(block + "attn_v.weight", embedding, key_dims, 1);
  Matrix(block + "attn_output.weight", query_dims, embedding, 1.5F);
  if (gemma || model_.architecture == "qwen3") {
    Norm(block + "attn_q_norm.weight", model_.head_dim);
    Norm(block + "attn_k_norm.weight", model_.head_dim);
  }
  if (!cohere) Norm(block + "ffn_norm.weight", embedding);
  Matrix(block + "ffn_gate.weight", embedding, model_.feed_forward, 1);
  Matrix(block + "ffn_up.weight", embedding, model_.feed_forward, 1);
  Matrix(block + "ffn_down.weight", model_.feed_forward, embedding, 1);
  if (gemma) {
    Norm(block + "post_attention_norm.weight", embedding);
    Norm(block + "post_ffw_norm.weight", embedding);
  }
}

void Writer::Matrix(const std::string& name, int inputs, int outputs, float gain) {
  ggml_tensor* tensor = Add(name, {inputs, outputs});
  std::normal_distribution<float> normal(0, gain / std::sqrt(static_cast<float>(inputs)));
  auto* values = static_cast<float*>(tensor->data);
  for (std::int64_t i = 0; i < ggml_nelements(tensor); ++i) values[i] = normal(random_);
}

void Writer::Norm(const std::string& name, int size) {
  ggml_tensor* tensor = Add(name, {size});
  std::uniform_real_distribution<float> near_one(0.8F, 1.2F);
  auto* values = static_cast<float*>(tensor->data);
  for (int i = 0; i < size; ++i) values[i] = near_one(random_);
}

ggml_tensor* Writer::Add(const std::string& name, std::initializer_list<std::int64_t> shape) {
  ggml_tensor* tensor =
      ggml_new_tensor(context_, GGML_TYPE_F32, static_cast<int>(shape.size()), shape.begin());
  ggml_set_name(tensor, name.c_str());
  gguf_add_tensor(gguf_, tensor);
  return tensor;
}

}  // namespace

TinyModel TinyLlama() { return {.architecture = "llama"}; }

TinyModel TinyQwen3() {
  return {.architecture = "qwen3", .heads = 8, .kv_heads = 2, .head_dim = 128, .seed = 2};
}

TinyModel TinyGemma3() {
  return {.architecture = "gemma3",
          .heads = 4,
          .kv_heads = 1,
          .head_dim = 256,
          .window = 96,
          .window_pattern = 2,
          .seed = 3};
}

TinyModel TinyCohere2() {
  return {.architecture = "cohere2",
          .embedding = 256,
          .heads = 4,
          .kv_heads = 4,
          .head_dim = 64,
          .window = 64,
          .window_pattern = 4,
          .seed = 4};
}

bool WriteGguf(const TinyModel& model, const std::string& path) {
  Writer writer(model);
  writer.Keys();
  writer.Tensors();
  return writer.Write(path);
}

}  // namespace coppice::testing
