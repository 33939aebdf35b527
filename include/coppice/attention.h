// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Attention of one layer, dense or pruned: out = softmax(scale * q.k^T) v over the visible keys
// that were selected, and the natural log-sum-exp of every row, so that results over disjoint keys
// can be merged exactly.
//
// Two phases. Plan() looks at the shapes, splits the work and reserves memory: it is the only place
// that allocates. RunItem() does one piece; pieces are independent and may run in any order on any
// threads. The split depends on the shapes alone, so the same input gives the same bits on any
// number of threads.
//
//   coppice::Workspace workspace(/*threads=*/2);
//   auto attention = coppice::Attention::Create(settings);
//   coppice::AttentionInputs inputs{.queries = q, .keys = k, .values = v, .output = out};
//   coppice::Status status = attention->Plan(inputs, workspace);
//   for (int i = 0; i < attention->items(); ++i) attention->RunItem(i, /*thread=*/0);
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/block_mask.h"
#include "coppice/executor.h"
#include "coppice/settings.h"
#include "coppice/status.h"
#include "coppice/tensor.h"

namespace coppice {

// Keys [begin, end).
struct KeyRange {
  std::int32_t begin = 0;
  std::int32_t end = 0;
};

// An additive mask [queries, keys], f16 or f32, one row for each query token.
struct MaskView {
  const void* data = nullptr;
  DType type = DType::kF16;
  std::int64_t row_stride = 0;  // bytes
};

struct AttentionInputs {
  TensorView queries;    // f32 [queries, heads, dim_k], not scaled
  TensorView keys;       // [keys, kv_heads, dim_k]; heads is a multiple of kv_heads
  TensorView values;     // [keys, kv_heads, dim_v]
  OutputView output;     // [queries, heads, dim_v]
  float* lse = nullptr;  // [queries, heads] contiguous, natural log; -inf where nothing is visible
  float scale = 0;       // 0: 1 / sqrt(dim_k)

  // Score of query p and key j, in this order: s = scale * q.k; softcap * tanh(s / softcap) where
  // softcap is above 0 (Gemma 2, arXiv 2408.00118); + slope of the head * (j - p) with ALiBi (arXiv
  // 2108.12409), p being the position of the query. ALiBi is dense.
  float softcap = 0;
  const float* alibi_slopes = nullptr;  // [heads]
  // Attention sinks: a learned score of each head that only the denominator of its softmax sees.
  const float* sinks = nullptr;  // [heads]

  // What a query may see. By default all keys up to its own, the last query sitting on the last
  // key. Else one range for each query token, and / or a mask added to the scores. Both are dense:
  // only plain causal inputs are pruned.
  const KeyRange* visible = nullptr;  // [queries]
  MaskView mask = {};
};

struct AttentionStats {
  std::uint64_t keys_read = 0;     // keys that entered a softmax, summed over query rows
  std::uint64_t keys_visible = 0;  // what dense attention reads
  double select_s = 0;             // thread-seconds in the search
  double attend_s = 0;             // thread-seconds in the attention kernel
};

// Scratch memory that consecutive layers share. One plan at a time may run in it.
class Workspace {
 public:
  struct Impl;
  explicit Workspace(int threads);
  ~Workspace();
  Workspace(Workspace&&) noexcept;
  Workspace& operator=(Workspace&&) noexcept;

  int threads() const;
  std::size_t bytes() const;

 private:
  friend class Attention;
  std::unique_ptr<Impl> impl_;
};

class Attention {
 public:
  struct Impl;

  // isa: a name of AvailableIsas(), or empty for the best that this machine has.
  static Result<Attention> Create(const AttentionSettings& settings, std::string_view isa = {});
  Attention(Attention&&) noexcept;
  Attention& operator=(Attention&&) noexcept;
  ~Attention();

  // kInvalidArgument for shapes that do not fit together, kUnimplemented for types or dims that no
  // kernel reads, kResourceExhausted. The views must stay valid until the last RunItem.
  Status Plan(const AttentionInputs& inputs, Workspace& workspace);

  int items() const;
  // thread in [0, workspace.threads()): two calls at the same time need two numbers.
  void RunItem(int item, int thread);

  // The selection of the last plan; between decoding steps it is kept and reused `refresh` times.
  const BlockMask& mask() const;
  // True when the last plan prunes; otherwise it reads every visible key.
  bool pruned() const;
  // Forgets what was kept between steps: call it when the cache behind the keys was changed.
  void Reset();

  AttentionStats stats() const;
  void ClearStats();
  std::string_view isa() const;
  // The kernel of the last plan: "tile" (many rows) or "rows" (few), then the arithmetic of K.Q^T and
  // of P.V, for example "tile int8 bf16".
  std::string_view kernel() const;

 private:
  explicit Attention(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Plans and runs in one call, with scratch of its own.
Status Attend(const AttentionInputs& inputs, const AttentionSettings& settings, ThreadPool& pool,
              AttentionStats* stats = nullptr, std::string_view isa = {});
// The same with the caller's scratch, for as many threads as the pool has.
Status Attend(const AttentionInputs& inputs, const AttentionSettings& settings, ThreadPool& pool,
              Workspace& workspace, AttentionStats* stats = nullptr, std::string_view isa = {});

// What the selector of `settings` picks: queries [queries, heads, dim], keys [keys, kv_heads, dim],
// the last query sitting on the last key.
Result<BlockMask> Select(const TensorView& queries, const TensorView& keys,
                         const AttentionSettings& settings, ThreadPool& pool,
                         std::string_view isa = {});

// Merges results over disjoint sets of keys: o = sum_i exp(lse_i - lse) o_i with
// lse = log sum_i exp(lse_i). parts [n][dim], lses [n]; writes out [dim] and returns lse.
// A part with lse -inf counts as empty; with no other the output is zero and the lse -inf.
float MergePartials(std::span<const float* const> parts, std::span<const float> lses, int dim,
                    float* out);

// The instruction sets that this build has and this machine runs, slowest first: "generic", ...
std::vector<std::string> AvailableIsas();

}  // namespace coppice
