// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Chooses the function table: the best that was built in, that the processor runs and that takes
// the dims at hand. A table can be asked for by name, as every test of a twin does.
#include "coppice/attention.h"
#include "core/cpu.h"
#include "kernels/generic/attend.h"
#include "kernels/table.h"
#if defined(COPPICE_HAVE_X86)
#include "kernels/amx/attend.h"
#include "kernels/avx2/attend.h"
#include "kernels/avx512/attend.h"
#include "kernels/avx512_bf16/attend.h"
#include "kernels/avx512_vnni/attend.h"
#endif
#if defined(COPPICE_HAVE_NEON)
#include "kernels/neon/attend.h"
#endif

namespace coppice {

const std::vector<const KernelTable*>& AvailableKernels() {
  static const std::vector<const KernelTable*> tables = [] {
    std::vector<const KernelTable*> found = {&generic::kTable};
#if defined(COPPICE_HAVE_X86)
    if (Cpu().avx2) found.push_back(&avx2::kTable);
    if (Cpu().avx512) found.push_back(&avx512::kTable);
    if (Cpu().avx512_bf16 && !Cpu().fast_bf16) found.push_back(&avx512_bf16::kTable);
    if (Cpu().avx512_vnni) found.push_back(&avx512_vnni::kTable);
    if (Cpu().avx512_bf16 && Cpu().fast_bf16) found.push_back(&avx512_bf16::kTable);
    if (Cpu().amx_bf16) found.push_back(&amx::kTable);
#endif
#if defined(COPPICE_HAVE_NEON)
    if (Cpu().neon) found.push_back(&neon::kTable);
#endif
    return found;
  }();
  return tables;
}

const KernelTable* FindKernels(std::string_view isa) {
  for (const KernelTable* table : AvailableKernels()) {
    if (table->isa == isa) return table;
  }
  return nullptr;
}

const KernelTable& BestKernels(int dim_k, int dim_v) {
  const KernelTable* best = &generic::kTable;
  for (const KernelTable* table : AvailableKernels()) {
    if (dim_k % table->dim_multiple == 0 && dim_v % table->dim_multiple == 0) best = table;
  }
  return *best;
}

std::vector<std::string> AvailableIsas() {
  std::vector<std::string> names;
  for (const KernelTable* table : AvailableKernels()) names.emplace_back(table->isa);
  return names;
}

}  // namespace coppice
