// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "core/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace coppice {
namespace {

#if defined(__x86_64__)
// clang 14 knows no "f16c" in __builtin_cpu_supports.
bool HasF16c() {
  unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

CpuFeatures Detect() {
  CpuFeatures features;
#if defined(__x86_64__)
  // The compiler's support library also checks that the system saves the wide registers.
  __builtin_cpu_init();
  features.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
  features.avx512 = features.avx2 && __builtin_cpu_supports("avx512f") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
  features.avx512_vnni = features.avx512 && __builtin_cpu_supports("avx512vnni");
  features.avx512_bf16 = features.avx512_vnni && __builtin_cpu_supports("avx512bf16");
  features.fast_bf16 = features.avx512_bf16 && __builtin_cpu_is("amd");
#elif defined(__aarch64__)
  features.neon = true;
#endif
  return features;
}

}  // namespace

const CpuFeatures& Cpu() {
  static const CpuFeatures features = Detect();
  return features;
}

}  // namespace coppice
