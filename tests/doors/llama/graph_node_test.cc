// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Reading and rewriting nodes, on graphs that are built here as llama.cpp builds them.
#include <ggml-backend.h>
#include <ggml.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "flash_node.h"
#include "node_records.h"
#include "session.h"

namespace coppice::door {
namespace {

constexpr int kDim = 64;
constexpr int kHeads = 4;
constexpr int kKvHeads = 2;
constexpr int kCells = 32;
constexpr int kTokens = 3;

// Operands of one layer in host memory.
class GraphNode : public ::testing::Test {
 protected:
  GraphNode()
      : context_(ggml_init({std::size_t{1} << 20, nullptr, true}), &ggml_free),
        buffer_(nullptr, &ggml_backend_buffer_free) {
    key_cache_ = Named("cache_k_l7", GGML_TYPE_F16);
    value_cache_ = Named("cache_v_l7", GGML_TYPE_F16);
    queries_ = ggml_new_tensor_3d(context_.get(), GGML_TYPE_F32, kDim, kHeads, kTokens);
    mask_ = ggml_new_tensor_4d(context_.get(), GGML_TYPE_F16, 16, kTokens, 1, 1);
    list_ = ggml_new_tensor_1d(context_.get(), GGML_TYPE_I64, kTokens);
    rows_ = ggml_new_tensor_2d(context_.get(), GGML_TYPE_F32, kDim * kKvHeads, kTokens);
  }

  ggml_tensor* Named(const char* name, ggml_type type) {
    ggml_tensor* cache = ggml_new_tensor_3d(context_.get(), type, kDim * kKvHeads, kCells, 1);
    ggml_set_name(cache, name);
    return cache;
  }

  // Heads of cells [first, first + 16) of a cache.
  ggml_tensor* Rows(ggml_tensor* cache, int first) {
    const std::size_t head = ggml_row_size(cache->type, kDim);
    ggml_tensor* view =
        ggml_view_4d(context_.get(), cache, kDim, kKvHeads, 16, 1, head, cache->nb[1], cache->nb[2],
                     static_cast<std::size_t>(first) * cache->nb[1]);
    return ggml_permute(context_.get(), view, 0, 2, 1, 3);
  }

  ggml_tensor* Flash(int first = 0, float max_bias = 0, float softcap = 0) {
    ggml_tensor* queries = ggml_permute(context_.get(), queries_, 0, 2, 1, 3);
    return ggml_flash_attn_ext(context_.get(), queries, Rows(key_cache_, first),
                               Rows(value_cache_, first), mask_, 0.125F, max_bias, softcap);
  }

  void Allocate() {
    buffer_.reset(
        ggml_backend_alloc_ctx_tensors_from_buft(context_.get(), ggml_backend_cpu_buffer_type()));
    ASSERT_NE(buffer_, nullptr);
  }

  std::string Refusal(const ggml_tensor* node) {
    return ReadFlashNode(*node, ReadFlashParams(node->op_params), read_);
  }

