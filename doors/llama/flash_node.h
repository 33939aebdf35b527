// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Reads a node of a llama.cpp graph: the operands of a flash-attention node as views, and the cells
// that a node writes to a KV cache. Changes nothing. Used by door.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "coppice/tensor.h"

struct ggml_tensor;

namespace coppice::door {

// A flash-attention node that our kernels can serve.
struct FlashNode {
  int key_layer = 0;            // the layer that the key cache belongs to
  std::int64_t first_cell = 0;  // cell of keys.Row(0, 0), counted over the whole cache
  TensorView queries;           // f32 [tokens, heads, dim_k]
  TensorView keys;              // [cells, kv_heads, dim_k]
  TensorView values;            // [cells, kv_heads, dim_v]
  OutputView output;            // [tokens, heads, dim_v]
  float scale = 1;
  float softcap = 0;                // 0: none
  const float* sinks = nullptr;     // [heads] or null
  const std::byte* mask = nullptr;  // f16 [tokens, cells]
  std::int64_t mask_stride = 0;     // bytes
};

// What the parameters of a flash-attention node say.
struct FlashParams {
  float scale = 1;
  float max_bias = 0;  // ALiBi
  float softcap = 0;
  std::int32_t sparse_keys = 0;  // > 0: the model itself picks that many keys
};

// params: the node's op_params, or what they were before we took the node.
FlashParams ReadFlashParams(const void* params);

// Empty when `out` is filled, else why the node must be left to llama.cpp.
std::string ReadFlashNode(const ggml_tensor& node, const FlashParams& params, FlashNode& out);

// The layer whose key cache `cache` is, by its name; -1 when it is none.
int KeyCacheLayer(const ggml_tensor* cache);

// What a node does to the keys of a cache.
struct KeyEvent {
  enum class Kind { kNone, kWrite, kChange };
  Kind kind = Kind::kNone;
  int layer = -1;
  std::int64_t cache_cells = 0;
  const void* list = nullptr;  // identity of the list of cells
};

// cells: filled for a write; its memory is reused.
KeyEvent ReadKeyEvent(const ggml_tensor& node, std::vector<std::int64_t>& cells);

}  // namespace coppice::door
