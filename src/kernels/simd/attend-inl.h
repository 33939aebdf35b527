// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The kernels of table.h over a vector type, written once. An ISA's attend.cc defines `Vec` and
// the constants below in its own anonymous namespace, then includes this file inside it, so that
// no function of one instruction set can be linked into another.
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
//
// Few rows (decode): key values sit in the lanes, all rows of the group share each load.
//   One pass over K and V for up to kMaxFewRows rows, a chunk of keys of every KV head in turn,
//   since in a cache [token][head][dim] their rows are neighbours. While the scores of a chunk are
//   computed its values are fetched ahead, and under the values the keys that come next.
//
// Scores are kept in base 2: queries are scaled by scale * log2(e) once.

// Keys in a tile. 96 is a multiple of every R below; K, V and S of a tile take 120 KiB at dim 128,
// well inside the smallest L2 in use (1 MiB).
constexpr int kTileKeys = 96;
// Keys in a chunk of the few-rows kernel. Read at 65,536 keys, 8 KV heads x 128, f16, one thread of
// an Ice Lake Xeon that streams 13.5 GB/s: 16 keys 8.7, 32 keys 9.4, 64 keys 8.7, 128 keys 3.7 GB/s.
constexpr int kChunkKeys = 32;
// Above this the tile kernel is faster even with most lanes empty (estimated from its cost: 2
// products of 16 lanes against a dot product and a reduction for each row).
constexpr int kMaxFewRows = 8;
// KV heads whose chunks are read in turn; more only cost stack.
constexpr int kMaxProblems = 16;
constexpr int kPanel = kPanelVectors * Vec::kLanes;

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;
constexpr float kLowest = -3.0e38f;  // below every finite score, so that exp2(-inf - max) is 0
constexpr float kMinusInfinity = -__builtin_inff();

// 2^f = 1 + c1 f + .. + c5 f^5 on [-1/2, 1/2]: relative error 9e-8, and 2^0 = 1 exactly (least
// maximum fitted over Chebyshev points). Degree 6 would be 10 times closer, which f32 does not show.
constexpr float kExp2C1 = 6.931470037e-01f;
constexpr float kExp2C2 = 2.402224243e-01f;
constexpr float kExp2C3 = 5.550733581e-02f;
constexpr float kExp2C4 = 9.671512991e-03f;
constexpr float kExp2C5 = 1.326472266e-03f;

