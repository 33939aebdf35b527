// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Many rows (tile) with AMX, after the plan of simd/tile-inl.h:
//
//      Q^T [dim_k][panel]        S^T [key][panel]           O^T [dim_v][panel]
//      columns = query rows  K.Q^T -> softmax lane-wise ->  += V^T . P^T
//
//   for each block of kBlockKeys keys: pack K and V into tiles, once for all panels of 32 rows
//     for each panel
//       for each tile of 16 keys: scores, and meanwhile the weights of an earlier tile
//       for each tile of 16 dims of the values: O^T += V^T.P^T
//
//   Both loops are one, stream-inl.h.
//
//   In the first-level cache lie scores of two tiles (4 KiB), the weights of a block and the
//   queries of the panel (16 and 8 KiB at dim 128); K and V of a block stream from the second level,
//   32 bytes a cycle at the rate of the products.
//
//   Cost for a block of n keys: 2 n rows (dim_k + dim_v) FLOP for each of the products of parts,
//   n (dim_k + dim_v) numbers read.

struct AmxScratch {
  std::uint32_t* queries;  // [panels][parts][steps][16 dim pairs][kPanel]
  Bf16* keys;              // [kBlockKeys / 16][parts][steps][16][32]
  Bf16* values;            // [dim_v / 16][parts][kBlockSteps][16][32]
  Bf16* rows;              // [32 keys][parts][dim_v]
  std::uint32_t* weights;  // [parts][kBlockKeys / 2][kPanel]
  float* scores;           // [2 tiles][16 keys][kPanel]
  float* outputs;          // [panels][dim_v][kPanel], not normalised
  float* start;            // [panels][kPanel], minus the reference, added to scores
  float* total;            // [panels][kPanel]
  std::int32_t* begin;     // [panels][kPanel], visible keys of each lane; empty for idle lanes
  std::int32_t* end;       // [panels][kPanel]
  std::int32_t* block;     // [kBlockKeys], keys
  std::int32_t* next;      // [kBlockKeys], of the block that follows
  float* slopes;           // [panels][kPanel], ALiBi, times log2(e)
  float* positions;        // [panels][kPanel]
};

template <typename Scores, typename Values>
void LayOutAmx(Cutter& cutter, int rows, int dim_k, int dim_v, AmxScratch& tile) {
  const std::int64_t lanes = LanesFor(rows);
  const std::int64_t depth = DepthSteps(dim_k) * kTileDepth;
  const std::int64_t depth_v = DepthSteps(dim_v) * kTileDepth;
  tile.queries = cutter.Take<std::uint32_t>(lanes * Scores::kRight * depth / 2);
  tile.keys = cutter.Take<Bf16>(kBlockKeys * Scores::kLeft * depth);
  tile.values = cutter.Take<Bf16>(kBlockKeys * Values::kLeft * depth_v);
  tile.rows = cutter.Take<Bf16>(kTileDepth * Values::kLeft * depth_v);
  tile.weights = cutter.Take<std::uint32_t>(Values::kRight * kBlockKeys / 2 * kPanel);
  tile.scores = cutter.Take<float>(2 * kTileRows * kPanel);
  tile.outputs = cutter.Take<float>(lanes * dim_v);
  tile.start = cutter.Take<float>(lanes);
  tile.total = cutter.Take<float>(lanes);
  tile.begin = cutter.Take<std::int32_t>(lanes);
  tile.end = cutter.Take<std::int32_t>(lanes);
  tile.block = cutter.Take<std::int32_t>(kBlockKeys);
  tile.next = cutter.Take<std::int32_t>(kBlockKeys);
  tile.slopes = cutter.Take<float>(lanes);
  tile.positions = cutter.Take<float>(lanes);
}

inline float* ScoresOf(const AmxScratch& tile, int key_tile) {
  return tile.scores + key_tile % 2 * kTileRows * kPanel;
}

