// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "flash_node.h"

#include <ggml-backend.h>
#include <ggml.h>

#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>

namespace coppice::door {
namespace {

const ggml_tensor* Base(const ggml_tensor* tensor) {
  return tensor->view_src != nullptr ? tensor->view_src : tensor;
}

bool InHostMemory(const ggml_tensor* tensor) {
  const ggml_tensor* base = Base(tensor);
  return tensor->data != nullptr && base->buffer != nullptr &&
         ggml_backend_buffer_is_host(base->buffer);
}

std::optional<DType> TypeOf(const ggml_tensor* tensor) {
  switch (tensor->type) {
    case GGML_TYPE_F32:
      return DType::kF32;
    case GGML_TYPE_F16:
      return DType::kF16;
    case GGML_TYPE_BF16:
      return DType::kBF16;
    case GGML_TYPE_Q8_0:
      return DType::kQ8_0;
    default:
      return std::nullopt;
  }
}

// A tensor [dim, tokens, heads, 1] in ggml's order of axes.
TensorView ViewOf(const ggml_tensor* tensor, DType type) {
  return {tensor->data,
          type,
          tensor->ne[1],
          tensor->ne[2],
          tensor->ne[0],
          static_cast<std::int64_t>(tensor->nb[1]),
          static_cast<std::int64_t>(tensor->nb[2])};
}

std::string LeftToLlama(std::string_view what) { return std::string(what) + ": left to llama.cpp"; }

// Empty when the node computes what our kernels compute: softmax(cap(scale q.k^T) + mask) v, with or
// without attention sinks.
std::string RefuseMeaning(const ggml_tensor& node, const FlashParams& params) {
  if (params.max_bias != 0) return LeftToLlama("ALiBi");
  if (params.sparse_keys > 0) return LeftToLlama("the model's own sparse attention");
  const ggml_tensor* mask = node.src[3];
  if (mask == nullptr) return LeftToLlama("no mask");
  if (node.src[0]->ne[3] != 1 || node.src[1]->ne[3] != 1 || mask->ne[3] != 1) {
    return LeftToLlama("several streams");
  }
  if (mask->ne[2] != 1) return LeftToLlama("a mask for each head");
  if (KeyCacheLayer(Base(node.src[1])) < 0) return LeftToLlama("keys outside a KV cache");
  return {};
}

// Empty when the operands lie where and as our kernels can read them.
std::string RefuseStorage(const ggml_tensor& node) {
  const ggml_tensor* queries = node.src[0];
  const ggml_tensor* mask = node.src[3];
  for (const ggml_tensor* tensor : {&node, queries, static_cast<const ggml_tensor*>(node.src[1]),
                                    static_cast<const ggml_tensor*>(node.src[2]), mask}) {
    if (!InHostMemory(tensor)) return LeftToLlama("tensors on a device");
  }
  for (int i : {1, 2}) {
    const ggml_tensor* tensor = node.src[i];
    const bool whole_blocks = tensor->ne[0] % ggml_blck_size(tensor->type) == 0;
    if (!TypeOf(tensor) || tensor->nb[0] != ggml_type_size(tensor->type) || !whole_blocks) {
      return LeftToLlama(std::string(ggml_type_name(tensor->type)) +
                         (i == 1 ? " keys" : " values"));
    }
  }
  const ggml_tensor* sinks = node.src[4];
  if (sinks != nullptr && (!InHostMemory(sinks) || sinks->type != GGML_TYPE_F32 ||
                           !ggml_is_contiguous(sinks) || sinks->ne[0] != queries->ne[2])) {
    return LeftToLlama("attention sinks of unknown layout");
  }
  if (queries->type != GGML_TYPE_F32 || queries->nb[0] != sizeof(float)) {
    return LeftToLlama("queries that are not f32");
  }
  if (node.type != GGML_TYPE_F32 || node.nb[0] != sizeof(float)) {
    return LeftToLlama("output that is not f32");
  }
  if (mask->type != GGML_TYPE_F16 || mask->nb[0] != 2 || mask->ne[0] < node.src[1]->ne[1] ||
      mask->ne[1] < queries->ne[1]) {
    return LeftToLlama("a mask of unknown layout");
  }
  return {};
}

// Views and reshapes do not touch memory.
bool Writes(const ggml_tensor& node) {
  switch (node.op) {
    case GGML_OP_NONE:
    case GGML_OP_VIEW:
    case GGML_OP_RESHAPE:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE:
      return false;
    default:
      return true;
  }
}

// False when the cells are not readable here.
bool ReadCells(const ggml_tensor* list, std::vector<std::int64_t>& cells) {
  cells.clear();
  if (list == nullptr || !InHostMemory(list) || !ggml_is_contiguous(list)) return false;
  const std::int64_t count = ggml_nelements(list);
  if (list->type == GGML_TYPE_I64) {
    const auto* data = static_cast<const std::int64_t*>(list->data);
    cells.assign(data, data + count);
    return true;
  }
  if (list->type == GGML_TYPE_I32) {
    const auto* data = static_cast<const std::int32_t*>(list->data);
    cells.assign(data, data + count);
    return true;
  }
  return false;
}

}  // namespace

FlashParams ReadFlashParams(const void* params) {
  FlashParams read;
  const auto* bytes = static_cast<const std::byte*>(params);
  std::memcpy(&read.scale, bytes, 4);
  std::memcpy(&read.max_bias, bytes + 4, 4);
  std::memcpy(&read.softcap, bytes + 8, 4);
  std::memcpy(&read.sparse_keys, bytes + 16, 4);
  return read;
}

std::string ReadFlashNode(const ggml_tensor& node, const FlashParams& params, FlashNode& out) {
  if (std::string refusal = RefuseMeaning(node, params); !refusal.empty()) return refusal;
  if (std::string refusal = RefuseStorage(node); !refusal.empty()) return refusal;
  const ggml_tensor* keys = node.src[1];
  const ggml_tensor* cache = Base(keys);
  out.key_layer = KeyCacheLayer(cache);
  out.queries = ViewOf(node.src[0], DType::kF32);
  out.keys = ViewOf(keys, *TypeOf(keys));
  out.values = ViewOf(node.src[2], *TypeOf(node.src[2]));
  out.first_cell =
      (static_cast<const std::byte*>(keys->data) - static_cast<const std::byte*>(cache->data)) /
      out.keys.token_stride;
  // The output is [dim, heads, tokens]: heads and tokens have changed places.
  out.output = {static_cast<float*>(node.data),
                node.ne[2],
                node.ne[1],
                node.ne[0],
                static_cast<std::int64_t>(node.nb[2]),
                static_cast<std::int64_t>(node.nb[1])};
  out.scale = params.scale;
  out.softcap = params.softcap;
  out.sinks = node.src[4] == nullptr ? nullptr : static_cast<const float*>(node.src[4]->data);
  out.mask = static_cast<const std::byte*>(node.src[3]->data);
  out.mask_stride = static_cast<std::int64_t>(node.src[3]->nb[1]);
  return {};
}

int KeyCacheLayer(const ggml_tensor* cache) {
  constexpr std::string_view kPrefix = "cache_k_l";
  const std::string_view name(cache->name, strnlen(cache->name, sizeof(cache->name)));
  if (!name.starts_with(kPrefix)) return -1;
  const std::string_view digits = name.substr(kPrefix.size());
  int layer = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), layer);
  return error == std::errc() && end == digits.data() + digits.size() && layer >= 0 ? layer : -1;
}

KeyEvent ReadKeyEvent(const ggml_tensor& node, std::vector<std::int64_t>& cells) {
  if (node.view_src == nullptr || !Writes(node)) return {};
  KeyEvent event;
  event.layer = KeyCacheLayer(node.view_src);
  if (event.layer < 0) return {};
  event.cache_cells = node.view_src->ne[1] * node.view_src->ne[2];
  event.list = node.src[1];
  const bool write = node.op == GGML_OP_SET_ROWS && ReadCells(node.src[1], cells);
  event.kind = write ? KeyEvent::Kind::kWrite : KeyEvent::Kind::kChange;
  return event;
}

}  // namespace coppice::door