inline int Min(int a, int b) { return a < b ? a : b; }
inline int Max(int a, int b) { return a > b ? a : b; }
inline std::size_t RoundToLine(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

inline Vec PowerOfTwo(Vec f) {
  Vec p = Vec::Set(kExp2C5);
  p = MulAdd(p, f, Vec::Set(kExp2C4));
  p = MulAdd(p, f, Vec::Set(kExp2C3));
  p = MulAdd(p, f, Vec::Set(kExp2C2));
  p = MulAdd(p, f, Vec::Set(kExp2C1));
  return MulAdd(p, f, Vec::Set(1.0f));
}

// 2^x for x <= 0; 0 below 2^-126 (no denormals), NaN for NaN.
inline Vec Exp2(Vec x) {
  const Vec n = RoundToInteger(x);
  return ScaleOrZero(PowerOfTwo(x - n), n, x);
}

// ---- Rows to f32 ---------------------------------------------------------------------------------

template <DType kType>
inline Vec LoadAs(const std::byte* row, int i) {
  if constexpr (kType == DType::kF32) return Vec::Load(reinterpret_cast<const float*>(row) + i);
  const auto* half = reinterpret_cast<const std::uint16_t*>(row) + i;
  if constexpr (kType == DType::kF16) return Vec::LoadF16(half);
  return Vec::LoadBf16(half);
}

template <DType kType>
inline void WidenRow(const std::byte* row, int dim, float* out) {
  for (int i = 0; i < dim; i += Vec::kLanes) LoadAs<kType>(row, i).Store(out + i);
}

// Widens rows[0..count) of `view` into out [count][dim].
inline void WidenRows(const RowsView& view, const std::int32_t* rows, int count, float* out) {
  for (int j = 0; j < count; ++j) {
    const std::byte* row = view.data + rows[j] * view.stride;
    float* to = out + static_cast<std::int64_t>(j) * view.dim;
    switch (view.type) {
      case DType::kF32:
        WidenRow<DType::kF32>(row, view.dim, to);
        break;
      case DType::kF16:
        WidenRow<DType::kF16>(row, view.dim, to);
        break;
      case DType::kBF16:
        WidenRow<DType::kBF16>(row, view.dim, to);
        break;
    }
  }
}

inline bool AllFinite(const float* values, std::int64_t count) {
  Vec poison = Vec::Set(0.0f);
  for (std::int64_t i = 0; i < count; i += Vec::kLanes) {
    poison = MulAdd(Vec::Load(values + i), Vec::Set(0.0f), poison);
  }
  return SumLanes(poison) == 0.0f;
}

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

// ---- A tile of keys, gathered from runs ----------------------------------------------------------

// Walks the keys of a segment that any row may see, in tiles.
class KeyWalk {
 public:
  KeyWalk(const KeySegment& segment, int rows) : segment_(segment) {
    range_ = segment.visible[0];
    common_ = range_;
    for (int r = 1; r < rows; ++r) {
      const KeyRange row = segment.visible[r];
      range_.begin = Min(range_.begin, row.begin);
      range_.end = Max(range_.end, row.end);
      common_.begin = Max(common_.begin, row.begin);
      common_.end = Min(common_.end, row.end);
    }
  }

  // Fills keys with up to `most` next keys, ascending; returns their number, 0 at the end.
  int Next(int most, std::int32_t* keys) {
    int count = 0;
    while (count < most && run_ < segment_.run_count) {
      const KeyRange run = segment_.runs[run_];
      const int begin = Max(Max(run.begin, range_.begin), next_);
      const int end = Min(run.end, range_.end);
      const int taken = Max(0, Min(end - begin, most - count));
      for (int i = 0; i < taken; ++i) keys[count++] = begin + i;
      next_ = begin + taken;
      if (next_ >= end) ++run_;
    }
    return count;
  }

  // Every row sees all of these ascending keys.
  bool AllVisible(const std::int32_t* keys, int count) const {
    return keys[0] >= common_.begin && keys[count - 1] < common_.end;
  }

 private:
  const KeySegment& segment_;
  KeyRange range_;   // seen by any row
  KeyRange common_;  // seen by all rows
  int run_ = 0;
  std::int32_t next_ = -2147483647;
};

inline float MaskElement(const KeySegment& segment, int row, std::int32_t key) {
  const std::byte* mask = segment.mask_rows[row];
  if (segment.mask_type == DType::kF32) return reinterpret_cast<const float*>(mask)[key];
  const std::uint16_t bits = reinterpret_cast<const std::uint16_t*>(mask)[key];
  if (bits == 0) return 0.0f;
  if (bits == 0xFC00) return kMinusInfinity;
  return segment.mask_type == DType::kF16 ? WidenF16(bits) : WidenBf16(bits);
}

// out[j] = mask of `row` at keys[j], in base 2. Returns whether any is above -inf.
inline bool MaskRow(const KeySegment& segment, int row, const std::int32_t* keys, int count,
                    float* out) {
  bool any = false;
  for (int j = 0; j < count; ++j) {
    out[j] = MaskElement(segment, row, keys[j]) * kLog2E;
    any |= out[j] != kMinusInfinity;
  }
  return any;
}

// ---- Many rows -----------------------------------------------------------------------------------

struct TileScratch {
  float* queries;          // [panels][dim_k][kPanel], times scale * log2(e)
  float* outputs;          // [panels][dim_v][kPanel], not normalised
  float* highest;          // [panels][kPanel]
  float* total;            // [panels][kPanel]
  std::int32_t* begin;     // [panels][kPanel], visible keys of each lane; empty for idle lanes
  std::int32_t* end;
  std::int32_t* keys;      // [kTileKeys]
  float* key_tile;         // [kTileKeys][dim_k]
  float* value_tile;       // [kTileKeys][dim_v]
  float* scores;           // [kTileKeys][kPanel]
  float* bias;             // [rows][kTileKeys], only for masks
};

template <typename T>
inline T* Cut(std::byte*& at, std::int64_t count) {
  auto* piece = reinterpret_cast<T*>(at);
  at += RoundToLine(static_cast<std::size_t>(count) * sizeof(T));
  return piece;
}

inline int PanelsFor(int rows) { return (rows + kPanel - 1) / kPanel; }

// Returns where the layout ends; with a null base, its size.
inline std::byte* LayOutTile(std::byte* base, int rows, int dim_k, int dim_v, TileScratch& tile) {
  const std::int64_t lanes = static_cast<std::int64_t>(PanelsFor(rows)) * kPanel;
  tile.queries = Cut<float>(base, lanes * dim_k);
  tile.outputs = Cut<float>(base, lanes * dim_v);
  tile.highest = Cut<float>(base, lanes);
  tile.total = Cut<float>(base, lanes);
  tile.begin = Cut<std::int32_t>(base, lanes);
  tile.end = Cut<std::int32_t>(base, lanes);
  tile.keys = Cut<std::int32_t>(base, kTileKeys);
  tile.key_tile = Cut<float>(base, static_cast<std::int64_t>(kTileKeys) * dim_k);
  tile.value_tile = Cut<float>(base, static_cast<std::int64_t>(kTileKeys) * dim_v);
  tile.scores = Cut<float>(base, static_cast<std::int64_t>(kTileKeys) * kPanel);
  tile.bias = Cut<float>(base, static_cast<std::int64_t>(rows) * kTileKeys);
  return base;
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

inline void AttendTileKeys(const AttendArgs& args, const TileScratch& tile, int count,
                           bool hide, bool masked) {
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
  LayOutTile(args.scratch, args.rows, dim_k, dim_v, tile);
  PackQueries(args.queries, args.rows, dim_k, args.scale * kLog2E, tile.queries);
  const int lanes = PanelsFor(args.rows) * kPanel;
  for (int lane = 0; lane < lanes; ++lane) {
    tile.highest[lane] = kLowest;
    tile.total[lane] = 0.0f;
  }
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(lanes) * dim_v; ++i) tile.outputs[i] = 0;
  for (int s = 0; s < args.segment_count; ++s) AttendTileSegment(args, args.segments[s], tile);
  FinishTile(args, tile);
}

// ---- Few rows ------------------------------------------------------------------------------------

struct FewScratch {
  float* queries;      // [rows][dim_k], times scale * log2(e)
  float* outputs;      // [rows][dim_v], not normalised
  float* scores;       // [kMaxFewRows][kChunkKeys]
  float* bias;         // [kChunkKeys]
  float highest[kMaxFewRows];
  float total[kMaxFewRows];
};

inline std::byte* LayOutFew(std::byte* base, int dim_k, int dim_v, FewScratch& few) {
  few.queries = Cut<float>(base, static_cast<std::int64_t>(kMaxFewRows) * dim_k);
  few.outputs = Cut<float>(base, static_cast<std::int64_t>(kMaxFewRows) * dim_v);
  few.scores = Cut<float>(base, kMaxFewRows * kChunkKeys);
  few.bias = Cut<float>(base, kChunkKeys);
  return base;
}

inline void PrefetchRow(const RowsView& view, std::int32_t row) {
  const std::byte* at = view.data + row * view.stride;
  const int bytes = view.dim * (view.type == DType::kF32 ? 4 : 2);
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(at + i);
}

// scores[r][j] = queries[r] . k_j for R rows and the four keys at j.
template <int R, DType kType>
inline void ScoreFourKeys(const float* queries, const RowsView& keys, const std::byte* const* at,
                          float* scores) {
  Vec sum[R][4];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[r][j] = Vec::Set(0.0f);
  }
  for (int i = 0; i < keys.dim; i += Vec::kLanes) {
    Vec key[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) key[j] = LoadAs<kType>(at[j], i);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec query = Vec::Load(queries + r * keys.dim + i);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[r][j] = MulAdd(query, key[j], sum[r][j]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    StoreFourSums(sum[r][0], sum[r][1], sum[r][2], sum[r][3], scores + r * kChunkKeys);
  }
}

// Rows that will be needed soon, fetched one by one while something else is computed.
struct Ahead {
  const RowsView* view = nullptr;  // null: nothing to fetch
  const std::int32_t* rows = nullptr;
  int count = 0;

  void Fetch(int j) const {
    if (view != nullptr && j < count) PrefetchRow(*view, rows[j]);
  }
};

template <int R, DType kType>
inline void ScoreChunk(const float* queries, const RowsView& keys, const std::int32_t* index,
                       int count, const Ahead& ahead, float* scores) {
  for (int j = 0; j < count; j += 4) {
    const std::byte* at[4];
    for (int n = 0; n < 4; ++n) {
      at[n] = keys.data + index[Min(j + n, count - 1)] * keys.stride;  // ragged: the last one again
      ahead.Fetch(j + n);
    }
    ScoreFourKeys<R, kType>(queries, keys, at, scores + j);
  }
}

// outputs[r][i] = outputs[r][i] * shrink[r] + sum_j weights[r][j] * v_j[i]
template <int R, DType kType>
inline void AddChunkValues(const float* weights, const float* shrink, const RowsView& values,
                           const std::int32_t* index, int count, const Ahead& ahead,
                           float* outputs) {
  constexpr int kSlice = 4;  // vectors of the value row at a time: R * 4 accumulators
  for (int i = 0; i < values.dim; i += kSlice * Vec::kLanes) {
    const int vectors = Min(kSlice, (values.dim - i) / Vec::kLanes);
    Vec sum[R][kSlice];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kSlice; ++v) sum[r][v] = Vec::Set(0.0f);
    }
    const Ahead fetch = i == 0 ? ahead : Ahead{};
    if (vectors == kSlice) {
      for (int j = 0; j < count; ++j) {
        fetch.Fetch(j);
        const std::byte* row = values.data + index[j] * values.stride;
        Vec value[kSlice];
#pragma GCC unroll 4
        for (int v = 0; v < kSlice; ++v) value[v] = LoadAs<kType>(row, i + v * Vec::kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const Vec weight = Vec::Set(weights[r * kChunkKeys + j]);
#pragma GCC unroll 4
          for (int v = 0; v < kSlice; ++v) sum[r][v] = MulAdd(weight, value[v], sum[r][v]);
        }
      }
    } else {
      for (int j = 0; j < count; ++j) {
        const std::byte* row = values.data + index[j] * values.stride;
        for (int r = 0; r < R; ++r) {
          const Vec weight = Vec::Set(weights[r * kChunkKeys + j]);
          for (int v = 0; v < vectors; ++v) {
            sum[r][v] = MulAdd(weight, LoadAs<kType>(row, i + v * Vec::kLanes), sum[r][v]);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < vectors; ++v) {
        float* to = outputs + r * values.dim + i + v * Vec::kLanes;
        MulAdd(Vec::Load(to), Vec::Set(shrink[r]), sum[r][v]).Store(to);
      }
    }
  }
}

using ScoreChunkFn = void (*)(const float*, const RowsView&, const std::int32_t*, int, const Ahead&,
                              float*);
using AddValuesFn = void (*)(const float*, const float*, const RowsView&, const std::int32_t*, int,
                             const Ahead&, float*);

template <DType kType>
constexpr ScoreChunkFn kScoreChunk[5] = {nullptr, ScoreChunk<1, kType>, ScoreChunk<2, kType>,
                                         ScoreChunk<3, kType>, ScoreChunk<4, kType>};
template <DType kType>
constexpr AddValuesFn kAddValues[5] = {nullptr, AddChunkValues<1, kType>,
                                       AddChunkValues<2, kType>, AddChunkValues<3, kType>,
                                       AddChunkValues<4, kType>};

inline ScoreChunkFn ScoreChunkFor(DType type, int rows) {
  return type == DType::kF32   ? kScoreChunk<DType::kF32>[rows]
         : type == DType::kF16 ? kScoreChunk<DType::kF16>[rows]
                               : kScoreChunk<DType::kBF16>[rows];
}
inline AddValuesFn AddValuesFor(DType type, int rows) {
  return type == DType::kF32   ? kAddValues<DType::kF32>[rows]
         : type == DType::kF16 ? kAddValues<DType::kF16>[rows]
                               : kAddValues<DType::kBF16>[rows];
}

// Scores of one row to probabilities, in place, padded with zeros to whole vectors. Moves highest
// and total; returns what the sums so far shrink by.
inline float SoftmaxRow(float* scores, int count, float& highest, float& total) {
  const int padded = (count + Vec::kLanes - 1) / Vec::kLanes * Vec::kLanes;
  for (int j = count; j < padded; ++j) scores[j] = kMinusInfinity;
  Vec most = Vec::Set(highest);
  for (int j = 0; j < padded; j += Vec::kLanes) most = MaxOrSecond(Vec::Load(scores + j), most);
  const float after = MaxLanes(most);
  Vec sum = Vec::Set(0.0f);
  for (int j = 0; j < padded; j += Vec::kLanes) {
    const Vec weight = Exp2(Vec::Load(scores + j) - Vec::Set(after));
    weight.Store(scores + j);
    sum = sum + weight;
  }
  float shrink[Vec::kLanes];
  Exp2(Vec::Set(highest - after)).Store(shrink);
  highest = after;
  total = total * shrink[0] + SumLanes(sum);
  return shrink[0];
}

// Keeps the keys that any row's mask lets through. `uniform`: what is kept is visible to all rows.
inline int DropMasked(const KeySegment& segment, int rows, int count, std::int32_t* keys,
                      bool& uniform) {
  int kept = 0;
  for (int j = 0; j < count; ++j) {
    int seen = 0;
    for (int row = 0; row < rows; ++row) {
      if (MaskElement(segment, row, keys[j]) != kMinusInfinity) ++seen;
    }
    uniform &= seen == 0 || seen == rows;
    if (seen > 0) keys[kept++] = keys[j];
  }
  return kept;
}

// Hides what the row does not see of the ascending keys, and adds its mask.
inline void RestrictRow(const KeySegment& segment, int row, const std::int32_t* keys, int count,
                        float* bias, float* scores) {
  const KeyRange visible = segment.visible[row];
  if (segment.mask_rows != nullptr) {
    MaskRow(segment, row, keys, count, bias);
    for (int j = 0; j < count; ++j) scores[j] += bias[j];
  }
  for (int j = 0; j < count && keys[j] < visible.begin; ++j) scores[j] = kMinusInfinity;
  for (int j = count - 1; j >= 0 && keys[j] >= visible.end; --j) scores[j] = kMinusInfinity;
}

// As in AddValuesOneByOne: what a row does not see must not touch it.
inline void AddVisibleValues(const AttendArgs& args, const FewScratch& few, int row,
                             const std::int32_t* keys, int count, float shrink) {
  const int dim = args.values.dim;
  const AddValuesFn add = AddValuesFor(args.values.type, 1);
  float* output = few.outputs + static_cast<std::int64_t>(row) * dim;
  for (int i = 0; i < dim; ++i) output[i] *= shrink;
  const float keep = 1.0f;
  for (int j = 0; j < count; ++j) {
    const float* weight = few.scores + row * kChunkKeys + j;
    if (*weight != 0.0f) add(weight, &keep, args.values, keys + j, 1, {}, output);
  }
}

// One chunk of keys of one problem. `next`: the keys that will be read after it.
inline void AttendFewKeys(const AttendArgs& args, const KeySegment& segment, bool all_visible,
                          const std::int32_t* keys, int count, const Ahead& next,
                          FewScratch& few) {
  const int dim_k = args.keys.dim;
  const int dim_v = args.values.dim;
  for (int row = 0; row < args.rows; row += 4) {
    const int rows = Min(4, args.rows - row);
    const Ahead ahead = row == 0 ? Ahead{&args.values, keys, count} : Ahead{};
    ScoreChunkFor(args.keys.type, rows)(few.queries + row * dim_k, args.keys, keys, count, ahead,
                                        few.scores + row * kChunkKeys);
  }
  float shrink[kMaxFewRows];
  for (int row = 0; row < args.rows; ++row) {
    float* scores = few.scores + row * kChunkKeys;
    if (!all_visible || segment.mask_rows != nullptr) {
      RestrictRow(segment, row, keys, count, few.bias, scores);
    }
    shrink[row] = SoftmaxRow(scores, count, few.highest[row], few.total[row]);
  }
  for (int row = 0; !all_visible && row < args.rows; ++row) {
    AddVisibleValues(args, few, row, keys, count, shrink[row]);
  }
  for (int row = 0; all_visible && row < args.rows; row += 4) {
    const int rows = Min(4, args.rows - row);
    AddValuesFor(args.values.type, rows)(few.scores + row * kChunkKeys, shrink + row, args.values,
                                         keys, count, row == 0 ? next : Ahead{},
                                         few.outputs + row * dim_v);
  }
}

// A segment of all problems, chunk by chunk: their rows lie side by side in memory.
inline void AttendFewSegment(const AttendArgs* args, int problems, int s, FewScratch* few) {
  const KeySegment& segment = args[0].segments[s];
  const int rows = args[0].rows;
  std::int32_t buffers[2][kChunkKeys];
  KeyWalk walk(segment, rows);
  int next_count = walk.Next(kChunkKeys, buffers[0]);
  for (int chunk = 0; next_count > 0; ++chunk) {
    std::int32_t* keys = buffers[chunk % 2];
    std::int32_t* next_keys = buffers[(chunk + 1) % 2];
    int count = next_count;
    next_count = walk.Next(kChunkKeys, next_keys);
    bool all = walk.AllVisible(keys, count);
    if (segment.mask_rows != nullptr) {
      count = DropMasked(segment, rows, count, keys, all);
      if (count == 0) continue;
    }
    for (int p = 0; p < problems; ++p) {
      const Ahead next = p + 1 < problems ? Ahead{&args[p + 1].keys, keys, count}
                                          : Ahead{&args[0].keys, next_keys, next_count};
      AttendFewKeys(args[p], segment, all, keys, count, next, few[p]);
    }
  }
}

inline void BeginFew(const AttendArgs& args, FewScratch& few) {
  const int dim_k = args.keys.dim;
  const int dim_v = args.values.dim;
  for (int row = 0; row < args.rows; ++row) {
    few.highest[row] = kLowest;
    few.total[row] = 0.0f;
    for (int i = 0; i < dim_k; ++i) {
      few.queries[row * dim_k + i] = args.queries[row][i] * (args.scale * kLog2E);
    }
    for (int i = 0; i < dim_v; ++i) few.outputs[row * dim_v + i] = 0.0f;
  }
}

inline void FinishFew(const AttendArgs& args, const FewScratch& few) {
  const int dim_v = args.values.dim;
  for (int row = 0; row < args.rows; ++row) {
    const float total = few.total[row];
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    for (int i = 0; i < dim_v; ++i) {
      args.outputs[row][i] = few.outputs[row * dim_v + i] * inverse;
    }
    args.lses[row] =
        total == 0.0f ? kMinusInfinity : (few.highest[row] + __builtin_log2f(total)) * kLn2;
  }
}

inline void AttendFew(const AttendArgs* args, int problems) {
  FewScratch few[kMaxProblems];
  std::byte* scratch = args[0].scratch;
  for (int p = 0; p < problems; ++p) {
    scratch = LayOutFew(scratch, args[p].keys.dim, args[p].values.dim, few[p]);
    BeginFew(args[p], few[p]);
  }
  for (int s = 0; s < args[0].segment_count; ++s) AttendFewSegment(args, problems, s, few);
  for (int p = 0; p < problems; ++p) FinishFew(args[p], few[p]);
}

// ---- The table's functions -----------------------------------------------------------------------

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
  TileScratch tile;
  FewScratch few;
  const auto size = [](std::byte* end) {
    return static_cast<std::size_t>(end - static_cast<std::byte*>(nullptr));
  };
  if (rows > kMaxFewRows) return size(LayOutTile(nullptr, rows, dim_k, dim_v, tile));
  return size(LayOutFew(nullptr, dim_k, dim_v, few)) *
         static_cast<std::size_t>(Min(problems, kMaxProblems));
}

