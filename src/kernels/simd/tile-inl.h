// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Many rows (tile): queries sit in the lanes, one key value is spread over them at a time.
//
//      Q^T [dim_k][panel]        S^T [key][panel]           O^T [dim_v][panel]
//      lanes = query rows   K.Q^T  -> softmax lane-wise ->  += V^T . P^T
//
//   Running maximum and sum are lane-wise: no horizontal step. Keys are gathered and converted in
//   tiles of kTileKeys, once for all panels, so a block list of any block size runs at the rate of a
//   dense range; the rows of the next tile are fetched under the arithmetic of this one.
//   Cost for a tile of n keys: 2 n rows (dim_k + dim_v) FLOP, n (dim_k + dim_v) values read.
//
// How numbers are held between memory and arithmetic is up to two policies, one for K.Q^T (Scores)
// and one for P.V (Values); F32Scores and F32Values are exact.

// Keys in a tile. 96 is a multiple of every full row count of MultiplyTile; K, V and S of a tile
// take 120 KiB at dim 128, well inside the smallest L2 in use (1 MiB).
constexpr int kTileKeys = 96;
// Elements between the rows of a converted tile, so that rows that are read down a column fall into
// different sets of the first-level cache: without, 96 rows of 512 bytes share 8 of its 64 sets.
constexpr int kRowPadding = 16;

inline int PanelsFor(int rows) { return (rows + kPanel - 1) / kPanel; }
inline int LanesFor(int rows) { return PanelsFor(rows) * kPanel; }

// ---- Policies ------------------------------------------------------------------------------------

// Q^T: `dim` rows of kPanel lanes for each panel. Idle lanes repeat the first row, which leaves the
// maximum over all lanes as it is.
inline void PackQueries(const float* const* queries, int rows, int dim, float scale, float* out) {
  for (int lane = 0; lane < LanesFor(rows); ++lane) {
    const float* query = queries[lane < rows ? lane : 0];
    float* to = out + static_cast<std::int64_t>(lane / kPanel) * kPanel * dim + lane % kPanel;
    for (int i = 0; i < dim; ++i) to[static_cast<std::int64_t>(i) * kPanel] = query[i] * scale;
  }
}

struct F32Scores {
  static constexpr int kKeys = kTileKeys;
  static constexpr bool kMayOverflow = false;  // what is finite in f32 stays so

  struct Operands {
    float* queries;  // [panels][dim][kPanel]
    float* keys;     // [kTileKeys][dim + kRowPadding]
  };
  static void LayOut(Cutter& cutter, int rows, int dim, Operands& to) {
    to.queries = cutter.Take<float>(static_cast<std::int64_t>(LanesFor(rows)) * dim);
    to.keys = cutter.Take<float>(static_cast<std::int64_t>(kTileKeys) * (dim + kRowPadding));
  }
  static void TakeQueries(const float* const* queries, int rows, int dim, float scale,
                          const Operands& to) {
    PackQueries(queries, rows, dim, scale, to.queries);
  }
  static void TakeKeys(const RowsView& view, const std::int32_t* keys, int count,
                       const Operands& to) {
    WidenRows(view, keys, count, view.dim + kRowPadding, to.keys);
  }
  static void Score(const Operands& from, int dim, int panel, int vectors, int count, float* scores,
                    TileAhead& ahead) {
    const float* queries = from.queries + static_cast<std::int64_t>(panel) * kPanel * dim;
    MultiplyPanel<F32Product, false, false>(vectors, from.keys, dim + kRowPadding, count, queries,
                                            dim, scores, ahead);
  }
  // By Score for a panel of kTileKeys keys: about one for each step of Multiply.
  static constexpr int FetchesOfTile(int /*dim*/) { return kTileKeys / 12; }
};

struct F32Values {
  struct Operands {
    float* values;  // [kTileKeys][dim + kRowPadding]
  };
  static void LayOut(Cutter& cutter, int dim, Operands& to) {
    to.values = cutter.Take<float>(static_cast<std::int64_t>(kTileKeys) * (dim + kRowPadding));
  }
  // Returns whether all are finite.
  static bool TakeValues(const RowsView& view, const std::int32_t* keys, int count,
                         const Operands& to) {
    const int stride = view.dim + kRowPadding;
    WidenRows(view, keys, count, stride, to.values);
    Vec poison = Vec::Set(0.0f);
    for (int j = 0; j < count; ++j) {
      for (int i = 0; i < view.dim; i += Vec::kLanes) {
        poison = MulAdd(Vec::Load(to.values + j * stride + i), Vec::Set(0.0f), poison);
      }
    }
    return SumLanes(poison) == 0.0f;
  }
  // The weights 2^first and 2^second of each lane, of the keys j and j + 1, into the rows of S^T; and what they
  // add to two sums.
  static void PutWeights(float* scores, int j, int lane, Vec first, Vec second, Vec* sums) {
    const Vec weights[] = {Exp2(first), Exp2(second)};
    for (int n = 0; n < 2; ++n) {
      weights[n].Store(scores + (j + n) * kPanel + lane);
      sums[n] = sums[n] + weights[n];
    }
  }
  static float Weight(const float* scores, int j, int lane) { return scores[j * kPanel + lane]; }
  static void Add(const Operands& from, int dim, int vectors, int count, const float* scores,
                  float* outputs, TileAhead& ahead) {
    MultiplyPanel<F32Product, true, true>(vectors, from.values, dim + kRowPadding, dim, scores,
                                          count, outputs, ahead);
  }
};

