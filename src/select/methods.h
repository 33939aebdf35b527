// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Every method of selection: the name that a user writes and the function that makes it. This list
// alone feeds MakeSelector and SelectorNames.
#pragma once

#include <memory>

#include "coppice/settings.h"
#include "select/selector.h"

// METHOD(name, function), one line for each.
#define COPPICE_SELECT_METHODS(METHOD) \
  METHOD("hip", MakeHipTree)           \
  METHOD("random", MakeRandom)         \
  METHOD("streaming", MakeStreaming)

namespace coppice {

// The settings have passed Validate().
#define COPPICE_DECLARE_METHOD(name, function) \
  std::unique_ptr<Selector> function(const AttentionSettings& settings);
COPPICE_SELECT_METHODS(COPPICE_DECLARE_METHOD)
#undef COPPICE_DECLARE_METHOD

}  // namespace coppice