struct ScoreScratchLayout {
  float* queries;          // [panels][dim][kPanel], or [rows][dim] for few rows
  std::int32_t* keys;      // [kTileKeys]
  std::int32_t* block_of;  // [kTileKeys]
  float* key_tile;         // [kTileKeys][dim]
  float* scores;           // [kTileKeys][kPanel], or [rows][kChunkKeys]
};

inline std::byte* LayOutScore(std::byte* base, int rows, int dim, ScoreScratchLayout& layout) {
  layout.queries = Cut<float>(base, static_cast<std::int64_t>(PanelsFor(rows)) * kPanel * dim);
  layout.keys = Cut<std::int32_t>(base, kTileKeys);
  layout.block_of = Cut<std::int32_t>(base, kTileKeys);
  layout.key_tile = Cut<float>(base, static_cast<std::int64_t>(kTileKeys) * dim);
  layout.scores = Cut<float>(base, static_cast<std::int64_t>(kTileKeys) * kPanel);
  return base;
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
    for (int j = 0; j < count; ++j) {
      Vec most = Vec::Set(args.scores[layout.block_of[j]]);
      for (int v = 0; v < vectors; ++v) {
        most = MaxOrSecond(Vec::Load(layout.scores + j * kPanel + v * Vec::kLanes), most);
      }
      args.scores[layout.block_of[j]] = MaxLanes(most);
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
  LayOutScore(args.scratch, args.rows, args.keys.dim, layout);
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
      layout.block_of[count] = block;
      if (++count == most) flush();
    }
  }
  if (count > 0) flush();
}

std::size_t ScoreScratch(int rows, int dim) {
  ScoreScratchLayout layout;
  return static_cast<std::size_t>(LayOutScore(nullptr, rows, dim, layout) -
                                  static_cast<std::byte*>(nullptr));
}