// A turn of the scores, and meanwhile the weights of an earlier tile.
template <typename Scores, int NR, int kSide, typename Weights>
__attribute__((noinline)) void ScoreTurn(const AmxScratch& tile, const TileStream& keys, int index,
                                         Weights& earlier) {
  using Sums = TileSums<kSide, NR>;
  WeightConstants<Weights::kParts> constants;
  Weights weights = earlier;
  // Pairs of keys at a product, so that none are left for when the products are done (dim 64: 14.1 ms with
  // one, 12.5 with two).
  const int products = NR * keys.steps;
  const int pairs = (kTileRows / 2 + products - 1) / products;
  AddTurn<Scores, NR, kSide>(
      keys, index,
      [&]() __attribute__((always_inline)) {
        if (index >= 2) Sums::Store(ScoresOf(tile, index));
        Sums::Zero();
      },
      [&]() __attribute__((always_inline)) {
        for (int i = 0; i < pairs; ++i) weights.Advance(constants);
      });
  weights.Finish(constants);
  earlier = weights;
}

// A turn of O^T += V^T.P^T over all keys of a block. meanwhile: called 2 NR times a step.
template <typename Values, int NR, int kSide, typename Meanwhile>
__attribute__((always_inline)) inline void ValueTurn(const TileStream& values, int index,
                                                     float* outputs, Meanwhile&& meanwhile) {
  using Sums = TileSums<kSide, NR>;
  float* const at = outputs + index * kTileRows * kPanel;
  const float* next = at + kTileRows * kPanel;
  AddTurn<Values, NR, kSide>(
      values, index,
      [&]() __attribute__((always_inline)) {
        if (index >= 2) Sums::Store(at - 2 * kTileRows * kPanel);
        if (index < values.tiles) Sums::Load(at);
      },
      [&]() __attribute__((always_inline)) {
        for (int v = 0; v < NR; ++v) {
          _mm_prefetch(reinterpret_cast<const char*>(next + v * Vec::kLanes), _MM_HINT_T0);
        }
        next += kPanel;
        meanwhile();
      });
}

// The first turn of the values, which reads all but the last chunk's weights, and meanwhile those.
template <typename Values, int NR, typename Weights>
__attribute__((noinline)) void BeginValues(const TileStream& values, float* outputs,
                                           Weights& last) {
  WeightConstants<Weights::kParts> constants;
  Weights weights = last;
  ValueTurn<Values, NR, 0>(
      values, 0, outputs, [&]() __attribute__((always_inline)) { weights.Advance(constants); });
  weights.Finish(constants);
  last = weights;
}

template <typename Values, int NR, int kSide>
__attribute__((noinline)) void AddDims(const TileStream& values, int index, float* outputs) {
  ValueTurn<Values, NR, kSide>(values, index, outputs, [] {});
}

// The turns after the first.
template <typename Values, int NR>
inline void AddValues(const TileStream& values, float* outputs, TileAhead& ahead) {
  for (int index = 1; index <= values.tiles; ++index) {
    if (index % 2 == 0) {
      AddDims<Values, NR, 0>(values, index, outputs);
    } else {
      AddDims<Values, NR, 1>(values, index, outputs);
    }
    ahead.Fetch();
  }
  float* const last = outputs + (values.tiles - 1) * kTileRows * kPanel;
  if (values.tiles % 2 == 1) {
    TileSums<0, NR>::Store(last);
  } else {
    TileSums<1, NR>::Store(last);
  }
}

// Tiles of a panel whose weights are made together.
struct ScoredTiles {
  int first;
  int count;

  int keys() const { return count * kTileRows; }
};

// Moves references by `step`, an integer for each lane of a vector.
inline void MoveReference(float* start, Vec step) { (Vec::Load(start) - step).Store(start); }

template <int NR>
inline bool AnyFresh(const float* total) {
  __mmask16 fresh = 0;
  for (int v = 0; v < NR; ++v) {
    fresh |=
        _mm512_cmp_ps_mask(Vec::Load(total + v * Vec::kLanes).v, _mm512_setzero_ps(), _CMP_EQ_OQ);
  }
  return fresh != 0;
}
template <int NR>
inline bool AllZero(const float* at) {
  __m512i bits = _mm512_setzero_si512();
  for (int v = 0; v < NR; ++v) bits = _mm512_or_si512(bits, Bits(Vec::Load(at + v * Vec::kLanes)));
  return _mm512_test_epi32_mask(bits, bits) == 0;
}

