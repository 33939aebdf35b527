// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// AVX-512 with VNNI and BF16: int8 scores for q8_0 keys and bf16 dot products for all else, where fast
// arithmetic is allowed (in decode, for f16 and bf16). What is exact is as in avx512/.
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
// Zen 4, f16, 8 KV heads x 128, 4 to 64 Ki keys, in turn: three and four rows are 2 to 4 % faster, five and six 7, one and
// two 1 to 3. An instruction less for each row and key: alone with conversions, 64 products take 63 cycles instead of 68.
constexpr bool kWeightsFromMemory = true;
// Zen 4, f16, 8/2 heads x 128, 8, 32 and 128 Ki tokens: two are 4 % faster, 3 and 5 to 8 slower; where neighbours
// have nothing in common (random keys), 3 % faster, 24 and 35 slower.
constexpr int kSearchGroups = 1;
#include "kernels/simd/kernels-inl.h"
#include "kernels/simd/int8-inl.h"
#include "kernels/simd/int8_blocks-inl.h"
#include "kernels/simd/int8_weights-inl.h"
#include "kernels/simd/int8_rows-inl.h"
#include "kernels/simd/bf16_weights-inl.h"
#include "kernels/simd/bf16-inl.h"
#include "kernels/simd/bf16_rows-inl.h"
// clang-format on

template <typename Scores, typename Values>
constexpr Solver TileSolver(std::string_view name) {
  return {name, AttendTiles<Scores, Values>, TileScratchOf<Scores, Values>};
}
constexpr Solver kTileBf16 = TileSolver<Bf16Scores, Bf16Values>("tile bf16 bf16");
constexpr Solver kTileInt8 = TileSolver<Int8Scores, Bf16Values>("tile int8 bf16");

// With one and two rows f16 is as fast in f32, or faster (Zen 4, two rows, 4, 16 and 64 Ki keys: 0 to 9 %, from the
// second level 4 % slower); with three, bf16 is 1 to 17 % faster (64 and 4 Ki keys).
constexpr int kF16FromRows = 3;

const Solver& ChooseFewRows(const AttendShape& shape) {
  if (shape.fast && shape.key_type == shape.value_type) {
    const DType type = shape.key_type;
    if (type == DType::kBF16) return kRowsBf16<DType::kBF16>;
    if (type == DType::kF16 && shape.rows >= kF16FromRows) return kRowsBf16<DType::kF16>;
  }
  return ChooseRows(shape);
}

const Solver& Choose(const AttendShape& shape) {
  if (shape.rows <= kMaxFewRows) return ChooseFewRows(shape);
  if (!shape.fast) return kTileF32;
  return shape.key_type == DType::kQ8_0 ? kTileInt8 : kTileBf16;
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
