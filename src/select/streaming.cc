// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Streaming attention (arXiv 2309.17453): the sink and the window, and nothing between them. It
// looks at no key, so it is also the floor that a real search must beat.
#include <cstddef>
#include <cstdint>
#include <memory>

#include "coppice/block_mask.h"
#include "coppice/settings.h"
#include "select/methods.h"
#include "select/selector.h"

namespace coppice {
namespace {

class Streaming final : public Selector {
 public:
  explicit Streaming(const AttentionSettings& settings)
      : always_read_(std::int64_t{settings.sink} + settings.window) {}

  int Capacity() const override { return 0; }

  std::size_t ScratchBytes(const KernelTable& /*kernels*/,
                           const SelectShape& /*shape*/) const override {
    return 0;
  }

  std::int32_t Select(const KernelTable& /*kernels*/, const SelectArgs& args) const override {
    return args.visible <= always_read_ ? BlockMask::kEverything : 0;
  }

 private:
  std::int64_t always_read_;  // tokens
};

}  // namespace

std::unique_ptr<Selector> MakeStreaming(const AttentionSettings& settings) {
  return std::make_unique<Streaming>(settings);
}

}  // namespace coppice
