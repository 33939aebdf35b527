// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What this machine's processor can do. The only place that asks it.
#pragma once

namespace coppice {

struct CpuFeatures {
  bool avx2 = false;    // with FMA and F16C
  bool avx512 = false;  // F, BW, DQ, VL
  bool avx512_vnni = false;
  bool avx512_bf16 = false;  // with VNNI
  // vdpbf16ps has twice the rate of f32 (AMD), instead of half of it (Intel: 121 GFLOP/s against 245
  // were measured on a Xeon with AMX).
  bool fast_bf16 = false;
  bool amx_bf16 = false;  // with avx512_bf16, and the system lets this process use tile registers
  bool neon = false;      // Advanced SIMD; every AArch64 has it
};

// Read once, at the first call.
const CpuFeatures& Cpu();

}  // namespace coppice
