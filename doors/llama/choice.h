// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// How one attention operation is served: pruned or dense, over which cells, and why dense when
// pruning was wanted. A pure function of what the mask, the cache and the settings say.
#pragma once

#include "coppice/attention.h"
#include "mask_reader.h"

namespace coppice::door {

struct LayerFacts {
  bool prunable =
      false;  // by the settings: the method is not "dense", nor the layer among the first
  bool windowed = false;  // the layer may have a sliding window of the model's own
  bool ordered = false;   // the cells of the mask's span hold their keys in order
};

struct Choice {
  // How our kernels are told what is visible.
  enum class Form {
    kCausal,  // each token sees all keys up to its own
    kRanges,  // one range for each token
    kMask,    // the mask itself
  };
  Form form = Form::kMask;
  bool prune = false;
  const char* reason = nullptr;  // why a layer that the settings prune is dense
  // Keys to hand over; never empty. They begin at 0 unless the form is kCausal, so that the ranges
  // of the mask's rows hold as they are.
  KeyRange keys;
};

Choice Choose(const MaskReading& mask, const LayerFacts& facts);

}  // namespace coppice::door
