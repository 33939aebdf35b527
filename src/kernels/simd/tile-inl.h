// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Many rows (tile): queries sit in the lanes, one key value is broadcast at a time.
//
//      Q^T [dim_k][panel]        S^T [key][panel]           O^T [dim_v][panel]
//      lanes = query rows   K.Q^T  -> softmax lane-wise ->  += V^T . P^T
//
//   Running maximum and sum are lane-wise: no horizontal step. Both products are the same kernel,
//   MultiplyTile: R rows of one operand times the panel, R * NV accumulators in registers.
//   Keys are gathered and widened to f32 in tiles of kTileKeys, once for all panels, so a block
//   list of any block size runs at the rate of a dense range.
//   Cost for a tile of n keys: 2 n rows (dim_k + dim_v) FLOP, n (dim_k + dim_v) values read.

// Keys in a tile. 96 is a multiple of every R below; K, V and S of a tile take 120 KiB at dim 128,
// well inside the smallest L2 in use (1 MiB).
constexpr int kTileKeys = 96;
constexpr int kPanel = kPanelVectors * Vec::kLanes;

// ---- The product of a tile -----------------------------------------------------------------------

// c[r][lanes] (+)= sum over t < depth of a(r, t) * b[t][lanes], with
// a(r, t) = kByColumn ? a[t * stride + r] : a[r * stride + t]; b and c have rows of kPanel floats.
template <int NV, int R, bool kByColumn, bool kAccumulate>
inline void MultiplyTile(const float* a, int stride, const float* b, int depth, float* c) {
  Vec sum[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[r][v] = Vec::Set(0.0f);
  }
  for (int t = 0; t < depth; ++t) {
    Vec lanes[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) lanes[v] = Vec::Load(b + t * kPanel + v * Vec::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec one = Vec::Set(kByColumn ? a[t * stride + r] : a[r * stride + t]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[r][v] = MulAdd(one, lanes[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* to = c + r * kPanel + v * Vec::kLanes;
      if constexpr (kAccumulate) sum[r][v] = sum[r][v] + Vec::Load(to);
      sum[r][v].Store(to);
    }
  }
}

// The same for any number of rows: kRegisterRows at a time, the rest in steps of 4, 2 and 1.
template <int NV, bool kByColumn, bool kAccumulate>
void Multiply(const float* a, int stride, int rows, const float* b, int depth, float* c) {
  constexpr int kFull = kRegisterRows[NV];
  const auto at = [&](int r) { return kByColumn ? a + r : a + r * stride; };
  int r = 0;
  for (; r + kFull <= rows; r += kFull) {
    MultiplyTile<NV, kFull, kByColumn, kAccumulate>(at(r), stride, b, depth, c + r * kPanel);
  }
  if (kFull > 4 && r + 4 <= rows) {
    MultiplyTile<NV, 4, kByColumn, kAccumulate>(at(r), stride, b, depth, c + r * kPanel);
    r += 4;
  }
  if (r + 2 <= rows) {
    MultiplyTile<NV, 2, kByColumn, kAccumulate>(at(r), stride, b, depth, c + r * kPanel);
    r += 2;
  }
  for (; r < rows; ++r) {
    MultiplyTile<NV, 1, kByColumn, kAccumulate>(at(r), stride, b, depth, c + r * kPanel);
  }
}

template <bool kByColumn, bool kAccumulate>
void MultiplyPanel(int vectors, const float* a, int stride, int rows, const float* b, int depth,
                   float* c) {
  switch (vectors) {
    case 1:
      return Multiply<1, kByColumn, kAccumulate>(a, stride, rows, b, depth, c);
    case 2:
      return Multiply<2, kByColumn, kAccumulate>(a, stride, rows, b, depth, c);
    default:
      if constexpr (kPanelVectors == 4) {
        if (vectors == 3) return Multiply<3, kByColumn, kAccumulate>(a, stride, rows, b, depth, c);
        return Multiply<4, kByColumn, kAccumulate>(a, stride, rows, b, depth, c);
      }
  }
}

// ---- Many rows -----------------------------------------------------------------------------------

struct TileScratch {
  float* queries;       // [panels][dim_k][kPanel], times scale * log2(e)
  float* outputs;       // [panels][dim_v][kPanel], not normalised
  float* highest;       // [panels][kPanel]
  float* total;         // [panels][kPanel]
  std::int32_t* begin;  // [panels][kPanel], visible keys of each lane; empty for idle lanes
  std::int32_t* end;
  std::int32_t* keys;  // [kTileKeys]
  float* key_tile;     // [kTileKeys][dim_k]
  float* value_tile;   // [kTileKeys][dim_v]
  float* scores;       // [kTileKeys][kPanel]
  float* bias;         // [rows][kTileKeys], only for masks
  float* slopes;       // [panels][kPanel], ALiBi, times log2(e)
  float* positions;    // [panels][kPanel]
};

inline int PanelsFor(int rows) { return (rows + kPanel - 1) / kPanel; }

inline void LayOutTile(Cutter& cutter, int rows, int dim_k, int dim_v, TileScratch& tile) {
  const std::int64_t lanes = static_cast<std::int64_t>(PanelsFor(rows)) * kPanel;
  tile.queries = cutter.Take<float>(lanes * dim_k);
  tile.outputs = cutter.Take<float>(lanes * dim_v);
  tile.highest = cutter.Take<float>(lanes);
  tile.total = cutter.Take<float>(lanes);
  tile.begin = cutter.Take<std::int32_t>(lanes);
  tile.end = cutter.Take<std::int32_t>(lanes);
  tile.keys = cutter.Take<std::int32_t>(kTileKeys);
  tile.key_tile = cutter.Take<float>(static_cast<std::int64_t>(kTileKeys) * dim_k);
  tile.value_tile = cutter.Take<float>(static_cast<std::int64_t>(kTileKeys) * dim_v);
  tile.scores = cutter.Take<float>(static_cast<std::int64_t>(kTileKeys) * kPanel);
  tile.bias = cutter.Take<float>(static_cast<std::int64_t>(rows) * kTileKeys);
  tile.slopes = cutter.Take<float>(lanes);
  tile.positions = cutter.Take<float>(lanes);
}

// Q^T, `dim` rows of kPanel lanes for each panel. Idle lanes repeat the first row, which leaves the
// maximum over all lanes as it is.
inline void PackQueries(const float* const* queries, int rows, int dim, float scale, float* out) {
  const int lanes = PanelsFor(rows) * kPanel;
  for (int lane = 0; lane < lanes; ++lane) {
    const float* query = queries[lane < rows ? lane : 0];
    float* to = out + static_cast<std::int64_t>(lane / kPanel) * kPanel * dim + lane % kPanel;
    for (int i = 0; i < dim; ++i) to[static_cast<std::int64_t>(i) * kPanel] = query[i] * scale;
  }
}

inline int VectorsOf(int rows, int panel) {
  return Min(kPanelVectors, (rows - panel * kPanel + Vec::kLanes - 1) / Vec::kLanes);
}

// Soft cap, then ALiBi.
inline void ShapeScores(const AttendArgs& args, const TileScratch& tile, int vectors, int panel,
                        int count) {
  const Vec cap = Vec::Set(args.softcap * kLog2E);
  const Vec inverse = Vec::Set(1 / (args.softcap * kLog2E));
  for (int v = 0; v < vectors; ++v) {
    const int lane = v * Vec::kLanes;
    const std::int64_t row = static_cast<std::int64_t>(panel) * kPanel + lane;
    for (int j = 0; j < count; ++j) {
      float* score = tile.scores + j * kPanel + lane;
      Vec shaped = Vec::Load(score);
      if (args.softcap > 0) shaped = Tanh(shaped * inverse) * cap;
      if (args.slopes != nullptr) {
        const Vec key = Vec::Set(static_cast<float>(tile.keys[j]));
        shaped =
            MulAdd(key - Vec::Load(tile.positions + row), Vec::Load(tile.slopes + row), shaped);
      }
      shaped.Store(score);
    }
  }
}

inline void AddMask(const TileScratch& tile, int rows, int panel, int count) {
  const int last = Min(rows, (panel + 1) * kPanel);
  for (int row = panel * kPanel; row < last; ++row) {
    const float* bias = tile.bias + static_cast<std::int64_t>(row) * kTileKeys;
    for (int j = 0; j < count; ++j) tile.scores[j * kPanel + row % kPanel] += bias[j];
  }
}

inline void HideInvisible(const TileScratch& tile, int vectors, int panel, int count) {
  for (int v = 0; v < vectors; ++v) {
    const int lane = v * Vec::kLanes;
    const std::int32_t* begin = tile.begin + panel * kPanel + lane;
    const std::int32_t* end = tile.end + panel * kPanel + lane;
    for (int j = 0; j < count; ++j) {
      float* score = tile.scores + j * kPanel + lane;
      KeepInRange(Vec::Load(score), tile.keys[j], begin, end).Store(score);
    }
  }
}

// Scores to probabilities, in place; moves the running maximum and rescales what was summed so
// far where it moved.
inline void SoftmaxPanel(const TileScratch& tile, int vectors, int panel, int count, int dim_v) {
  float* outputs = tile.outputs + static_cast<std::int64_t>(panel) * kPanel * dim_v;
  for (int v = 0; v < vectors; ++v) {
    const int lane = v * Vec::kLanes;
    float* const highest = tile.highest + panel * kPanel + lane;
    float* const total = tile.total + panel * kPanel + lane;
    const Vec before = Vec::Load(highest);
    Vec after = before;
    for (int j = 0; j < count; ++j) {
      after = MaxOrSecond(Vec::Load(tile.scores + j * kPanel + lane), after);
    }
    Vec sum = Vec::Set(0.0f);
    for (int j = 0; j < count; ++j) {
      float* score = tile.scores + j * kPanel + lane;
      const Vec weight = Exp2(Vec::Load(score) - after);
      weight.Store(score);
      sum = sum + weight;
    }
    if (AnyDifferent(before, after)) {
      const Vec shrink = Exp2(before - after);
      sum = MulAdd(Vec::Load(total), shrink, sum);
      after.Store(highest);
      for (int i = 0; i < dim_v; ++i) {
        float* output = outputs + static_cast<std::int64_t>(i) * kPanel + lane;
        (Vec::Load(output) * shrink).Store(output);
      }
    } else {
      sum = sum + Vec::Load(total);
    }
    sum.Store(total);
  }
}

// An infinity or NaN among the values must reach only the rows that see it: 0 * inf is NaN.
inline void AddValuesOneByOne(const TileScratch& tile, int rows, int panel, int count, int dim_v) {
  float* outputs = tile.outputs + static_cast<std::int64_t>(panel) * kPanel * dim_v;
  const int lanes = Min(kPanel, rows - panel * kPanel);
  for (int lane = 0; lane < lanes; ++lane) {
    for (int j = 0; j < count; ++j) {
      const float weight = tile.scores[j * kPanel + lane];
      if (weight == 0.0f) continue;
      const float* value = tile.value_tile + static_cast<std::int64_t>(j) * dim_v;
      for (int i = 0; i < dim_v; ++i) {
        outputs[static_cast<std::int64_t>(i) * kPanel + lane] += weight * value[i];
      }
    }
  }
}

inline void AttendTileKeys(const AttendArgs& args, const TileScratch& tile, int count, bool hide,
                           bool masked) {
  const int dim_k = args.keys.dim;
  const int dim_v = args.values.dim;
  WidenRows(args.keys, tile.keys, count, tile.key_tile);
  WidenRows(args.values, tile.keys, count, tile.value_tile);
  const bool finite = AllFinite(tile.value_tile, static_cast<std::int64_t>(count) * dim_v);
  for (int panel = 0; panel < PanelsFor(args.rows); ++panel) {
    const int vectors = VectorsOf(args.rows, panel);
    const float* queries = tile.queries + static_cast<std::int64_t>(panel) * kPanel * dim_k;
    float* outputs = tile.outputs + static_cast<std::int64_t>(panel) * kPanel * dim_v;
    MultiplyPanel<false, false>(vectors, tile.key_tile, dim_k, count, queries, dim_k, tile.scores);
    if (args.softcap > 0 || args.slopes != nullptr) {
      ShapeScores(args, tile, vectors, panel, count);
    }
    if (masked) AddMask(tile, args.rows, panel, count);
    if (hide) HideInvisible(tile, vectors, panel, count);
    SoftmaxPanel(tile, vectors, panel, count, dim_v);
    if (finite) {
      MultiplyPanel<true, true>(vectors, tile.value_tile, dim_v, dim_v, tile.scores, count,
                                outputs);
    } else {
      AddValuesOneByOne(tile, args.rows, panel, count, dim_v);
    }
  }
}

inline void AttendTileSegment(const AttendArgs& args, const KeySegment& segment,
                              const TileScratch& tile) {
  const int lanes = PanelsFor(args.rows) * kPanel;
  for (int lane = 0; lane < lanes; ++lane) {
    const KeyRange visible = lane < args.rows ? segment.visible[lane] : KeyRange{0, 0};
    tile.begin[lane] = visible.begin;
    tile.end[lane] = visible.end;
  }
  const bool masked = segment.mask_rows != nullptr;
  KeyWalk walk(segment, args.rows);
  for (int count; (count = walk.Next(kTileKeys, tile.keys)) > 0;) {
    bool any = !masked;
    for (int row = 0; masked && row < args.rows; ++row) {
      float* bias = tile.bias + static_cast<std::int64_t>(row) * kTileKeys;
      any |= MaskRow(segment, row, tile.keys, count, bias);
    }
    if (any) AttendTileKeys(args, tile, count, !walk.AllVisible(tile.keys, count), masked);
  }
}

inline void FinishTile(const AttendArgs& args, const TileScratch& tile) {
  const int dim = args.values.dim;
  for (int row = 0; row < args.rows; ++row) {
    const float total = tile.total[row];
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    const float* from =
        tile.outputs + static_cast<std::int64_t>(row / kPanel) * kPanel * dim + row % kPanel;
    for (int i = 0; i < dim; ++i) {
      args.outputs[row][i] = from[static_cast<std::int64_t>(i) * kPanel] * inverse;
    }
    args.lses[row] =
        total == 0.0f ? kMinusInfinity : (tile.highest[row] + __builtin_log2f(total)) * kLn2;
  }
}

inline void AttendTile(const AttendArgs& args) {
  const int dim_k = args.keys.dim;
  const int dim_v = args.values.dim;
  TileScratch tile;
  Cutter cutter{args.scratch};
  LayOutTile(cutter, args.rows, dim_k, dim_v, tile);
  PackQueries(args.queries, args.rows, dim_k, args.scale * kLog2E, tile.queries);
  const int lanes = PanelsFor(args.rows) * kPanel;
  for (int lane = 0; lane < lanes; ++lane) {
    tile.highest[lane] = kLowest;
    tile.total[lane] = 0.0f;
    const bool biased = args.slopes != nullptr && lane < args.rows;
    tile.slopes[lane] = biased ? args.slopes[lane] * kLog2E : 0.0f;
    tile.positions[lane] = biased ? static_cast<float>(args.positions[lane]) : 0.0f;
  }
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(lanes) * dim_v; ++i) tile.outputs[i] = 0;
  for (int s = 0; s < args.segment_count; ++s) AttendTileSegment(args, args.segments[s], tile);
  FinishTile(args, tile);
}
