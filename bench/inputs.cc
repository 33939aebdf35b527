// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "inputs.h"

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "coppice/huge_pages.h"
#include "core/rows.h"

namespace coppice::bench {
namespace {

constexpr std::int64_t kChunkTokens = 512;  // filled by one item
constexpr float kKeyCorrelation = 0.98f;
constexpr float kQueryCorrelation = 0.995f;
constexpr float kGroupShare = 0.8f;
constexpr float kQueryLength = 6.0f;

// Draws are taken from 65,536 normal numbers, made once: 16 random bits each.
constexpr std::size_t kDraws = 1 << 16;

const std::vector<float>& Normals() {
  static const std::vector<float> normals = [] {
    std::vector<float> draws(kDraws);
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    for (float& draw : draws) draw = normal(random);
    return draws;
  }();
  return normals;
}

class Stream {
 public:
  explicit Stream(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0xD1B54A32D192ED03u) {
    if (state_ == 0) state_ = 1;
    for (int i = 0; i < 4; ++i) Next();
  }
  // 16 bits; xorshift64*, whose upper bits are the good ones.
  std::size_t Next() {
    if (left_ == 0) {
      state_ ^= state_ >> 12;
      state_ ^= state_ << 25;
      state_ ^= state_ >> 27;
      bits_ = (state_ * 0x2545F4914F6CDD1Du) >> 16;
      left_ = 3;
    }
    --left_;
    const std::size_t draw = bits_ & 0xFFFF;
    bits_ >>= 16;
    return draw;
  }

