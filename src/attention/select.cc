// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The selection alone, for research and outside checks: no attention is computed.
#include <algorithm>
#include <cmath>
#include <new>

#include "attention/plan.h"
#include "coppice/attention.h"
#include "core/align.h"

namespace coppice {
namespace {

Status CheckSelectInputs(const TensorView& queries, const TensorView& keys) {
  float unused = 0;
  AttentionInputs inputs{.queries = queries, .keys = keys, .values = keys};
  inputs.output = Contiguous(&unused, queries.tokens, queries.heads, keys.dim);
  return CheckInputs(inputs);
}

}  // namespace

Result<BlockMask> Select(const TensorView& queries, const TensorView& keys,
                         const AttentionSettings& settings, ThreadPool& pool,
                         std::string_view isa) {
  if (Status status = Validate(settings); !status.ok()) return status;
  if (Status status = CheckSelectInputs(queries, keys); !status.ok()) return status;
  AttentionSettings bounded = settings;  // a larger budget selects the same, but takes more memory
  bounded.budget = static_cast<int>(std::min<std::int64_t>(settings.budget, keys.tokens));
  Result<std::unique_ptr<Selector>> selector = MakeSelector(bounded);
  if (!selector.ok()) return selector.status();
  const auto dim = static_cast<int>(keys.dim);
  const KernelTable* kernels = isa.empty() ? &BestKernels(dim, dim) : FindKernels(isa);
  if (kernels == nullptr || dim % kernels->dim_multiple != 0) {
    return Status::NotFound("no '" + std::string(isa) + "' kernels here for dim " +
                            std::to_string(dim));
  }

  const auto tokens = static_cast<int>(queries.tokens);
  const int group = static_cast<int>(queries.heads / keys.heads);
  const int heads_per_row = settings.share_group ? group : 1;
  const int block_q = settings.block_q;
  const int rows = std::min(block_q, tokens) * heads_per_row;
  const std::size_t pointers = AlignUp(static_cast<std::size_t>(rows) * sizeof(float*));
  const SelectShape shape = {.tokens = std::min(block_q, tokens),
                             .heads_per_token = heads_per_row,
                             .keys = static_cast<std::int32_t>(keys.tokens),
                             .key_type = keys.type,
                             .dim = dim};
  const std::size_t bytes = pointers + (*selector)->ScratchBytes(*kernels, shape);
  BlockMask mask;
  AlignedBytes scratch;
  try {
    mask.block_size = settings.block_k;
    mask.query_block_size = block_q;
    mask.shared_by_group = settings.share_group;
    mask.Resize(static_cast<int>(queries.heads) / heads_per_row, (tokens + block_q - 1) / block_q,
                (*selector)->Capacity());
    scratch = AllocateAligned(bytes * static_cast<std::size_t>(pool.threads()));
    if (scratch == nullptr) throw std::bad_alloc();
  } catch (const std::bad_alloc&) {
    return Status::ResourceExhausted("no memory for the selection");
  }

  pool.Run(mask.heads * mask.query_blocks, [&](int item, int thread) {
    std::byte* own = scratch.get() + bytes * static_cast<std::size_t>(thread);
    auto* row_queries = reinterpret_cast<const float**>(own);
    const int head = item % mask.heads;
    const int block = item / mask.heads;
    const int first = block * block_q;
    const int last = std::min(first + block_q, tokens);
    int row = 0;
    for (int token = first; token < last; ++token) {
      for (int h = 0; h < heads_per_row; ++h) {
        row_queries[row++] =
            reinterpret_cast<const float*>(queries.Row(token, head * heads_per_row + h));
      }
    }
    const SelectArgs args = {
        .queries = row_queries,
        .tokens = last - first,
        .heads_per_token = heads_per_row,
        .keys = {keys.Row(0, head * heads_per_row / group), keys.token_stride, keys.type, dim},
        .visible = static_cast<std::int32_t>(keys.tokens - tokens + last),
        .scale = 1.0f / std::sqrt(static_cast<float>(dim)),
        .starts = mask.RowStarts(head, block),
        .scratch = own + pointers};
    mask.counts[mask.RowIndex(head, block)] = (*selector)->Select(*kernels, args);
  });
  return mask;
}

}  // namespace coppice
