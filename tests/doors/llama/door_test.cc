// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The door without llama.cpp: a layer's nodes are built here, shown to it, and run by threads of
// our own, so that the thread sanitizer sees all of the synchronisation.
#include "door.h"

#include <ggml-backend.h>
#include <ggml.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "session.h"

namespace coppice::door {
namespace {

constexpr int kDim = 64;
constexpr int kHeads = 4;
constexpr int kKvHeads = 2;
constexpr int kCells = 512;

// How ggml lays out the parameters of a custom operation.
struct CustomParams {
  ggml_custom_op_t run;
  int tasks;
  void* userdata;
};

// One layer over a cache that holds `cells` keys, the last `tokens` of them just written.
class OneLayer {
 public:
  OneLayer(int cells, int tokens)
      : context_(ggml_init({std::size_t{1} << 20, nullptr, true}), &ggml_free),
        buffer_(nullptr, &ggml_backend_buffer_free) {
    ggml_context* c = context_.get();
    ggml_tensor* keys = Cache("cache_k_l0");
    ggml_tensor* values = Cache("cache_v_l0");
    ggml_tensor* queries = ggml_new_tensor_3d(c, GGML_TYPE_F32, kDim, kHeads, tokens);
    ggml_tensor* mask = ggml_new_tensor_4d(c, GGML_TYPE_F16, kCells, tokens, 1, 1);
    ggml_tensor* list = ggml_new_tensor_1d(c, GGML_TYPE_I64, tokens);
    ggml_tensor* rows = ggml_new_tensor_2d(c, GGML_TYPE_F32, kDim * kKvHeads, tokens);
    write = ggml_set_rows(c, keys, rows, list);
    attention = ggml_flash_attn_ext(c, ggml_permute(c, queries, 0, 2, 1, 3), Heads(keys),
                                    Heads(values), mask, 0.125F, 0, 0);
    buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(c, ggml_backend_cpu_buffer_type()));

    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    auto* query_values = static_cast<float*>(queries->data);
    for (std::int64_t i = 0; i < ggml_nelements(queries); ++i) query_values[i] = normal(random);
    for (ggml_tensor* cache : {keys, values}) {
      auto* halves = static_cast<ggml_fp16_t*>(cache->data);
      for (std::int64_t i = 0; i < ggml_nelements(cache); ++i) {
        halves[i] = ggml_fp32_to_fp16(normal(random));
      }
    }
    auto* visible = static_cast<ggml_fp16_t*>(mask->data);
    for (int t = 0; t < tokens; ++t) {
      static_cast<std::int64_t*>(list->data)[t] = cells - tokens + t;
      for (int k = 0; k < kCells; ++k) {
        visible[t * kCells + k] = ggml_fp32_to_fp16(k <= cells - tokens + t ? 0 : -INFINITY);
      }
    }
  }

  void Run(int threads) const {
    CustomParams params;
    std::memcpy(&params, attention->op_params, sizeof(params));
    std::vector<std::thread> pool;
    for (int i = 0; i < threads; ++i) {
      pool.emplace_back(
          [&params, this, i, threads] { params.run(attention, i, threads, params.userdata); });
    }
    for (std::thread& thread : pool) thread.join();
  }

  std::vector<float> Output() const {
    const auto* data = static_cast<const float*>(attention->data);
    return {data, data + ggml_nelements(attention)};
  }

  ggml_tensor* write;
  ggml_tensor* attention;

 private:
  ggml_tensor* Cache(const char* name) {
    ggml_tensor* cache =
        ggml_new_tensor_3d(context_.get(), GGML_TYPE_F16, kDim * kKvHeads, kCells, 1);
    ggml_set_name(cache, name);
    return cache;
  }
  ggml_tensor* Heads(ggml_tensor* cache) {
    ggml_tensor* view = ggml_view_4d(context_.get(), cache, kDim, kKvHeads, kCells, 1, kDim * 2,
                                     cache->nb[1], cache->nb[2], 0);
    return ggml_permute(context_.get(), view, 0, 2, 1, 3);
  }

