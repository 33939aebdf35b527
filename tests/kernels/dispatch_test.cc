// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// No silent fallback: which table serves which dims, and which kernel of it serves which types,
// wherever the processor has it.
#include <gtest/gtest.h>

#include <string>

#include "core/cpu.h"
#include "kernels/table.h"

namespace coppice {
namespace {

std::string_view Best() { return AvailableKernels().back()->isa; }

TEST(Dispatch, GenericIsAlwaysThereAndSlowest) {
  ASSERT_FALSE(AvailableKernels().empty());
  EXPECT_EQ(AvailableKernels().front()->isa, "generic");
  EXPECT_EQ(FindKernels("generic"), AvailableKernels().front());
  EXPECT_EQ(FindKernels("no such isa"), nullptr);
}

TEST(Dispatch, TablesFollowTheProcessor) {
  EXPECT_EQ(FindKernels("avx2") != nullptr, Cpu().avx2);
  EXPECT_EQ(FindKernels("avx512") != nullptr, Cpu().avx512);
  EXPECT_EQ(FindKernels("avx512_vnni") != nullptr, Cpu().avx512_vnni);
  EXPECT_EQ(FindKernels("avx512_bf16") != nullptr, Cpu().avx512_bf16);
  EXPECT_EQ(FindKernels("amx") != nullptr, Cpu().amx_bf16);
  EXPECT_EQ(FindKernels("neon") != nullptr, Cpu().neon);
}

TEST(Dispatch, AmxIsTheBestWhereItIsThere) { EXPECT_EQ(Best() == "amx", Cpu().amx_bf16); }

// Where bf16 dot products run at half of the f32 rate, the table with them is not the best.
TEST(Dispatch, Bf16IsTheBestOnlyWhereItIsFast) {
  EXPECT_EQ(Best() == "avx512_bf16", Cpu().fast_bf16);
}

TEST(Dispatch, DimsGetTheWidestTableThatTakesThem) {
  const std::string_view narrow = Cpu().avx2 ? "avx2" : Cpu().neon ? "neon" : "generic";
  const std::string_view wide = Best();
  for (const int dim : {64, 80, 96, 112, 128, 192, 256}) {
    EXPECT_EQ(BestKernels(dim, dim).isa, wide) << dim;
  }
  EXPECT_EQ(BestKernels(192, 128).isa, wide);
  EXPECT_EQ(BestKernels(72, 72).isa, narrow);
  EXPECT_EQ(BestKernels(64, 40).isa, narrow);
  EXPECT_EQ(BestKernels(50, 64).isa, "generic");
}

struct Expected {
  const char* isa;
  DType type;  // of keys and values
  const char* exact_tile;
  const char* exact_rows;
  const char* fast_tile;
  const char* fast_rows;
};

constexpr const char* kTile = "tile f32 f32";
constexpr const char* kRows = "rows f32 f32";
constexpr const char* kBf16 = "tile bf16 bf16";
constexpr const char* kRowsBf16 = "rows bf16 bf16";
constexpr const char* kAmx1 = "tile amx_bf16 amx_bf16";
constexpr const char* kAmxParts = "tile amx_bf16x4 amx_bf16x3";
constexpr const char* kScalar = "rows f64 f64";

constexpr Expected kExpected[] = {
    {"generic", DType::kF32, kScalar, kScalar, kScalar, kScalar},
    {"generic", DType::kF16, kScalar, kScalar, kScalar, kScalar},
    {"generic", DType::kBF16, kScalar, kScalar, kScalar, kScalar},
    {"generic", DType::kQ8_0, kScalar, kScalar, kScalar, kScalar},
    {"avx2", DType::kF32, kTile, kRows, kTile, kRows},
    {"avx2", DType::kF16, kTile, kRows, kTile, kRows},
    {"avx2", DType::kBF16, kTile, kRows, kTile, kRows},
    {"avx2", DType::kQ8_0, kTile, kRows, kTile, kRows},
    {"avx512", DType::kF32, kTile, kRows, kTile, kRows},
    {"avx512", DType::kF16, kTile, kRows, kTile, kRows},
    {"avx512", DType::kBF16, kTile, kRows, kTile, kRows},
    {"avx512", DType::kQ8_0, kTile, kRows, kTile, kRows},
    {"avx512_vnni", DType::kF32, kTile, kRows, kTile, kRows},
    {"avx512_vnni", DType::kF16, kTile, kRows, kTile, kRows},
    {"avx512_vnni", DType::kBF16, kTile, kRows, kTile, kRows},
    {"avx512_vnni", DType::kQ8_0, kTile, kRows, "tile int8 f32", "rows int8 int8"},
    {"avx512_bf16", DType::kF32, kTile, kRows, kBf16, kRows},
    {"avx512_bf16", DType::kF16, kTile, kRows, kBf16, kRowsBf16},
    {"avx512_bf16", DType::kBF16, kTile, kRows, kBf16, kRowsBf16},
    {"avx512_bf16", DType::kQ8_0, kTile, kRows, "tile int8 bf16", "rows int8 int8"},
    {"amx", DType::kF32, kAmxParts, kRows, kAmx1, kRows},
    {"amx", DType::kF16, kAmxParts, kRows, kAmx1, kRows},
    {"amx", DType::kBF16, "tile amx_bf16x2 amx_bf16x2", kRows, kAmx1, kRows},
    {"amx", DType::kQ8_0, kAmxParts, kRows, kAmx1, "rows int8 int8"},
    {"neon", DType::kF32, kTile, kRows, kTile, kRows},
    {"neon", DType::kF16, kTile, kRows, kTile, kRows},
    {"neon", DType::kBF16, kTile, kRows, kTile, kRows},
    {"neon", DType::kQ8_0, kTile, kRows, kTile, kRows},
};

TEST(Dispatch, EveryTypeAndDimGetsTheKernelThatIsListed) {
  int seen = 0;
  for (const Expected& expected : kExpected) {
    const KernelTable* table = FindKernels(expected.isa);
    if (table == nullptr) continue;
    ++seen;
    for (const int dim : {64, 80, 96, 128, 192, 256}) {
      if (expected.type == DType::kQ8_0 && dim % kQ8BlockSize != 0) continue;
      ASSERT_EQ(dim % table->dim_multiple, 0);
      const auto kernel = [&](int rows, bool fast) {
        return std::string(table->kernel({.rows = rows,
                                          .dim_k = dim,
                                          .dim_v = dim,
                                          .key_type = expected.type,
                                          .value_type = expected.type,
                                          .fast = fast}));
      };
      const std::string what =
          std::string(expected.isa) + " " + NameOf(expected.type) + " dim " + std::to_string(dim);
      for (const int rows : {9, 64, 256}) {
        EXPECT_EQ(kernel(rows, false), expected.exact_tile) << what << " rows " << rows;
        EXPECT_EQ(kernel(rows, true), expected.fast_tile) << what << " rows " << rows;
      }
      for (const int rows : {1, 4, 8}) {
        EXPECT_EQ(kernel(rows, false), expected.exact_rows) << what << " rows " << rows;
        const bool too_few = rows == 1 && expected.type == DType::kF16 &&
                             std::string_view(expected.fast_rows) == kRowsBf16;
        EXPECT_EQ(kernel(rows, true), too_few ? expected.exact_rows : expected.fast_rows)
            << what << " rows " << rows;
      }
    }
  }
  EXPECT_EQ(seen, 4 * static_cast<int>(AvailableKernels().size())) << "an ISA is not listed";
}

std::string KernelOf(const char* isa, DType key_type, DType value_type, bool fast, int rows = 64) {
  return std::string(FindKernels(isa)->kernel({.rows = rows,
                                               .dim_k = 128,
                                               .dim_v = 128,
                                               .key_type = key_type,
                                               .value_type = value_type,
                                               .fast = fast}));
}

TEST(Dispatch, MixedTypes) {
  constexpr const char* kIsa = "avx512_bf16";
  if (FindKernels(kIsa) == nullptr) GTEST_SKIP() << "no AVX-512 BF16 here";
  EXPECT_EQ(KernelOf(kIsa, DType::kBF16, DType::kF16, true), kBf16);
  EXPECT_EQ(KernelOf(kIsa, DType::kF16, DType::kBF16, true), kBf16);
  EXPECT_EQ(KernelOf(kIsa, DType::kQ8_0, DType::kF16, true), "tile int8 bf16");
  EXPECT_EQ(KernelOf(kIsa, DType::kF32, DType::kQ8_0, true), kBf16);
  EXPECT_EQ(KernelOf(kIsa, DType::kBF16, DType::kF16, true, 4), kRows);
  EXPECT_EQ(KernelOf(kIsa, DType::kQ8_0, DType::kF16, true, 4), kRows);
  EXPECT_EQ(KernelOf(kIsa, DType::kF16, DType::kQ8_0, true, 4), kRows);
}

TEST(Dispatch, DecodeInBf16TakesRowsThatPayForIt) {
  constexpr const char* kIsa = "avx512_bf16";
  if (FindKernels(kIsa) == nullptr) GTEST_SKIP() << "no AVX-512 BF16 here";
  EXPECT_EQ(KernelOf(kIsa, DType::kBF16, DType::kBF16, true, 1), kRowsBf16);
  EXPECT_EQ(KernelOf(kIsa, DType::kF16, DType::kF16, true, 1), kRows);
  EXPECT_EQ(KernelOf(kIsa, DType::kF16, DType::kF16, true, 2), kRows);
  EXPECT_EQ(KernelOf(kIsa, DType::kF16, DType::kF16, true, 3), kRowsBf16);
}

TEST(Dispatch, MixedTypesWithAmx) {
  constexpr const char* kIsa = "amx";
  if (FindKernels(kIsa) == nullptr) GTEST_SKIP() << "no AMX here";
  EXPECT_EQ(KernelOf(kIsa, DType::kBF16, DType::kF16, true), kAmx1);
  EXPECT_EQ(KernelOf(kIsa, DType::kF16, DType::kQ8_0, true), kAmx1);
  EXPECT_EQ(KernelOf(kIsa, DType::kBF16, DType::kF32, false), "tile amx_bf16x2 amx_bf16x3");
  EXPECT_EQ(KernelOf(kIsa, DType::kQ8_0, DType::kBF16, false), "tile amx_bf16x4 amx_bf16x2");
}

}  // namespace
}  // namespace coppice
