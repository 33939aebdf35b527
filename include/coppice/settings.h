// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What a user may choose about attention. One spelling everywhere: the field `block_k` is the flag
// `--block-k`, the JSON key "block_k" and so on. docs/notation.md defines each word.
//
//   coppice::AttentionSettings settings;          // hip, with the measured defaults
//   settings.budget = 1024;
//   coppice::Status status = coppice::Validate(settings);
#pragma once

#include <string>
#include <vector>

#include "coppice/status.h"

namespace coppice {

// Which token of a branch stands for it in the tree search (arXiv 2406.09827, section 3 and
// theorem 1): its first block, or the block in its middle.
enum class Representative { kFirst, kCenter };

struct AttentionSettings {
  std::string method = "hip";  // "dense", or one of SelectorNames()

  // The search. Sink and window are read besides the budget, and are not searched.
  int budget = 512;      // tokens that the search may keep, for each query block
  int block_k = 8;       // keys in a block: the unit that is kept or left
  int block_q = 16;      // query tokens that share a selection
  int query_stride = 4;  // every how many-th token of a query block scores
  int sink = 32;         // first tokens, always read
  int window = 256;      // newest tokens, always read (counted for each query)
  Representative representative = Representative::kCenter;
  int breadth = 16;         // branches that the search follows for each block that it keeps
  int probe = 2;            // keys that it scores of a branch's representative; 0: all of the block
  bool balance = true;      // query rows compare keys with what they see in sink and window
  bool share_group = true;  // the query heads of one KV head share a selection

  // The model.
  int dense_layers = 3;  // the first layers attend densely
  int refresh = 4;       // decoding steps that reuse one selection

  // Allow less than f32 where the processor gains by it: bf16 for bf16 and q8_0 keys and values, int8 for
  // scores of q8_0 keys; with AMX bf16 for all types (f16 loses three bits) and for the search. Without
  // it, arithmetic is in f32, or with AMX in two bf16 parts of each number: relative errors of outputs near
  // 1e-6 and 1e-5.
  bool fast = false;
};

// The search as its paper has it: it follows as many branches as it keeps, scores whole blocks, and
// compares products as they are.
inline AttentionSettings PaperSearch() {
  AttentionSettings settings;
  settings.query_stride = 2;
  settings.breadth = 1;
  settings.probe = 0;
  settings.balance = false;
  return settings;
}

// Ok, or which field is wrong and what it may be.
Status Validate(const AttentionSettings& settings);

// The names that `method` takes besides "dense", in the order of the registry.
std::vector<std::string> SelectorNames();

}  // namespace coppice
