// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Views of somebody else's memory. Every tensor of this library is laid out [tokens, heads, dim]:
// element (t, h, i) lives at data + t * token_stride + h * head_stride + i * size of an element, so
// rows of a KV cache, pages and transposed heads are all read in place. Strides are in bytes.
//
//   std::vector<float> q(tokens * heads * dim);
//   coppice::TensorView view = coppice::Contiguous(q.data(), coppice::DType::kF32,
//                                                  tokens, heads, dim);
#pragma once

#include <cstddef>
#include <cstdint>

namespace coppice {

enum class DType : std::uint8_t { kF32, kF16, kBF16 };

constexpr std::size_t SizeOf(DType type) { return type == DType::kF32 ? 4 : 2; }
constexpr const char* NameOf(DType type) {
  return type == DType::kF32 ? "f32" : type == DType::kF16 ? "f16" : "bf16";
}

// Read-only [tokens, heads, dim].
struct TensorView {
  const void* data = nullptr;
  DType type = DType::kF32;
  std::int64_t tokens = 0;
  std::int64_t heads = 0;
  std::int64_t dim = 0;
  std::int64_t token_stride = 0;  // bytes
  std::int64_t head_stride = 0;   // bytes

  const std::byte* Row(std::int64_t token, std::int64_t head) const {
    return static_cast<const std::byte*>(data) + token * token_stride + head * head_stride;
  }
};

// Writable f32 [tokens, heads, dim].
struct OutputView {
  float* data = nullptr;
  std::int64_t tokens = 0;
  std::int64_t heads = 0;
  std::int64_t dim = 0;
  std::int64_t token_stride = 0;  // bytes
  std::int64_t head_stride = 0;   // bytes

  float* Row(std::int64_t token, std::int64_t head) const {
    return reinterpret_cast<float*>(reinterpret_cast<std::byte*>(data) + token * token_stride +
                                    head * head_stride);
  }
};

inline TensorView Contiguous(const void* data, DType type, std::int64_t tokens, std::int64_t heads,
                             std::int64_t dim) {
  const auto element = static_cast<std::int64_t>(SizeOf(type));
  return {data, type, tokens, heads, dim, heads * dim * element, dim * element};
}

inline OutputView Contiguous(float* data, std::int64_t tokens, std::int64_t heads,
                             std::int64_t dim) {
  return {data, tokens, heads, dim, heads * dim * 4, dim * 4};
}

}  // namespace coppice