// Sets the references of lanes that have seen nothing yet.
template <int NR>
__attribute__((noinline)) void BeginLanes(const AmxScratch& tile, int panel, ScoredTiles of) {
  for (int v = 0; v < NR; ++v) {
    const int lane = v * Vec::kLanes;
    const Vec total = Vec::Load(tile.total + panel * kPanel + lane);
    const __mmask16 fresh = _mm512_cmp_ps_mask(total.v, _mm512_setzero_ps(), _CMP_EQ_OQ);
    float* const start = tile.start + panel * kPanel + lane;
    const Vec most = LargestScore(ScoresOf(tile, of.first) + lane, of.keys()) + Vec::Load(start);
    const __mmask16 far = _mm512_mask_cmp_ps_mask(fresh, _mm512_abs_ps(most.v),
                                                  _mm512_set1_ps(kNearZero), _CMP_GT_OQ);
    const __mmask16 begin =
        _mm512_mask_cmp_ps_mask(far, most.v, _mm512_set1_ps(kMinusInfinity), _CMP_GT_OQ);
    MoveReference(start, {_mm512_maskz_roundscale_ps(begin, most.v,
                                                     _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)});
  }
}

// Moves the references of lanes whose totals are too large: all that was made relative to them is scaled,
// and the tiles' weights are made again.
template <int NR, typename Weights>
__attribute__((noinline)) void LowerTotals(const AmxScratch& tile, int dim_v, int panel,
                                           ScoredTiles of, const Weights& weights) {
  for (int v = 0; v < NR; ++v) {
    const int lane = v * Vec::kLanes;
    float* const total = tile.total + panel * kPanel + lane;
    const __mmask16 large =
        _mm512_cmp_ps_mask(weights.total(v).v, _mm512_set1_ps(kLargestTotal), _CMP_GE_OQ);
    float* const start = tile.start + panel * kPanel + lane;
    const float* const scores = ScoresOf(tile, of.first) + lane;
    // Above the largest score and above the sum of all before.
    const Vec most = MaxOrSecond(LargestScore(scores, of.keys()) + Vec::Load(start),
                                 Vec{_mm512_getexp_ps(Vec::Load(total).v)});
    const Vec step = {
        _mm512_maskz_roundscale_ps(large, most.v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)};
    const Vec shrink = {_mm512_scalef_ps(_mm512_set1_ps(1.0f), (Vec::Set(0.0f) - step).v)};
    MoveReference(start, step);
    ScaleRows(total, 1, shrink);
    ScaleRows(tile.outputs + static_cast<std::int64_t>(panel) * kPanel * dim_v + lane, dim_v,
              shrink);
    std::uint32_t* const before = tile.weights + lane;
    for (int part = 0; part < Weights::kParts; ++part) {
      ScaleWeights(before + part * kBlockKeys / 2 * kPanel, of.first * kTileRows / 2, shrink);
    }
    TileWeights<Weights::kParts, 1> again(scores, of.keys(), start, false, total,
                                          before + of.first * kTileRows / 2 * kPanel,
                                          kBlockKeys / 2 * kPanel);
    again.Finish(WeightConstants<Weights::kParts>());
    again.total(0).Store(total);
  }
}

// Keeps the totals of tiles whose weights are made. Returns whether references moved.
template <int NR, typename Weights>
inline bool EndTiles(const AmxScratch& tile, int dim_v, int panel, ScoredTiles of,
                     const Weights& weights) {
  Vec most = weights.total(0);
  if constexpr (NR == 2) most = MaxOrSecond(most, weights.total(1));
  if (_mm512_cmp_ps_mask(most.v, _mm512_set1_ps(kLargestTotal), _CMP_GE_OQ) != 0) [[unlikely]] {
    LowerTotals<NR>(tile, dim_v, panel, of, weights);
    return true;
  }
  for (int v = 0; v < NR; ++v) {
    weights.total(v).Store(tile.total + panel * kPanel + v * Vec::kLanes);
  }
  return false;
}