// ---- Many rows -----------------------------------------------------------------------------------

template <typename Scores, typename Values>
struct TileScratch {
  typename Scores::Operands score_operands;
  typename Values::Operands value_operands;
  float* outputs;       // [panels][dim_v][kPanel], not normalised
  float* highest;       // [panels][kPanel]
  float* total;         // [panels][kPanel]
  std::int32_t* begin;  // [panels][kPanel], visible keys of each lane; empty for idle lanes
  std::int32_t* end;    // [panels][kPanel]
  std::int32_t* keys;   // [kTileKeys]
  std::int32_t* next;   // [kTileKeys], of the tile that follows
  float* scores;        // [kTileKeys][kPanel]
  float* bias;          // [rows][kTileKeys], only for masks
  float* slopes;        // [panels][kPanel], ALiBi, times log2(e)
  float* positions;     // [panels][kPanel]
  float* value;         // [dim_v], one row
};

template <typename Scores, typename Values>
void LayOutTile(Cutter& cutter, int rows, int dim_k, int dim_v, TileScratch<Scores, Values>& tile) {
  const std::int64_t lanes = LanesFor(rows);
  Scores::LayOut(cutter, rows, dim_k, tile.score_operands);
  Values::LayOut(cutter, dim_v, tile.value_operands);
  tile.outputs = cutter.Take<float>(lanes * dim_v);
  tile.highest = cutter.Take<float>(lanes);
  tile.total = cutter.Take<float>(lanes);
  tile.begin = cutter.Take<std::int32_t>(lanes);
  tile.end = cutter.Take<std::int32_t>(lanes);
  tile.keys = cutter.Take<std::int32_t>(kTileKeys);
  tile.next = cutter.Take<std::int32_t>(kTileKeys);
  tile.scores = cutter.Take<float>(static_cast<std::int64_t>(kTileKeys) * kPanel);
  tile.bias = cutter.Take<float>(static_cast<std::int64_t>(rows) * kTileKeys);
  tile.slopes = cutter.Take<float>(lanes);
  tile.positions = cutter.Take<float>(lanes);
  tile.value = cutter.Take<float>(dim_v);
}

inline int VectorsOf(int rows, int panel) {
  return Min(kPanelVectors, (rows - panel * kPanel + Vec::kLanes - 1) / Vec::kLanes);
}