  std::unique_ptr<ggml_context, void (*)(ggml_context*)> context_;
  std::unique_ptr<ggml_backend_buffer, void (*)(ggml_backend_buffer*)> buffer_;
  ggml_tensor* key_cache_;
  ggml_tensor* value_cache_;
  ggml_tensor* queries_;
  ggml_tensor* mask_;
  ggml_tensor* list_;
  ggml_tensor* rows_;
  FlashNode read_;
};

TEST_F(GraphNode, OperandsAsViews) {
  ggml_tensor* node = Flash(8);
  Allocate();
  ASSERT_EQ(Refusal(node), "");
  EXPECT_EQ(read_.key_layer, 7);
  EXPECT_EQ(read_.first_cell, 8);
  EXPECT_EQ(read_.scale, 0.125F);
  EXPECT_EQ(read_.queries.tokens, kTokens);
  EXPECT_EQ(read_.queries.heads, kHeads);
  EXPECT_EQ(read_.queries.Row(2, 1), static_cast<const std::byte*>(queries_->data) +
                                         (2 * kHeads + 1) * kDim * sizeof(float));
  EXPECT_EQ(read_.keys.tokens, 16);
  EXPECT_EQ(read_.keys.heads, kKvHeads);
  EXPECT_EQ(read_.keys.type, DType::kF16);
  EXPECT_EQ(read_.keys.Row(3, 1),
            static_cast<const std::byte*>(key_cache_->data) + ((8 + 3) * kKvHeads + 1) * kDim * 2);
  EXPECT_EQ(read_.values.dim, kDim);
  EXPECT_EQ(read_.output.tokens, kTokens);
  EXPECT_EQ(read_.output.Row(2, 3), static_cast<float*>(node->data) + (2 * kHeads + 3) * kDim);
  EXPECT_EQ(read_.mask, mask_->data);
  EXPECT_EQ(read_.mask_stride, 32);
}

TEST_F(GraphNode, OtherMeaningsAreRefused) {
  ggml_tensor* alibi = Flash(0, 8);
  ggml_tensor* sparse = Flash();
  ggml_flash_attn_ext_set_n_kv_max(sparse, 8);
  Allocate();
  EXPECT_EQ(Refusal(alibi), "ALiBi: left to llama.cpp");
  EXPECT_EQ(Refusal(sparse), "the model's own sparse attention: left to llama.cpp");
}

TEST_F(GraphNode, CapsAndSinksAreRead) {
  ggml_tensor* plain = Flash();
  ggml_tensor* capped = Flash(0, 0, 50);
  ggml_tensor* with_sinks = Flash();
  ggml_tensor* sinks = ggml_new_tensor_1d(context_.get(), GGML_TYPE_F32, kHeads);
  ggml_flash_attn_ext_add_sinks(with_sinks, sinks);
  Allocate();
  ASSERT_EQ(Refusal(capped), "");
  EXPECT_EQ(read_.softcap, 50.0F);
  EXPECT_EQ(read_.scale, 0.125F);
  ASSERT_EQ(Refusal(with_sinks), "");
  EXPECT_EQ(read_.sinks, sinks->data);
  EXPECT_EQ(read_.softcap, 0.0F);
  ASSERT_EQ(Refusal(plain), "");
  EXPECT_EQ(read_.sinks, nullptr);
}

TEST_F(GraphNode, OtherTypesAndPlacesAreRefused) {
  ggml_tensor* before = Flash();
  EXPECT_EQ(Refusal(before), "tensors on a device: left to llama.cpp");
  key_cache_ = Named("cache_k_l0", GGML_TYPE_Q4_0);
  ggml_tensor* quantised = Flash();
  key_cache_ = Named("another", GGML_TYPE_F16);
  ggml_tensor* uncached = Flash();
  Allocate();
  EXPECT_EQ(Refusal(quantised), "q4_0 keys: left to llama.cpp");
  EXPECT_EQ(Refusal(uncached), "keys outside a KV cache: left to llama.cpp");
}

TEST_F(GraphNode, LayersByName) {
  const auto layer = [this](const char* name) {
    ggml_set_name(key_cache_, name);
    return KeyCacheLayer(key_cache_);
  };
  EXPECT_EQ(layer("cache_k_l0"), 0);
  EXPECT_EQ(layer("cache_k_l123"), 123);
  EXPECT_EQ(layer("cache_v_l0"), -1);
  EXPECT_EQ(layer("cache_k_l"), -1);
  EXPECT_EQ(layer("cache_k_l1 (view)"), -1);
  EXPECT_EQ(layer("cache_k_l-1"), -1);
  EXPECT_EQ(layer("cache_k_l99999999999"), -1);
}

TEST_F(GraphNode, WritesOfKeys) {
  ggml_tensor* write = ggml_set_rows(context_.get(), key_cache_, rows_, list_);
  ggml_tensor* values = ggml_set_rows(context_.get(), value_cache_, rows_, list_);
  ggml_tensor* view = Rows(key_cache_, 0);
  ggml_tensor* shift = ggml_scale_inplace(context_.get(), key_cache_, 2);
  Allocate();
  auto* list = static_cast<std::int64_t*>(list_->data);
  for (int i = 0; i < kTokens; ++i) list[i] = 20 + i;
  std::vector<std::int64_t> cells;
  const KeyEvent event = ReadKeyEvent(*write, cells);
  EXPECT_EQ(event.kind, KeyEvent::Kind::kWrite);
  EXPECT_EQ(event.layer, 7);
  EXPECT_EQ(event.cache_cells, kCells);
  EXPECT_EQ(event.list, list_);
  EXPECT_EQ(cells, (std::vector<std::int64_t>{20, 21, 22}));
  EXPECT_EQ(ReadKeyEvent(*values, cells).kind, KeyEvent::Kind::kNone);
  EXPECT_EQ(ReadKeyEvent(*view, cells).kind, KeyEvent::Kind::kNone);
  EXPECT_EQ(ReadKeyEvent(*shift, cells).kind, KeyEvent::Kind::kChange);
}

void Nothing(ggml_tensor*, int, int, void*) {}

TEST_F(GraphNode, TakenAndGivenBack) {
  ggml_tensor* node = Flash();
  ggml_tensor* other = ggml_scale(context_.get(), mask_, 1);
  const ggml_tensor before = *node;
  NodeRecords records(&Nothing, nullptr);
  EXPECT_EQ(records.Find(*other), nullptr);
  NodeRecord* record = records.Find(*node);
  ASSERT_NE(record, nullptr);
  EXPECT_EQ(ReadFlashParams(record->flash_params.data()).scale, 0.125F);

  NodeRecords::Take(*record);
  EXPECT_EQ(node->op, GGML_OP_CUSTOM);
  EXPECT_EQ(records.Find(*node), record);
  NodeRecords::GiveBack(*record);
  EXPECT_EQ(std::memcmp(node, &before, sizeof(before)), 0);
}

TEST_F(GraphNode, AddressesAreReused) {
  ggml_tensor* node = Flash();
  NodeRecords records(&Nothing, nullptr);
  NodeRecords::Take(*records.Find(*node));
  // Another graph puts a custom operation of its own here, then attention with another scale.
  const int foreign = 1;
  std::memcpy(node->op_params, &foreign, sizeof(foreign));
  EXPECT_EQ(records.Find(*node), nullptr);
  node->op = GGML_OP_FLASH_ATTN_EXT;
  const float scale = 0.5F;
  std::memcpy(node->op_params, &scale, sizeof(scale));
  NodeRecord* record = records.Find(*node);
  ASSERT_NE(record, nullptr);
  EXPECT_EQ(ReadFlashParams(record->flash_params.data()).scale, 0.5F);
}

}  // namespace
}  // namespace coppice::door
