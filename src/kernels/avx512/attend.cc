// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// AVX-512 (F, BW, DQ, VL): the vector type of simd/kernels-inl.h with 16 lanes.
#include "kernels/avx512/attend.h"

#include <immintrin.h>

namespace coppice {
namespace {

#include "kernels/simd/avx512_vec-inl.h"
constexpr int kFetchStreams = 4;
#include "kernels/simd/kernels-inl.h"

const Solver& Choose(const AttendShape& shape) {
  return shape.rows <= kMaxFewRows ? kRowsF32 : kTileF32;
}

}  // namespace

const KernelTable avx512::kTable = MakeTable("avx512", /*tile_rows=*/256, /*split_keys=*/256);

}  // namespace coppice
