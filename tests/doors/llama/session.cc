// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "session.h"

#include <ggml-backend.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace coppice::testing {
namespace {

void PrintOnlyErrors(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

void LoadBackends() {
  static const bool once = [] {
    llama_log_set(&PrintOnlyErrors, nullptr);
    ggml_backend_load_all_from_path(COPPICE_LLAMA_BACKENDS_DIR);
    llama_backend_init();
    return true;
  }();
  static_cast<void>(once);
}

double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    norm += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace

ModelPtr LoadModel(const std::string& path) {
  LoadBackends();
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  return {llama_model_load_from_file(path.c_str(), params), &llama_model_free};
}

ModelPtr LoadTiny(const TinyModel& model) {
  const std::string path = ::testing::TempDir() + "coppice-tiny-" + model.architecture + "-" +
                           std::to_string(getpid()) + ".gguf";
  if (!WriteGguf(model, path)) return {nullptr, &llama_model_free};
  ModelPtr loaded = LoadModel(path);
  std::remove(path.c_str());
  return loaded;
}

ModelPtr LoadRealModel() {
  const char* path = std::getenv("COPPICE_TEST_MODEL");
  return path == nullptr ? ModelPtr(nullptr, &llama_model_free) : LoadModel(path);
}

Session::Session(llama_model* model, const SessionOptions& options)
    : vocabulary_(llama_vocab_n_tokens(llama_model_get_vocab(model))),
      context_(nullptr, &llama_free) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(options.context);
  params.n_batch = params.n_ctx;
  params.n_ubatch = static_cast<std::uint32_t>(options.batch);
  params.n_threads = options.threads;
  params.n_threads_batch = options.threads;
  params.n_seq_max = static_cast<std::uint32_t>(options.sequences);
  params.kv_unified = options.unified;
  params.swa_full = options.full_window_cache;
  params.type_k = options.key_type;
  params.type_v = options.value_type;
  params.flash_attn_type =
      options.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  if (options.attention) {
    auto created = LlamaAttention::Create(*options.attention);
    EXPECT_TRUE(created.ok()) << created.status().message();
    if (!created.ok()) return;
    attention_ = std::move(created).value();
    const Status attached = attention_->Attach(params, model);
    EXPECT_TRUE(attached.ok()) << attached.message();
  }
  context_.reset(llama_init_from_model(model, params));
  EXPECT_NE(context_, nullptr);
}

void Session::Decode(const std::vector<SequenceToken>& tokens, int keep) {
  const int count = static_cast<int>(tokens.size());
  llama_batch batch = llama_batch_init(count, 0, 1);
  batch.n_tokens = count;
  for (int i = 0; i < count; ++i) {
    const SequenceToken& token = tokens[static_cast<std::size_t>(i)];
    batch.token[i] = token.token;
    batch.pos[i] = token.position;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = token.sequence;
    batch.logits[i] = i >= count - keep ? 1 : 0;
  }
  const int failed = llama_decode(context_.get(), batch);
  EXPECT_EQ(failed, 0);
  for (int i = std::max(0, count - keep); i < count && failed == 0; ++i) {
    const float* row = llama_get_logits_ith(context_.get(), i);
    logits_.emplace_back(row, row + vocabulary_);
  }
  llama_batch_free(batch);
}

void Session::Feed(int count, llama_pos position, llama_seq_id sequence) {
  std::vector<SequenceToken> tokens;
  for (llama_pos p = position; p < position + count; ++p) {
    tokens.push_back({TokenAt(p, sequence), p, sequence});
  }
  Decode(tokens);
}

void Session::Step(int count, llama_pos position, llama_seq_id sequence) {
  for (llama_pos p = position; p < position + count; ++p) Feed(1, p, sequence);
}

llama_token Session::TokenAt(llama_pos position, llama_seq_id sequence) const {
  const auto mixed = (static_cast<std::uint32_t>(position) * 2654435761U) ^
                     (static_cast<std::uint32_t>(sequence) * 40503U);
  return static_cast<llama_token>((mixed >> 7U) % static_cast<std::uint32_t>(vocabulary_));
}

Comparison Compare(const Session& a, const Session& b) {
  Comparison result;
  EXPECT_EQ(a.logits().size(), b.logits().size());
  result.rows = std::min(a.logits().size(), b.logits().size());
  EXPECT_GT(result.rows, 0U);
  for (std::size_t i = 0; i < result.rows; ++i) {
    const std::vector<float>& row_a = a.logits()[i];
    const std::vector<float>& row_b = b.logits()[i];
    const double error = RelativeError(row_a, row_b);
    // Not std::max: a NaN must not get lost.
    if (!(error <= result.worst)) result.worst = error;
    result.same_bits = result.same_bits &&
                       std::memcmp(row_a.data(), row_b.data(), row_a.size() * sizeof(float)) == 0;
  }
  return result;
}

AgainstStock RunAgainstStock(llama_model* model, const SessionOptions& options,
                             const AttentionSettings& settings, const Script& script) {
  SessionOptions stock_options = options;
  stock_options.attention.reset();
  SessionOptions our_options = options;
  our_options.attention = settings;
  Session stock(model, stock_options);
  Session ours(model, our_options);
  if (!stock.ok() || !ours.ok()) return {};
  script(stock);
  script(ours);
  return {Compare(ours, stock), ours.attention().stats()};
}

AttentionSettings DenseSettings() {
  AttentionSettings settings;
  settings.method = "dense";
  return settings;
}

AttentionSettings EagerSettings() {
  AttentionSettings settings;
  settings.budget = 64;
  settings.sink = 8;
  settings.window = 32;
  settings.dense_layers = 0;
  return settings;
}

}  // namespace coppice::testing