  std::unique_ptr<ggml_context, void (*)(ggml_context*)> context_;
  std::unique_ptr<ggml_backend_buffer, void (*)(ggml_backend_buffer*)> buffer_;
};

AttentionSettings Pruning() {
  AttentionSettings settings = testing::EagerSettings();
  settings.refresh = 1;
  return settings;
}

TEST(Door, SameBitsWhateverThreadsCome) {
  OneLayer layer(400, 64);
  std::vector<float> expected;
  for (const int threads : {1, 2, 3, 7}) {
    Door door(Pruning(), "");
    door.Configure(2, 0);
    for (int batch = 0; batch < 3; ++batch) {  // from the second on, all threads have a place
      door.OnNode(*layer.write);
      door.OnNode(*layer.attention);
      ASSERT_EQ(layer.attention->op, GGML_OP_CUSTOM);
      std::memset(layer.attention->data, 0xFF, ggml_nbytes(layer.attention));
      layer.Run(threads);
      if (expected.empty()) expected = layer.Output();
      EXPECT_EQ(layer.Output(), expected) << threads;
    }
    const LlamaStats stats = door.stats();
    EXPECT_EQ(stats.calls, 3U);
    EXPECT_EQ(stats.dense_fallbacks, 0U);
    EXPECT_EQ(stats.prefill.attention.keys_visible, 3ULL * kHeads * (64 * 336 + 64 * 65 / 2));
    EXPECT_LT(stats.prefill.attention.keys_read, stats.prefill.attention.keys_visible / 2);
    EXPECT_GT(stats.prefill.seconds, 0);
    layer.attention->op = GGML_OP_FLASH_ATTN_EXT;  // the next door sees a fresh graph
    const float params[3] = {0.125F, 0, 0};
    std::memset(layer.attention->op_params, 0, sizeof(layer.attention->op_params));
    std::memcpy(layer.attention->op_params, params, sizeof(params));
  }
}

TEST(Door, StatsMayBeReadWhileItRuns) {
  OneLayer layer(300, 1);
  Door door(Pruning(), "");
  door.Configure(2, 0);
  std::atomic<bool> done = false;
  std::thread reader([&] {
    while (!done) EXPECT_LE(door.stats().calls, 20U);
  });
  for (int step = 0; step < 20; ++step) {
    door.OnNode(*layer.write);
    door.OnNode(*layer.attention);
    layer.Run(2);
  }
  done = true;
  reader.join();
  EXPECT_EQ(door.stats().calls, 20U);
  EXPECT_GT(door.stats().decode.attention.keys_read, 0U);
}

TEST(Door, GivesBackWhatItCanNoLongerServe) {
  OneLayer layer(100, 4);
  Door door(Pruning(), "");
  door.Configure(1, 0);
  door.OnNode(*layer.write);
  door.OnNode(*layer.attention);
  ASSERT_EQ(layer.attention->op, GGML_OP_CUSTOM);
  // The same graph comes again, its queries now where no kernel of ours reads them.
  layer.attention->src[0]->type = GGML_TYPE_F16;
  door.OnNode(*layer.write);
  door.OnNode(*layer.attention);
  EXPECT_EQ(layer.attention->op, GGML_OP_FLASH_ATTN_EXT);
  EXPECT_EQ(ReadFlashParams(layer.attention->op_params).scale, 0.125F);
  EXPECT_EQ(door.stats().dense_fallbacks, 1U);
}

TEST(Door, LeavesWhatNobodyWrote) {
  OneLayer layer(100, 4);
  Door door(Pruning(), "");
  door.Configure(1, 0);
  door.OnNode(*layer.attention);
  EXPECT_EQ(layer.attention->op, GGML_OP_FLASH_ATTN_EXT);
  EXPECT_EQ(door.stats().fallback_reasons.count("a KV cache that nobody wrote: left to llama.cpp"),
            1U);
}

}  // namespace
}  // namespace coppice::door
