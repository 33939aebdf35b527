// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Blocks drawn by lot: budget / block_k of them for each query block, each set of blocks equally
// likely. It finds nothing; it is what block-sparse kernels are timed with, since no search can cost
// less, and what a search must beat. The same position draws the same blocks.
//
// Selection sampling (Fan, Muller and Rezucha 1962): of m blocks still to be seen, with k still to
// be taken, the next is taken with probability k / m. O(blocks), no memory.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "coppice/block_mask.h"
#include "coppice/settings.h"
#include "select/methods.h"
#include "select/selector.h"

namespace coppice {
namespace {

class Random final : public Selector {
 public:
  explicit Random(const AttentionSettings& settings)
      : block_(settings.block_k),
        most_(settings.budget / settings.block_k),
        sink_(settings.sink),
        window_(settings.window) {}

  int Capacity() const override { return most_; }

  std::size_t ScratchBytes(const KernelTable& /*kernels*/,
                           const SelectShape& /*shape*/) const override {
    return 0;
  }

  std::int32_t Select(const KernelTable& /*kernels*/, const SelectArgs& args) const override {
    const std::int64_t blocks = (std::int64_t{args.visible} - sink_ - window_) / block_;
    if (blocks <= most_) return BlockMask::kEverything;
    std::uint64_t state = static_cast<std::uint64_t>(args.visible) * 0x9E3779B97F4A7C15u + 1;
    std::int32_t taken = 0;
    for (std::int32_t block = 0; taken < most_; ++block) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      const auto left = static_cast<std::uint64_t>(blocks - block);
      if ((state >> 16) % left < static_cast<std::uint64_t>(most_ - taken)) {
        args.starts[taken++] = sink_ + block * block_;
      }
    }
    return taken;
  }

 private:
  int block_;
  int most_;  // blocks of a selection
  int sink_;
  int window_;
};

}  // namespace

std::unique_ptr<Selector> MakeRandom(const AttentionSettings& settings) {
  return std::make_unique<Random>(settings);
}

}  // namespace coppice
