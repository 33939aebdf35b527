// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// AVX-512 with VNNI and BF16: bf16 dot products for bf16 keys and for bf16 and q8_0 values, int8
// scores for q8_0 keys, where fast arithmetic is allowed. All else is as in avx512/.
#include "kernels/avx512_bf16/attend.h"

#include <immintrin.h>

namespace coppice {
namespace {

// Each needs the one before.
// clang-format off
#include "kernels/simd/avx512_vec-inl.h"
constexpr int kFetchStreams = 1;
// Zen 4, f16, 8 KV heads x 128, 256 and 16 Ki keys, in turn, against two passes: 5 rows are 1 to 3 and 15 to
// 16 % faster, 6 rows 0 to 1 and 2 to 3; 7 and 8 rows are 4 to 8 % slower.
constexpr int kRowsOfPass = 6;
// Zen 4, f16, 8/2 heads x 128, 8, 32 and 128 Ki tokens: two are 4 % faster, 3 and 5 to 8 slower; where neighbours
// have nothing in common (random keys), 3 % faster, 24 and 35 slower.
constexpr int kSearchGroups = 1;
#include "kernels/simd/kernels-inl.h"
#include "kernels/simd/int8-inl.h"
#include "kernels/simd/int8_rows-inl.h"
#include "kernels/simd/bf16-inl.h"
#include "kernels/simd/bf16_rows-inl.h"
// clang-format on

template <typename Scores, typename Values>
constexpr Solver TileSolver(std::string_view name) {
  return {name, AttendTiles<Scores, Values>, TileScratchOf<Scores, Values>};
}
constexpr Solver kTileF32Bf16 = TileSolver<F32Scores, Bf16Values>("tile f32 bf16");
constexpr Solver kTileBf16F32 = TileSolver<Bf16Scores, F32Values>("tile bf16 f32");
constexpr Solver kTileBf16 = TileSolver<Bf16Scores, Bf16Values>("tile bf16 bf16");
constexpr Solver kTileInt8F32 = TileSolver<Int8Scores, F32Values>("tile int8 f32");
constexpr Solver kTileInt8Bf16 = TileSolver<Int8Scores, Bf16Values>("tile int8 bf16");

const Solver& Choose(const AttendShape& shape) {
  if (shape.rows <= kMaxFewRows) {
    const bool bf16 = shape.key_type == DType::kBF16 && shape.value_type == DType::kBF16;
    return shape.fast && bf16 ? kRowsBf16 : ChooseRows(shape);
  }
  if (!shape.fast) return kTileF32;
  // f32 and f16 values keep more than bf16 would leave of them.
  const bool round_values = shape.value_type == DType::kBF16 || shape.value_type == DType::kQ8_0;
  switch (shape.key_type) {
    case DType::kBF16:
      return round_values ? kTileBf16 : kTileBf16F32;
    case DType::kQ8_0:
      return round_values ? kTileInt8Bf16 : kTileInt8F32;
    default:
      return round_values ? kTileF32Bf16 : kTileF32;
  }
}

void ScoreBlocksNarrow(const ScoreArgs& args) {
  if (!args.fast) {
    ScoreBlocks(args);
  } else if (args.keys.type == DType::kQ8_0) {
    ScoreBlocksIn<Int8Scores>(args);
  } else {
    ScoreBlocksIn<Bf16Scores>(args);
  }
}
std::size_t ScoreScratchNarrow(int groups, int rows, int dim) {
  const std::size_t int8 = ScoreScratchIn<Int8Scores>(groups, rows, dim);
  const std::size_t bf16 = ScoreScratchIn<Bf16Scores>(groups, rows, dim);
  return int8 > bf16 ? int8 : bf16;
}

}  // namespace

const KernelTable avx512_bf16::kTable = [] {
  KernelTable table = MakeTable("avx512_bf16", /*tile_rows=*/256, /*split_keys=*/256);
  table.score_blocks = ScoreBlocksNarrow;
  table.score_scratch = ScoreScratchNarrow;
  return table;
}();

}  // namespace coppice