 private:
  std::uint64_t state_;
  std::uint64_t bits_ = 0;
  int left_ = 0;
};

struct Q8Block {
  std::byte bytes[kQ8BlockBytes];
};

std::vector<Q8Block> MakeBlocks() {
  std::vector<Q8Block> blocks(kDraws);
  Stream stream(3);
  float draws[kQ8BlockSize];
  for (Q8Block& block : blocks) {
    for (float& draw : draws) draw = Normals()[stream.Next()];
    StoreRow(draws, DType::kQ8_0, kQ8BlockSize, block.bytes);
  }
  return blocks;
}

// Fills `count` entries from a table of ready-made ones, kDraws of them.
template <typename T>
void FillFrom(const std::vector<T>& table, Stream& stream, std::byte* out, std::int64_t count) {
  T* entries = reinterpret_cast<T*>(out);
  for (std::int64_t i = 0; i < count; ++i) entries[i] = table[stream.Next()];
}

}  // namespace

Result<Inputs> Inputs::Allocate(const Shape& shape) {
  Inputs inputs;
  inputs.shape_ = shape;
  const auto allocate = [](std::size_t bytes) {
    Bytes memory(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
    if (memory != nullptr) PreferHugePages(memory.get(), bytes);  // as the door does with a cache
    return memory;
  };
  inputs.queries_ =
      allocate(static_cast<std::size_t>(shape.queries * shape.heads * shape.dim) * sizeof(float));
  inputs.keys_ = allocate(shape.KvBytes() / 2);
  inputs.values_ = allocate(shape.KvBytes() / 2);
  if (inputs.queries_ == nullptr || inputs.keys_ == nullptr || inputs.values_ == nullptr) {
    return Status::ResourceExhausted("no memory for " + std::to_string(shape.KvBytes()) +
                                     " bytes of keys and values; use fewer --tokens");
  }
  return inputs;
}

TensorView Inputs::queries() const {
  return Contiguous(queries_.get(), DType::kF32, shape_.queries, shape_.heads, shape_.dim);
}
TensorView Inputs::keys() const {
  return Contiguous(keys_.get(), shape_.type, shape_.tokens, shape_.kv_heads, shape_.dim);
}
TensorView Inputs::values() const {
  return Contiguous(values_.get(), shape_.type, shape_.tokens, shape_.kv_heads, shape_.dim);
}

void Inputs::FillRandom(std::byte* rows, std::uint64_t seed, ThreadPool& pool) {
  std::vector<std::uint16_t> halves;
  std::vector<Q8Block> blocks;
  if (shape_.type == DType::kQ8_0) {
    blocks = MakeBlocks();
  } else if (shape_.type != DType::kF32) {
    for (const float draw : Normals()) {
      halves.push_back(shape_.type == DType::kF16 ? F16FromF32(draw) : Bf16FromF32(draw));
    }
  }
  const std::int64_t row = shape_.kv_heads * shape_.dim;
  const std::int64_t chunks = (shape_.tokens + kChunkTokens - 1) / kChunkTokens;
  pool.Run(static_cast<int>(chunks), [&](int chunk, int) {
    const std::int64_t first = chunk * kChunkTokens;
    const std::int64_t count = std::min(kChunkTokens, shape_.tokens - first) * row;
    Stream stream(seed + static_cast<std::uint64_t>(chunk) * 0x51ED270B1ull);
    std::byte* out = rows + RowBytes(shape_.type, first * row);
    if (shape_.type == DType::kF32) {
      FillFrom(Normals(), stream, out, count);
    } else if (shape_.type == DType::kQ8_0) {
      FillFrom(blocks, stream, out, count / kQ8BlockSize);
    } else {
      FillFrom(halves, stream, out, count);
    }
  });
}

void Inputs::WalkKeys(std::uint64_t seed, ThreadPool& pool) {
  const float step = std::sqrt(1 - kKeyCorrelation * kKeyCorrelation);
  const std::int64_t row_bytes = RowBytes(shape_.type, shape_.kv_heads * shape_.dim);
  pool.Run(static_cast<int>(shape_.kv_heads), [&](int head, int) {
    Stream stream(seed + static_cast<std::uint64_t>(head) * 7919);
    std::vector<float> at(static_cast<std::size_t>(shape_.dim));
    for (float& x : at) x = Normals()[stream.Next()];
    std::byte* row = keys_.get() + RowBytes(shape_.type, head * shape_.dim);
    for (std::int64_t token = 0; token < shape_.tokens; ++token, row += row_bytes) {
      for (float& x : at) x = kKeyCorrelation * x + step * Normals()[stream.Next()];
      StoreRow(at.data(), shape_.type, shape_.dim, row);
    }
  });
}

void Inputs::WalkQueries(std::uint64_t seed) {
  const float step = std::sqrt(1 - kQueryCorrelation * kQueryCorrelation);
  const float own = std::sqrt(1 - kGroupShare * kGroupShare);
  Stream stream(seed);
  const auto draw = [](std::vector<float>& at, Stream& from) {
    for (float& x : at) x = Normals()[from.Next()];
  };
  const auto walk = [&](std::vector<float>& at) {
    for (float& x : at) x = kQueryCorrelation * x + step * Normals()[stream.Next()];
  };
  std::vector<float> groups(static_cast<std::size_t>(shape_.kv_heads * shape_.dim));
  std::vector<float> heads(static_cast<std::size_t>(shape_.heads * shape_.dim));
  draw(groups, stream);
  draw(heads, stream);
  float* out = reinterpret_cast<float*>(queries_.get());
  const std::int64_t group = shape_.heads / shape_.kv_heads;
  for (std::int64_t token = 0; token < shape_.queries; ++token) {
    walk(groups);
    walk(heads);
    for (std::int64_t at = 0; at < shape_.heads * shape_.dim; ++at) {
      const std::int64_t shared = at / shape_.dim / group * shape_.dim + at % shape_.dim;
      *out++ = kQueryLength * (kGroupShare * groups[static_cast<std::size_t>(shared)] +
                               own * heads[static_cast<std::size_t>(at)]);
    }
  }
}

Result<Inputs> Inputs::Make(const Shape& shape, Kind kind, std::uint64_t seed, ThreadPool& pool) {
  Result<Inputs> inputs = Allocate(shape);
  if (!inputs.ok()) return inputs;
  inputs->FillRandom(inputs->values_.get(), seed + 2, pool);
  if (kind == Kind::kSmooth) {
    inputs->WalkKeys(seed + 1, pool);
    inputs->WalkQueries(seed);
    return inputs;
  }
  inputs->FillRandom(inputs->keys_.get(), seed + 1, pool);
  Stream stream(seed);
  FillFrom(Normals(), stream, inputs->queries_.get(), shape.queries * shape.heads * shape.dim);
  return inputs;
}

Result<Inputs> Inputs::FromKeys(const Shape& shape, std::span<const float> keys, std::uint64_t seed,
                                ThreadPool& pool) {
  Result<Inputs> inputs = Allocate(shape);
  if (!inputs.ok()) return inputs;
  inputs->FillRandom(inputs->values_.get(), seed + 2, pool);
  StoreRow(keys.data(), shape.type, static_cast<std::int64_t>(keys.size()), inputs->keys_.get());
  Stream stream(seed);
  float* out = reinterpret_cast<float*>(inputs->queries_.get());
  const std::int64_t group = shape.heads / shape.kv_heads;
  for (std::int64_t token = shape.tokens - shape.queries; token < shape.tokens; ++token) {
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      const auto row =
          static_cast<std::size_t>((token * shape.kv_heads + head / group) * shape.dim);
      for (const float x : keys.subspan(row, static_cast<std::size_t>(shape.dim))) {
        *out++ = 2 * x + Normals()[stream.Next()];
      }
    }
  }
  return inputs;
}

}  // namespace coppice::bench
