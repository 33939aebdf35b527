// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// NumPy's .npy files: f32, C order, little endian, versions 1 to 3. No other types; no pickles.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "coppice/status.h"

namespace coppice::app {

struct Array {
  std::vector<std::int64_t> shape;
  std::vector<float> data;
};

// dims: how many sizes the shape must have; `what` names the array in messages.
Result<Array> ReadNpy(const std::string& path, std::size_t dims, const std::string& what);

Status WriteNpy(const std::string& path, std::span<const std::int64_t> shape,
                std::span<const float> data);

}  // namespace coppice::app
