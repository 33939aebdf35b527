// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// AVX-512 (F, BW, DQ, VL): the vector type of simd/kernels-inl.h with 16 lanes.
#include "kernels/avx512/attend.h"

#include <immintrin.h>

namespace coppice {
namespace {

#include "kernels/simd/avx512_vec-inl.h"
constexpr int kFetchStreams = 4;
// Xeon, f16, 8 KV heads x 128, in turn: against two passes, at 64 Ki keys 5 rows are 10 to 18 % faster, 7 rows 4
// to 15, 8 rows 0 to 5; at 2 Ki 12 to 14 %, 6 % faster to 6 slower, 1 to 4 faster.
constexpr int kRowsOfPass = 8;
constexpr bool kWeightsFromMemory = false;  // tried on Zen 4 only
// Xeon, f16, 8/2 heads x 128: against one, 17, 16 and 13 % faster at 8, 32 and 128 Ki tokens; four were 7 % faster
// at 8 Ki and 3 to 6 % slower at 128 Ki.
constexpr int kSearchGroups = 2;
#include "kernels/simd/kernels-inl.h"

const Solver& Choose(const AttendShape& shape) {
  return shape.rows <= kMaxFewRows ? kRowsF32 : kTileF32;
}

}  // namespace

const KernelTable avx512::kTable = MakeTable("avx512", /*tile_rows=*/256, /*split_keys=*/256);

}  // namespace coppice
