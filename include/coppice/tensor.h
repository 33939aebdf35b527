// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Views of somebody else's memory. Every tensor of this library is laid out [tokens, heads, dim]:
// row (t, h) starts at data + t * token_stride + h * head_stride and holds `dim` elements, so rows
// of a KV cache, pages and transposed heads are all read in place. Strides are in bytes.
//
//   std::vector<float> q(tokens * heads * dim);
//   coppice::TensorView view = coppice::Contiguous(q.data(), coppice::DType::kF32,
//                                                  tokens, heads, dim);
#pragma once

#include <cstddef>
#include <cstdint>

namespace coppice {

// kQ8_0 is the 8-bit format of GGUF caches: a row is cut into blocks of 32 elements, each block is
// an f16 scale d followed by 32 int8 q (34 bytes), and an element is d * q.
enum class DType : std::uint8_t { kF32, kF16, kBF16, kQ8_0 };

constexpr std::int64_t kQ8BlockSize = 32;
constexpr std::int64_t kQ8BlockBytes = 34;

// Bytes of `dim` elements side by side; dim is a multiple of 32 for kQ8_0.
constexpr std::int64_t RowBytes(DType type, std::int64_t dim) {
  if (type == DType::kQ8_0) return dim / kQ8BlockSize * kQ8BlockBytes;
  return dim * (type == DType::kF32 ? 4 : 2);
}
constexpr const char* NameOf(DType type) {
  constexpr const char* kNames[] = {"f32", "f16", "bf16", "q8_0"};
  return kNames[static_cast<int>(type)];
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
  const std::int64_t row = RowBytes(type, dim);
  return {data, type, tokens, heads, dim, heads * row, row};
}

inline OutputView Contiguous(float* data, std::int64_t tokens, std::int64_t heads,
                             std::int64_t dim) {
  return {data, tokens, heads, dim, heads * dim * 4, dim * 4};
}

}  // namespace coppice