// The mask at the keys of a tile. Heads of a token share a mask row.
inline void AddTileMask(const KeySegment& segment, int rows, int panel, const std::int32_t* keys,
                        int count, float* scores) {
  float bias[kTileRows];
  const std::byte* of = nullptr;
  for (int row = panel * kPanel; row < Min(rows, (panel + 1) * kPanel); ++row) {
    if (segment.mask_rows[row] != of) MaskRow(segment, row, keys, count, bias);
    of = segment.mask_rows[row];
    for (int j = 0; j < count; ++j) scores[j * kPanel + row % kPanel] += bias[j];
  }
}

// What is done to a block's scores beside softmax.
struct BlockTraits {
  const KeySegment* segment;
  int count;    // of keys
  bool shaped;  // soft cap or ALiBi
  bool masked;
  bool hide;  // not all rows see all keys

  int chunks() const { return (count + kTileDepth - 1) / kTileDepth; }
};

// Soft cap, ALiBi, mask, and what is hidden.
template <int NR>
inline void EditScores(const AttendArgs& args, const AmxScratch& tile, const BlockTraits& traits,
                       int panel, int key_tile) {
  struct {
    float* scores;
    const std::int32_t* keys;
    const float* slopes;
    const float* positions;
    const std::int32_t* begin;
    const std::int32_t* end;
  } at = {ScoresOf(tile, key_tile),
          tile.block + key_tile * kTileRows,
          tile.slopes,
          tile.positions,
          tile.begin,
          tile.end};
  const int count = Max(0, Min(kTileRows, traits.count - key_tile * kTileRows));
  if (traits.shaped) ShapeScores(args, at, NR, panel, count);
  if (traits.masked) AddTileMask(*traits.segment, args.rows, panel, at.keys, count, at.scores);
  if (traits.hide) HideInvisible(at, NR, panel, count);
  for (float* score = at.scores + count * kPanel; score < at.scores + kTileRows * kPanel;
       score += Vec::kLanes) {
    Vec::Set(kMinusInfinity).Store(score);
  }
}

template <typename Scores, typename Values, int NR>
void AttendPanel(const AttendArgs& args, const AmxScratch& tile, const BlockTraits& traits,
                 int panel, TileAhead& ahead) {
  using Weights = TileWeights<Values::kRight, NR>;
  const int dim_v = args.values.dim;
  const int chunks = traits.chunks();
  const TileStream keys =
      KeyStream<Scores>(tile.keys, 2 * chunks, tile.queries, panel, DepthSteps(args.keys.dim));
  const TileStream values = {.left = tile.values,
                             .left_tile = Values::kLeft * kBlockSteps * kTileElements,
                             .left_part = kBlockSteps * kTileElements,
                             .right = tile.weights,
                             .right_part = kBlockKeys / 2 * kPanel,
                             .tiles = dim_v / kTileRows,
                             .steps = chunks};
  float* const outputs = tile.outputs + static_cast<std::int64_t>(panel) * kPanel * dim_v;
  const float* const start = tile.start + panel * kPanel;
  const float* const total = tile.total + panel * kPanel;
  const bool edit = traits.shaped || traits.masked || traits.hide || traits.count % kTileDepth != 0;
  const bool fresh = AnyFresh<NR>(total);
  bool from_zero = AllZero<NR>(start);
  const auto begin = [&](ScoredTiles of) {
    if (edit) {
      for (int i = 0; i < of.count; ++i) EditScores<NR>(args, tile, traits, panel, of.first + i);
    }
    if (fresh) {
      BeginLanes<NR>(tile, panel, of);
      from_zero = AllZero<NR>(start);
    }
    return Weights(ScoresOf(tile, of.first), of.keys(), start, from_zero, total,
                   tile.weights + of.first * kTileRows / 2 * kPanel, kBlockKeys / 2 * kPanel);
  };
  // Returns whether references moved.
  const auto end = [&](ScoredTiles of, const Weights& weights) {
    const bool moved = EndTiles<NR>(tile, dim_v, panel, of, weights);
    if (moved) from_zero = false;
    return moved;
  };
  // The scores of tile index - 2 are stored in turn `index`, so those of index - 3 are there.
  for (int index = 0; index <= keys.tiles; ++index) {
    const ScoredTiles before = {index - 3, 1};
    Weights earlier = index >= 3 ? begin(before) : Weights();
    if (index % 2 == 0) {
      ScoreTurn<Scores, NR, 0>(tile, keys, index, earlier);
    } else {
      ScoreTurn<Scores, NR, 1>(tile, keys, index, earlier);
    }
    if (index >= 3) end(before, earlier);
    ahead.Fetch();
  }
  TileSums<1, NR>::Store(ScoresOf(tile, keys.tiles - 1));
  const ScoredTiles two = {keys.tiles - 2, 2};
  Weights last = begin(two);
  BeginValues<Values, NR>(values, outputs, last);
  if (end(two, last)) {
    last = Weights();
    BeginValues<Values, NR>(values, outputs, last);
  }
  AddValues<Values, NR>(values, outputs, ahead);
}

