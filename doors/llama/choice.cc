// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "choice.h"

#include <algorithm>

namespace coppice::door {

Choice Choose(const MaskReading& mask, const LayerFacts& facts) {
  Choice choice;
  choice.keys = {mask.causal ? mask.span.begin : 0, std::max(mask.span.end, 1)};
  choice.form = mask.causal   ? Choice::Form::kCausal
                : mask.ranges ? Choice::Form::kRanges
                              : Choice::Form::kMask;
  if (!facts.prunable || facts.windowed) return choice;
  if (!mask.causal) {
    choice.reason = "mask is not a causal prefix";
  } else if (!facts.ordered) {
    choice.reason = "keys are out of order";
  }
  choice.prune = choice.reason == nullptr;
  return choice;
}

}  // namespace coppice::door
