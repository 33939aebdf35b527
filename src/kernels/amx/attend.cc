// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// AVX-512 with AMX: both products of many rows run on the tile registers, in bf16. What may be fast
// has one product: all is rounded to bf16. Else it is accurate to 16 bits: queries and weights in two
// parts, beside bf16 keys and values as they are, or f16, f32 and q8_0 ones in two parts too.
//
// q8_0 does not use the int8 products: over the 32 numbers that share a scale, one takes as long as
// a bf16 product of 32 (16 cycles, measured), and leaves each block's sums to be scaled.
//
// Few rows are as in avx512_vnni/.
#include "kernels/amx/attend.h"

#include <immintrin.h>

namespace coppice {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileRowBytes = 64;
using Bf16 = std::uint16_t;  // its bits

// Each needs the one before.
// clang-format off
#include "kernels/simd/avx512_vec-inl.h"
constexpr int kFetchStreams = 4;
constexpr int kRowsOfPass = 8;
constexpr bool kWeightsFromMemory = false;
constexpr int kSearchGroups = 8;  // 4 were 0 to 11 % slower: the keys that groups share become fewer
#include "kernels/simd/kernels-inl.h"
#include "kernels/simd/int8-inl.h"
#include "kernels/simd/int8_blocks-inl.h"
#include "kernels/simd/int8_weights-inl.h"
#include "kernels/simd/int8_rows-inl.h"
#include "kernels/simd/bf16_weights-inl.h"
constexpr int kPanelBytes = kPanel * 4;
#include "kernels/amx/registers-inl.h"
#include "kernels/amx/operands-inl.h"
#include "kernels/amx/stream-inl.h"
#include "kernels/amx/weights-inl.h"
#include "kernels/amx/tile-inl.h"
#include "kernels/amx/score-inl.h"
// clang-format on

template <typename Scores, typename Values>
constexpr Solver AmxSolver(std::string_view name) {
  return {name, AttendAmx<Scores, Values>, AmxScratchOf<Scores, Values>};
}

constexpr Solver kFast = AmxSolver<One, One>("tile amx_bf16 amx_bf16");
// Keys, then values: bf16 ones, or others. An error of a score is a relative one of its weight, so scores
// of two parts take all four products.
constexpr Solver kExact[2][2] = {{AmxSolver<Two, Two>("tile amx_bf16x2 amx_bf16x2"),
                                  AmxSolver<Two, Three>("tile amx_bf16x2 amx_bf16x3")},
                                 {AmxSolver<Four, Two>("tile amx_bf16x4 amx_bf16x2"),
                                  AmxSolver<Four, Three>("tile amx_bf16x4 amx_bf16x3")}};

const Solver& Choose(const AttendShape& shape) {
  if (shape.rows <= kMaxFewRows) return ChooseRows(shape);
  if (shape.fast) return kFast;
  return kExact[shape.key_type != DType::kBF16][shape.value_type != DType::kBF16];
}

}  // namespace

// Rows share what was packed; 512 of dim 128 were 8 % slower. A piece of keys costs 0.3 ms of its own for
// 1,024 rows (their packing, output and merging), as much as 600 keys: 4,096 were 6 % slower, 16,384 would
// be 5 % faster and leave fewer pieces to threads.
const KernelTable amx::kTable = [] {
  KernelTable table = MakeTable("amx", /*tile_rows=*/1024, /*split_keys=*/8192);
  table.score_blocks = ScoreBlocksAmx;
  table.score_scratch = ScoreScratchIn<AmxScores<Three>>;
  return table;
}();

}  // namespace coppice
