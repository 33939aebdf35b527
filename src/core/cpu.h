// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What this machine's processor can do. The only place that asks it.
#pragma once

namespace coppice {

struct CpuFeatures {
  bool avx2 = false;    // with FMA and F16C
  bool avx512 = false;  // F, BW, DQ, VL
  bool neon = false;    // Advanced SIMD; every AArch64 has it
};

// Read once, at the first call.
const CpuFeatures& Cpu();

}  // namespace coppice