// Soft cap, then ALiBi.
template <typename Tile>
void ShapeScores(const AttendArgs& args, const Tile& tile, int vectors, int panel, int count) {
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

template <typename Tile>
void AddMask(const Tile& tile, int rows, int panel, int count) {
  const int last = Min(rows, (panel + 1) * kPanel);
  for (int row = panel * kPanel; row < last; ++row) {
    const float* bias = tile.bias + static_cast<std::int64_t>(row) * kTileKeys;
    for (int j = 0; j < count; ++j) tile.scores[j * kPanel + row % kPanel] += bias[j];
  }
}

template <typename Tile>
void HideInvisible(const Tile& tile, int vectors, int panel, int count) {
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
// far where it moved. Keys are taken in pairs: a missing last one scores -inf.
template <typename Scores, typename Values>
void SoftmaxPanel(const TileScratch<Scores, Values>& tile, int vectors, int panel, int count,
                  int dim_v) {
  float* outputs = tile.outputs + static_cast<std::int64_t>(panel) * kPanel * dim_v;
  for (int v = 0; v < vectors; ++v) {
    const int lane = v * Vec::kLanes;
    float* const highest = tile.highest + panel * kPanel + lane;
    float* const total = tile.total + panel * kPanel + lane;
    const Vec before = Vec::Load(highest);
    if (count % 2 != 0) Vec::Set(kMinusInfinity).Store(tile.scores + count * kPanel + lane);
    Vec most[2] = {before, before};
    for (int j = 0; j < count; j += 2) {
      const float* score = tile.scores + j * kPanel + lane;
      most[0] = MaxOrSecond(Vec::Load(score), most[0]);
      most[1] = MaxOrSecond(Vec::Load(score + kPanel), most[1]);
    }
    const Vec after = MaxOrSecond(most[0], most[1]);
    Vec sums[2] = {Vec::Set(0.0f), Vec::Set(0.0f)};
    for (int j = 0; j < count; j += 2) {
      const float* score = tile.scores + j * kPanel + lane;
      Values::PutWeights(tile.scores, j, lane, Vec::Load(score) - after,
                         Vec::Load(score + kPanel) - after, sums);
    }
    Vec sum = sums[0] + sums[1];
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
template <typename Scores, typename Values>
void AddValuesOneByOne(const AttendArgs& args, const TileScratch<Scores, Values>& tile, int panel,
                       int count) {
  const int dim_v = args.values.dim;
  float* outputs = tile.outputs + static_cast<std::int64_t>(panel) * kPanel * dim_v;
  const int lanes = Min(kPanel, args.rows - panel * kPanel);
  for (int j = 0; j < count; ++j) {
    WidenRows(args.values, tile.keys + j, 1, dim_v, tile.value);
    for (int lane = 0; lane < lanes; ++lane) {
      const float weight = Values::Weight(tile.scores, j, lane);
      if (weight == 0.0f) continue;
      for (int i = 0; i < dim_v; ++i) {
        outputs[static_cast<std::int64_t>(i) * kPanel + lane] += weight * tile.value[i];
      }
    }
  }
}

template <typename Scores, typename Values>
void AttendTileKeys(const AttendArgs& args, const TileScratch<Scores, Values>& tile, int count,
                    bool hide, bool masked, TileAhead& ahead) {
  const int dim_k = args.keys.dim;
  const int dim_v = args.values.dim;
  Scores::TakeKeys(args.keys, tile.keys, count, tile.score_operands);
  const bool finite = Values::TakeValues(args.values, tile.keys, count, tile.value_operands);
  for (int panel = 0; panel < PanelsFor(args.rows); ++panel) {
    const int vectors = VectorsOf(args.rows, panel);
    float* outputs = tile.outputs + static_cast<std::int64_t>(panel) * kPanel * dim_v;
    Scores::Score(tile.score_operands, dim_k, panel, vectors, count, tile.scores, ahead);
    if (args.softcap > 0 || args.slopes != nullptr) {
      ShapeScores(args, tile, vectors, panel, count);
    }
    if (masked) AddMask(tile, args.rows, panel, count);
    if (hide) HideInvisible(tile, vectors, panel, count);
    SoftmaxPanel(tile, vectors, panel, count, dim_v);
    if (finite) {
      Values::Add(tile.value_operands, dim_v, vectors, count, tile.scores, outputs, ahead);
    } else {
      AddValuesOneByOne(args, tile, panel, count);
    }
  }
}

template <typename Scores, typename Values>
void AttendTileSegment(const AttendArgs& args, const KeySegment& segment,
                       TileScratch<Scores, Values>& tile) {
  for (int lane = 0; lane < LanesFor(args.rows); ++lane) {
    const KeyRange visible = lane < args.rows ? segment.visible[lane] : KeyRange{0, 0};
    tile.begin[lane] = visible.begin;
    tile.end[lane] = visible.end;
  }
  const bool masked = segment.mask_rows != nullptr;
  // Both products of a panel take about (kTileKeys + dim_v) / 12 steps.
  const int steps = PanelsFor(args.rows) * (kTileKeys + args.values.dim) / 12;
  KeyWalk walk(segment, args.rows);
  int next_count = walk.Next(kTileKeys, tile.next);
  while (next_count > 0) {
    std::int32_t* const keys = tile.next;
    tile.next = tile.keys;
    tile.keys = keys;
    const int count = next_count;
    next_count = walk.Next(kTileKeys, tile.next);
    bool any = !masked;
    for (int row = 0; masked && row < args.rows; ++row) {
      float* bias = tile.bias + static_cast<std::int64_t>(row) * kTileKeys;
      any |= MaskRow(segment, row, tile.keys, count, bias);
    }
    if (!any) continue;
    TileAhead ahead(&args.keys, &args.values, tile.next, next_count, steps);
    AttendTileKeys(args, tile, count, !walk.AllVisible(tile.keys, count), masked, ahead);
  }
}

template <typename Tile>
void FinishTile(const AttendArgs& args, const Tile& tile) {
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

template <typename Scores, typename Values>
void AttendTile(const AttendArgs& args) {
  const int dim_k = args.keys.dim;
  const int dim_v = args.values.dim;
  TileScratch<Scores, Values> tile;
  Cutter cutter{args.scratch};
  LayOutTile(cutter, args.rows, dim_k, dim_v, tile);
  Scores::TakeQueries(args.queries, args.rows, dim_k, args.scale * kLog2E, tile.score_operands);
  const int lanes = LanesFor(args.rows);
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

template <typename Scores, typename Values>
std::size_t TileBytes(int rows, int dim_k, int dim_v) {
  Cutter cutter{nullptr};
  TileScratch<Scores, Values> tile;
  LayOutTile(cutter, rows, dim_k, dim_v, tile);
  return cutter.used;
}