template <typename Scores, typename Values>
void AttendBlock(const AttendArgs& args, const AmxScratch& tile, const BlockTraits& traits,
                 TileAhead& ahead) {
  const int padded = traits.chunks() * kTileDepth;
  for (int j = traits.count; j < padded; ++j) tile.block[j] = tile.block[traits.count - 1];
  PackKeys<Scores::kLeft>(args.keys, tile.block, padded, tile.keys);
  PackValues<Values::kLeft>(args.values, tile.block, padded, tile.rows, tile.values);
  for (int panel = 0; panel < PanelsFor(args.rows); ++panel) {
    if (VectorsOf(args.rows, panel) == 1) {
      AttendPanel<Scores, Values, 1>(args, tile, traits, panel, ahead);
    } else {
      AttendPanel<Scores, Values, 2>(args, tile, traits, panel, ahead);
    }
  }
}

inline bool AnyUnmasked(const KeySegment& segment, int rows, const std::int32_t* keys, int count) {
  for (int row = 0; row < rows; ++row) {
    if (row > 0 && segment.mask_rows[row] == segment.mask_rows[row - 1]) continue;
    for (int j = 0; j < count; ++j) {
      if (MaskElement(segment, row, keys[j]) != kMinusInfinity) return true;
    }
  }
  return false;
}

template <typename Scores, typename Values>
void AttendAmxSegment(const AttendArgs& args, const KeySegment& segment, AmxScratch& tile) {
  for (int lane = 0; lane < LanesFor(args.rows); ++lane) {
    const KeyRange visible = lane < args.rows ? segment.visible[lane] : KeyRange{0, 0};
    tile.begin[lane] = visible.begin;
    tile.end[lane] = visible.end;
  }
  BlockTraits traits = {.segment = &segment,
                        .count = 0,
                        .shaped = args.softcap > 0 || args.slopes != nullptr,
                        .masked = segment.mask_rows != nullptr,
                        .hide = false};
  KeyWalk walk(segment, args.rows);
  int next_count = walk.Next(kBlockKeys, tile.next);
  while (next_count > 0) {
    std::int32_t* const keys = tile.next;
    tile.next = tile.block;
    tile.block = keys;
    traits.count = next_count;
    next_count = walk.Next(kBlockKeys, tile.next);
    if (traits.masked && !AnyUnmasked(segment, args.rows, tile.block, traits.count)) continue;
    traits.hide = !walk.AllVisible(tile.block, traits.count);
    TileAhead ahead(&args.keys, &args.values, tile.next, next_count,
                    PanelsFor(args.rows) * (2 * traits.chunks() + args.values.dim / kTileRows + 1));
    AttendBlock<Scores, Values>(args, tile, traits, ahead);
  }
}

// Output rows of 16 lanes, which are written a vector of each row at a time, too far apart for the
// processor to fetch them by itself (items of 4 Ki keys: 8.1 ms without, 7.9 with).
inline void FetchOutputs(const AttendArgs& args, int first_row) {
  for (int row = first_row; row < Min(args.rows, first_row + kTileRows); ++row) {
    for (int i = 0; i < args.values.dim; i += Vec::kLanes) {
      __builtin_prefetch(args.outputs[row] + i, /*rw=*/1);
    }
  }
}

