// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The kernels of table.h over a vector type, written once. An ISA's attend.cc defines `Vec` and
// the constants below in its own anonymous namespace, then includes this file inside it, so that
// no function of one instruction set can be linked into another.
//
// tile-inl.h takes many rows (prefill), few_rows-inl.h few (decode); below are the functions of the
// table. Scores are kept in base 2: queries are scaled by scale * log2(e) once.

// clang-format off: each needs the one before
#include "kernels/simd/common-inl.h"
#include "kernels/simd/few_rows-inl.h"
#include "kernels/simd/tile-inl.h"
// clang-format on

void Attend(const AttendArgs* args, int problems) {
  if (args[0].rows <= kMaxFewRows) {
    for (int p = 0; p < problems; p += kMaxProblems) {
      AttendFew(args + p, Min(kMaxProblems, problems - p));
    }
  } else {
    for (int p = 0; p < problems; ++p) AttendTile(args[p]);
  }
}

std::size_t AttendScratch(int rows, int problems, int dim_k, int dim_v) {
  Cutter cutter{nullptr};
  TileScratch tile;
  FewScratch few;
  if (rows > kMaxFewRows) {
    LayOutTile(cutter, rows, dim_k, dim_v, tile);
    return cutter.used;
  }
  LayOutFew(cutter, dim_k, dim_v, few);
  return cutter.used * static_cast<std::size_t>(Min(problems, kMaxProblems));
}

struct ScoreScratchLayout {
  float* queries;          // [panels][dim][kPanel], or [rows][dim] for few rows
  std::int32_t* keys;      // [kTileKeys]
  std::int32_t* block_of;  // [kTileKeys]
  float* key_tile;         // [kTileKeys][dim]
  float* scores;           // [kTileKeys][kPanel], or [rows][kChunkKeys]
};

inline void LayOutScore(Cutter& cutter, int rows, int dim, ScoreScratchLayout& layout) {
  layout.queries = cutter.Take<float>(static_cast<std::int64_t>(PanelsFor(rows)) * kPanel * dim);
  layout.keys = cutter.Take<std::int32_t>(kTileKeys);
  layout.block_of = cutter.Take<std::int32_t>(kTileKeys);
  layout.key_tile = cutter.Take<float>(static_cast<std::int64_t>(kTileKeys) * dim);
  layout.scores = cutter.Take<float>(static_cast<std::int64_t>(kTileKeys) * kPanel);
}

// Raises the block scores by one tile of keys; all rows, many of them.
inline void ScoreTile(const ScoreArgs& args, const ScoreScratchLayout& layout, int count) {
  WidenRows(args.keys, layout.keys, count, layout.key_tile);
  for (int panel = 0; panel < PanelsFor(args.rows); ++panel) {
    const int vectors = VectorsOf(args.rows, panel);
    const float* queries =
        layout.queries + static_cast<std::int64_t>(panel) * kPanel * args.keys.dim;
    MultiplyPanel<false, false>(vectors, layout.key_tile, args.keys.dim, count, queries,
                                args.keys.dim, layout.scores);
    for (int j = 0; j < count;) {
      const std::int32_t block = layout.block_of[j];
      Vec most = Vec::Set(args.scores[block]);
      for (; j < count && layout.block_of[j] == block; ++j) {
        for (int v = 0; v < vectors; ++v) {
          most = MaxOrSecond(Vec::Load(layout.scores + j * kPanel + v * Vec::kLanes), most);
        }
      }
      args.scores[block] = MaxLanes(most);
    }
  }
}

inline void ScoreFew(const ScoreArgs& args, const ScoreScratchLayout& layout, int count) {
  for (int row = 0; row < args.rows; row += 4) {
    const int rows = Min(4, args.rows - row);
    ScoreChunkFor(args.keys.type, rows)(layout.queries + row * args.keys.dim, args.keys,
                                        layout.keys, count, {}, layout.scores);
    for (int r = 0; r < rows; ++r) {
      for (int j = 0; j < count; ++j) {
        float& best = args.scores[layout.block_of[j]];
        const float score = layout.scores[r * kChunkKeys + j];
        if (score > best) best = score;
      }
    }
  }
}

void ScoreBlocks(const ScoreArgs& args) {
  const bool few = args.rows <= kMaxFewRows;
  const int most = few ? kChunkKeys : kTileKeys;
  ScoreScratchLayout layout;
  Cutter cutter{args.scratch};
  LayOutScore(cutter, args.rows, args.keys.dim, layout);
  if (few) {
    for (int row = 0; row < args.rows; ++row) {
      for (int i = 0; i < args.keys.dim; ++i) {
        layout.queries[row * args.keys.dim + i] = args.queries[row][i];
      }
    }
  } else {
    PackQueries(args.queries, args.rows, args.keys.dim, 1.0f, layout.queries);
  }
  int count = 0;
  const auto flush = [&] {
    few ? ScoreFew(args, layout, count) : ScoreTile(args, layout, count);
    count = 0;
  };
  for (int block = 0; block < args.count; ++block) {
    args.scores[block] = kMinusInfinity;
    const int end = Min(args.starts[block] + args.block_size, args.limit);
    for (int key = args.starts[block]; key < end; ++key) {
      layout.keys[count] = key;
      PrefetchRow(args.keys, key);  // candidates are scattered: let their misses overlap
      layout.block_of[count] = block;
      if (++count == most) flush();
    }
  }
  if (count > 0) flush();
}

std::size_t ScoreScratch(int rows, int dim) {
  Cutter cutter{nullptr};
  ScoreScratchLayout layout;
  LayOutScore(cutter, rows, dim, layout);
  return cutter.used;
}
