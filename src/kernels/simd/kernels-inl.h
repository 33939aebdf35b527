// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The kernels of table.h over a vector type, written once. An ISA's attend.cc defines `Vec` and
// the constants below in its own anonymous namespace, then includes this file inside it, so that
// no function of one instruction set can be linked into another.
//
//   kPanelVectors, kRegisterRows   the tile that fills the registers (tile-inl.h)
//   kFetchStreams                  streams of memory that are fetched side by side (chunk-inl.h)
//   kRowsOfPass                    query rows that share a widened key or value (few_rows-inl.h)
//   kWeightsFromMemory             AVX-512: weights are operands in memory (few_rows-inl.h)
//   kSearchGroups                  query blocks that are searched together (KernelTable::search_groups)
//
// tile-inl.h takes many rows (prefill), few_rows-inl.h few (decode) in chunks of chunk-inl.h, score-inl.h
// the candidates of a search; below is what makes a table of them. Scores are kept in base 2: queries are
// scaled by scale * log2(e) once.

// Each needs the one before.
// clang-format off
#include "kernels/simd/common-inl.h"
#include "kernels/simd/chunk-inl.h"
#include "kernels/simd/few_rows-inl.h"
#include "kernels/simd/product-inl.h"
#include "kernels/simd/tile-inl.h"
#include "kernels/simd/score-inl.h"
#include "kernels/simd/merge-inl.h"
// clang-format on

inline AttendShape ShapeOf(const AttendArgs& args, int problems) {
  return {.rows = args.rows,
          .problems = problems,
          .dim_k = args.keys.dim,
          .dim_v = args.values.dim,
          .key_type = args.keys.type,
          .value_type = args.values.type,
          .fast = args.fast};
}

// How a shape is solved: one of these for each kernel.
struct Solver {
  std::string_view name;
  void (*attend)(const AttendArgs* problems, int count);
  std::size_t (*scratch)(const AttendShape&);
};

template <typename Scores, typename Values>
void AttendTiles(const AttendArgs* args, int problems) {
  for (int p = 0; p < problems; ++p) AttendTile<Scores, Values>(args[p]);
}
template <typename Scores, typename Values>
std::size_t TileScratchOf(const AttendShape& shape) {
  return TileBytes<Scores, Values>(shape.rows, shape.dim_k, shape.dim_v);
}

template <typename Rows>
void AttendRows(const AttendArgs* args, int problems) {
  for (int p = 0; p < problems; p += kMaxProblems) {
    AttendFew<Rows>(args + p, Min(kMaxProblems, problems - p));
  }
}
template <typename Rows>
std::size_t RowsScratchOf(const AttendShape& shape) {
  Cutter cutter{nullptr};
  FewScratch<Rows> few;
  LayOutFew(cutter, shape.dim_k, shape.dim_v, few);
  return cutter.used * static_cast<std::size_t>(Min(shape.problems, kMaxProblems));
}

constexpr Solver kTileF32 = {"tile f32 f32", AttendTiles<F32Scores, F32Values>,
                             TileScratchOf<F32Scores, F32Values>};
constexpr Solver kRowsF32 = {"rows f32 f32", AttendRows<F32Rows>, RowsScratchOf<F32Rows>};

// Each instruction set chooses among its own.
const Solver& Choose(const AttendShape& shape);

void Attend(const AttendArgs* args, int problems) {
  Choose(ShapeOf(args[0], problems)).attend(args, problems);
}
std::size_t AttendScratch(const AttendShape& shape) { return Choose(shape).scratch(shape); }
std::string_view Kernel(const AttendShape& shape) { return Choose(shape).name; }

constexpr KernelTable MakeTable(std::string_view isa, int tile_rows, int split_keys) {
  return {.isa = isa,
          .tile_rows = tile_rows,
          .split_keys = split_keys,
          .dim_multiple = Vec::kLanes,
          .few_rows = kMaxFewRows,
          .attend = Attend,
          .attend_scratch = AttendScratch,
          .kernel = Kernel,
          .merge = Merge,
          .score_blocks = ScoreBlocks,
          .score_scratch = ScoreScratch,
          .search_groups = kSearchGroups};
}