// Outputs of 16 lanes, turned into rows. Returns the lanes whose numbers are such that bf16 and flushed
// subnormals can be trusted: not too small, none infinite, no NaN.
inline __mmask16 FinishLanes(const AttendArgs& args, const AmxScratch& tile, int first_row) {
  const int dim = args.values.dim;
  const int rows = Min(kTileRows, args.rows - first_row);
  const float* from = tile.outputs + static_cast<std::int64_t>(first_row / kPanel) * kPanel * dim +
                      first_row % kPanel;
  const Vec total = Vec::Load(tile.total + first_row);
  const __mmask16 empty = _mm512_cmp_ps_mask(total.v, _mm512_setzero_ps(), _CMP_EQ_OQ);
  const Vec inverse = {
      _mm512_maskz_div_ps(static_cast<__mmask16>(~empty), _mm512_set1_ps(1.0f), total.v)};
  Vec size = Vec::Set(0.0f);
  for (int i = 0; i < dim; i += 16) {
    __m512i turned[16];
    for (int d = 0; d < 16; ++d) {
      const Vec output = Vec::Load(from + (i + d) * kPanel) * inverse;
      size = size + Vec{_mm512_abs_ps(output.v)};
      turned[d] = Bits(output);
    }
    Turn(turned);
    for (int r = 0; r < rows; ++r) FromBits(turned[r]).Store(args.outputs[first_row + r] + i);
  }
  for (int row = first_row; row < first_row + rows; ++row) {
    args.lses[row] = tile.total[row] == 0.0f
                         ? kMinusInfinity
                         : (__builtin_log2f(tile.total[row]) - tile.start[row]) * kLn2;
  }
  const __mmask16 sane = _mm512_cmp_ps_mask(size.v, _mm512_set1_ps(kSmallestOutput), _CMP_GE_OQ) &
                         _mm512_cmp_ps_mask(size.v, _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
  return sane | empty | static_cast<__mmask16>(0xFFFFu << rows);
}

// Returns whether the result can be trusted.
template <typename Scores, typename Values>
bool AttendWithTiles(const AttendArgs& args) {
  const int dim_v = args.values.dim;
  const TileState state;
  AmxScratch tile;
  Cutter cutter{args.scratch};
  LayOutAmx<Scores, Values>(cutter, args.rows, args.keys.dim, dim_v, tile);
  PackQueryTiles<Scores::kRight>(args.queries, args.rows, args.keys.dim, args.scale * kLog2E,
                                 tile.queries);
  const int lanes = LanesFor(args.rows);
  for (int lane = 0; lane < lanes; ++lane) {
    tile.start[lane] = 0.0f;
    tile.total[lane] = 0.0f;
    const bool biased = args.slopes != nullptr && lane < args.rows;
    tile.slopes[lane] = biased ? args.slopes[lane] * kLog2E : 0.0f;
    tile.positions[lane] = biased ? static_cast<float>(args.positions[lane]) : 0.0f;
  }
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(lanes) * dim_v; ++i) tile.outputs[i] = 0;
  for (int s = 0; s < args.segment_count; ++s) {
    AttendAmxSegment<Scores, Values>(args, args.segments[s], tile);
  }
  __mmask16 trusted = 0xFFFF;
  for (int row = 0; row < args.rows; row += kTileRows) {
    FetchOutputs(args, row + kTileRows);
    trusted &= FinishLanes(args, tile, row);
  }
  return trusted == 0xFFFF;
}

// Numbers that bf16 cannot hold, and infinities that only some rows see, are left to f32.
template <typename Scores, typename Values>
void AttendAmx(const AttendArgs* args, int problems) {
  for (int p = 0; p < problems; ++p) {
    if (!AttendWithTiles<Scores, Values>(args[p])) AttendTile<F32Scores, F32Values>(args[p]);
  }
}

template <typename Scores, typename Values>
std::size_t AmxScratchOf(const AttendShape& shape) {
  Cutter cutter{nullptr};
  AmxScratch tile;
  LayOutAmx<Scores, Values>(cutter, shape.rows, shape.dim_k, shape.dim_v, tile);
  const std::size_t f32 = TileScratchOf<F32Scores, F32Values>(shape);
  return cutter.used > f32 ? cutter.used : f32;
}
