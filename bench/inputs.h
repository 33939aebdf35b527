// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Queries, keys and values to measure with, laid out as llama.cpp's cache lays them out: rows
// [token][kv_head][dim]. The same seed gives the same bits on any number of threads.
//
//   random  every number normal, on its own. Scores are nearly flat: nothing is worth selecting, and
//           a pruned result differs much from the dense one.
//   smooth  keys walk along the tokens (AR(1), correlation 0.98 from token to token, 0.36 over 50);
//           queries walk slower, are six times as long, and those of a KV head have 0.8 in common:
//           neighbours score alike and the attention is peaked, as in language models. It is the
//           case that tree search relies on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

#include "coppice/executor.h"
#include "coppice/status.h"
#include "coppice/tensor.h"

namespace coppice::bench {

struct Shape {
  std::int64_t tokens = 0;   // keys
  std::int64_t queries = 0;  // at the end of the tokens
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t dim = 0;
  DType type = DType::kF16;  // of keys and values; kQ8_0 takes dims that are multiples of 32

  std::size_t KvBytes() const {
    return 2 * static_cast<std::size_t>(RowBytes(type, tokens * kv_heads * dim));
  }
};

class Inputs {
 public:
  enum class Kind { kRandom, kSmooth };

  static Result<Inputs> Make(const Shape& shape, Kind kind, std::uint64_t seed, ThreadPool& pool);

  // Keys from outside, f32 [tokens, kv_heads, dim]; the last queries are the last keys of their KV
  // head, doubled, with noise: they look for what is like themselves.
  static Result<Inputs> FromKeys(const Shape& shape, std::span<const float> keys,
                                 std::uint64_t seed, ThreadPool& pool);

  TensorView queries() const;
  TensorView keys() const;
  TensorView values() const;
  const Shape& shape() const { return shape_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  using Bytes = std::unique_ptr<std::byte, Free>;

  static Result<Inputs> Allocate(const Shape& shape);
  void FillRandom(std::byte* rows, std::uint64_t seed, ThreadPool& pool);
  void WalkKeys(std::uint64_t seed, ThreadPool& pool);
  void WalkQueries(std::uint64_t seed);

  Shape shape_;
  Bytes queries_, keys_, values_;
};

}  // namespace coppice::bench
