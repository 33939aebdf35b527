// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/table.h"

namespace coppice::avx512_vnni {
extern const KernelTable kTable;
}  // namespace coppice::avx512_vnni
