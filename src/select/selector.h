// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// A selector answers one question: which key blocks does this query block need? It knows neither
// outputs nor threads. A new method is one file in this folder and one line in registry.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "coppice/settings.h"
#include "kernels/table.h"

namespace coppice {

// One query block of one selection head.
struct SelectArgs {
  const float* const* queries = nullptr;  // [tokens * heads_per_token] -> [dim], token-major
  int tokens = 0;                         // query tokens of the block
  int heads_per_token = 1;                // query heads that share the selection
  RowsView keys;                          // of the KV head
  std::int32_t visible = 0;               // keys that the last token of the block may see
  float scale = 1;                        // of the products of queries and keys in the softmax
  std::int32_t* starts = nullptr;  // [Capacity()], written: first tokens of the blocks, ascending
  std::byte* scratch = nullptr;    // of the first block: ScratchBytes(), 64-byte aligned
};

// What a selector needs to know to plan its work.
struct SelectShape {
  int blocks = 1;  // query blocks that are selected for together
  int tokens = 0;  // of the largest of them
  int heads_per_token = 1;
  std::int32_t keys = 0;
  DType key_type = DType::kF32;
  int dim = 0;
};

class Selector {
 public:
  virtual ~Selector() = default;
  // Blocks that one selection can hold.
  virtual int Capacity() const = 0;
  virtual std::size_t ScratchBytes(const KernelTable& kernels, const SelectShape& shape) const = 0;
  // Writes args.starts and returns their number, or BlockMask::kEverything when the budget covers
  // all that is visible outside of sink and window.
  virtual std::int32_t Select(const KernelTable& kernels, const SelectArgs& args) const = 0;

  // Neighbouring query blocks of a selection head that gain by being selected for together; their number
  // in `shape` does not matter.
  virtual int BlocksTogether(const KernelTable& /*kernels*/, const SelectShape& /*shape*/) const {
    return 1;
  }
  // counts[i] = Select(kernels, blocks[i]), for such blocks, oldest first.
  virtual void SelectTogether(const KernelTable& kernels, std::span<const SelectArgs> blocks,
                              std::int32_t* counts) const {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      SelectArgs args = blocks[i];
      args.scratch = blocks[0].scratch;
      counts[i] = Select(kernels, args);
    }
  }
};

// kNotFound for an unknown method; "dense" is no selector.
Result<std::unique_ptr<Selector>> MakeSelector(const AttentionSettings& settings);

}  // namespace coppice
