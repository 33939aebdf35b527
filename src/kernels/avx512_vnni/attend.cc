// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// AVX-512 with VNNI: q8_0 keys are scored in int8 where fast arithmetic is allowed. All else is as
// in avx512/.
#include "kernels/avx512_vnni/attend.h"

#include <immintrin.h>

namespace coppice {
namespace {

// Each needs the one before.
// clang-format off
#include "kernels/simd/avx512_vec-inl.h"
// Figures are in avx512/.
constexpr int kFetchStreams = 4;
constexpr int kRowsOfPass = 8;
constexpr bool kWeightsFromMemory = false;
constexpr int kSearchGroups = 2;
#include "kernels/simd/kernels-inl.h"
#include "kernels/simd/int8-inl.h"
#include "kernels/simd/int8_blocks-inl.h"
#include "kernels/simd/int8_weights-inl.h"
#include "kernels/simd/int8_rows-inl.h"
// clang-format on

constexpr Solver kTileInt8 = {"tile int8 f32", AttendTiles<Int8Scores, F32Values>,
                              TileScratchOf<Int8Scores, F32Values>};

const Solver& Choose(const AttendShape& shape) {
  if (shape.rows <= kMaxFewRows) return ChooseRows(shape);
  return shape.fast && shape.key_type == DType::kQ8_0 ? kTileInt8 : kTileF32;
}

void ScoreBlocksVnni(const ScoreArgs& args) {
  const bool int8 = args.fast && args.keys.type == DType::kQ8_0;
  int8 ? ScoreBlocksIn<Int8Scores>(args) : ScoreBlocks(args);
}

}  // namespace

const KernelTable avx512_vnni::kTable = [] {
  KernelTable table = MakeTable("avx512_vnni", /*tile_rows=*/256, /*split_keys=*/256);
  table.score_blocks = ScoreBlocksVnni;
  table.score_scratch = ScoreScratchIn<Int8Scores>;
  return table;
}();

}  // namespace coppice
