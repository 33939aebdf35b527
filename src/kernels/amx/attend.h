// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/table.h"

namespace coppice::amx {
extern const KernelTable kTable;
}  // namespace coppice::amx
