// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// A small model that reads and writes bytes: random weights, one token for each byte, a chat format.
// It knows nothing, but the command runs with it in a fraction of a second.
#pragma once

#include <string>

namespace coppice::testing {

inline constexpr int kTextModelContext = 4096;

// False when the file cannot be written.
bool WriteTextModel(const std::string& path);

}  // namespace coppice::testing
