// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// No silent fallback: which table serves which dims, wherever the processor has it.
#include <gtest/gtest.h>

#include "core/cpu.h"
#include "kernels/table.h"

namespace coppice {
namespace {

TEST(Dispatch, GenericIsAlwaysThereAndSlowest) {
  ASSERT_FALSE(AvailableKernels().empty());
  EXPECT_EQ(AvailableKernels().front()->isa, "generic");
  EXPECT_EQ(FindKernels("generic"), AvailableKernels().front());
  EXPECT_EQ(FindKernels("no such isa"), nullptr);
}

TEST(Dispatch, TablesFollowTheProcessor) {
  EXPECT_EQ(FindKernels("avx2") != nullptr, Cpu().avx2);
  EXPECT_EQ(FindKernels("avx512") != nullptr, Cpu().avx512);
  EXPECT_EQ(FindKernels("neon") != nullptr, Cpu().neon);
}

TEST(Dispatch, DimsGetTheWidestTableThatTakesThem) {
  const std::string_view narrow = Cpu().avx2 ? "avx2" : Cpu().neon ? "neon" : "generic";
  const std::string_view wide = Cpu().avx512 ? "avx512" : narrow;
  for (const int dim : {64, 80, 96, 112, 128, 192, 256}) {
    EXPECT_EQ(BestKernels(dim, dim).isa, wide) << dim;
  }
  EXPECT_EQ(BestKernels(192, 128).isa, wide);
  EXPECT_EQ(BestKernels(72, 72).isa, narrow);
  EXPECT_EQ(BestKernels(64, 40).isa, narrow);
  EXPECT_EQ(BestKernels(50, 64).isa, "generic");
}

}  // namespace
}  // namespace coppice
