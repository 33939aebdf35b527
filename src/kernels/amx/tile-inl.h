// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Many rows (tile) with AMX, after the plan of simd/tile-inl.h:
//
//      Q^T [dim_k][panel]        S^T [key][panel]           O^T [dim_v][panel]
//      columns = query rows  K.Q^T -> softmax lane-wise ->  += V^T . P^T
//
//   for each block of kBlockKeys keys: pack K and V into tiles, once for all panels of 32 rows
//     for each panel
//       for each chunk of 32 keys: scores, and meanwhile the weights of the chunk before
//       for each 32 dims of the values: O^T += V^T.P^T
//
//   In the first-level cache lie scores of two chunks (8 KiB), the weights of a block and the
//   queries of the panel (16 and 8 KiB at dim 128); K and V of a block stream from the second level,
//   32 bytes a cycle at the rate of the products.
//
//   Cost for a block of n keys: 2 n rows (dim_k + dim_v) FLOP for each of the products of parts,
//   n (dim_k + dim_v) numbers read.

// Parts of the left and the right side of a product, and how many products of parts are taken: all but
// low low, or that too.
template <int kLeftParts, int kRightParts, bool kWithLowLow = false>
struct Parts {
  static constexpr int kLeft = kLeftParts;
  static constexpr int kRight = kRightParts;
  static constexpr bool kLowLow = kWithLowLow;
  static constexpr int kProducts = kLeft + kRight - 1 + (kLowLow ? 1 : 0);
};
// Of bf16, or of what is rounded to it; of bf16 beside two parts; of two parts beside two.
using One = Parts<1, 1>;
using Two = Parts<1, 2>;
using Three = Parts<2, 2>;
using Four = Parts<2, 2, true>;

struct AmxScratch {
  std::uint32_t* queries;  // [panels][parts][steps][16 dim pairs][kPanel]
  Bf16* keys;              // [kBlockKeys / 16][parts][steps][16][32]
  Bf16* values;            // [dim_v / 16][parts][kBlockSteps][16][32]
  Bf16* rows;              // [32 keys][parts][dim_v]
  std::uint32_t* weights;  // [parts][kBlockKeys / 2][kPanel]
  float* scores;           // [2 chunks][32 keys][kPanel]
  float* outputs;          // [panels][dim_v][kPanel], not normalised
  float* start;            // [panels][kPanel], what sums of scores start from: minus the reference
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
  tile.scores = cutter.Take<float>(2 * kTileDepth * kPanel);
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

inline float* ChunkScores(const AmxScratch& tile, int chunk) {
  return tile.scores + chunk % 2 * kTileDepth * kPanel;
}

// Adds the products of the parts, and calls `meanwhile` NL x NR times; `part`: elements
// from a part to the next.
template <typename P, int NL, int NR, typename Meanwhile>
__attribute__((always_inline)) inline void AddProducts(const Bf16* left, std::int64_t between,
                                                       std::int64_t left_part,
                                                       const std::uint32_t* right,
                                                       std::int64_t right_part,
                                                       Meanwhile&& meanwhile) {
  using Grid = TileGrid<NL, NR>;
  constexpr int kOfPart = NL * NR;
  constexpr int kEvery = P::kProducts;
  Grid::template Multiply<true, true, 0, kEvery>(left, between, right, meanwhile);
  if constexpr (P::kRight == 2) {
    Grid::template Multiply<false, true, kOfPart, kEvery>(left, between, right + right_part,
                                                          meanwhile);
  }
  if constexpr (P::kLowLow) {
    Grid::template Multiply<true, false, 2 * kOfPart, kEvery>(left + left_part, between, right,
                                                              meanwhile);
  }
  if constexpr (P::kLeft == 2) {
    Grid::template Multiply<!P::kLowLow, P::kRight == 2, (P::kProducts - 1) * kOfPart, kEvery>(
        left + left_part, between, right, meanwhile);
  }
}

// Scores of a chunk on top of `start`, or of zero where that is null; meanwhile the weights of an earlier
// one.
template <typename Scores, int NR, typename Weights>
__attribute__((noinline)) void ScoreChunk(const AmxScratch& tile, int steps, int panel, int chunk,
                                          const float* start, Weights& earlier) {
  using Grid = TileGrid<2, NR>;
  const std::int64_t left_part = steps * kTileElements;
  const std::int64_t right_part = steps * kTileRows * kPanel;
  const Bf16* left = tile.keys + 2 * chunk * Scores::kLeft * left_part;
  const std::uint32_t* right = tile.queries + panel * Scores::kRight * right_part;
  const WeightConstants<Weights::kParts> constants;
  Weights weights = earlier;
  if (start == nullptr) {
    Grid::Zero();
  } else {
    Grid::SpreadSums(start);
  }
  for (int step = 0; step < steps; ++step) {
    AddProducts<Scores, 2, NR>(
        left + step * kTileElements, Scores::kLeft * left_part, left_part,
        right + step * kTileRows * kPanel,
        right_part, [&]() __attribute__((always_inline)) { weights.Advance(constants); });
  }
  weights.Finish(constants);
  earlier = weights;
  Grid::StoreSums(ChunkScores(tile, chunk));
}

// O^T of NL x 16 dims += V^T.P^T over all chunks.
template <typename Values, int NL, int NR>
__attribute__((noinline)) void AddDims(const Bf16* values, const std::uint32_t* weights, int chunks,
                                       float* outputs, TileAhead& ahead) {
  using Grid = TileGrid<NL, NR>;
  constexpr std::int64_t kLeftPart = kBlockSteps * kTileElements;
  constexpr std::int64_t kRightPart = kBlockKeys / 2 * kPanel;
  Grid::LoadSums(outputs);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    AddProducts<Values, NL, NR>(values + chunk * kTileElements, Values::kLeft * kLeftPart,
                                kLeftPart, weights + chunk * kTileRows * kPanel, kRightPart, [] {});
    ahead.Fetch();
  }
  Grid::StoreSums(outputs);
}

template <typename Values, int NR>
inline void AddValues(const AmxScratch& tile, int dim_v, int chunks, float* outputs,
                      TileAhead& ahead) {
  for (int i = 0; i < dim_v; i += 2 * kTileRows) {
    const Bf16* values = tile.values + i / kTileRows * Values::kLeft * kBlockSteps * kTileElements;
    if (i + kTileRows < dim_v) {
      AddDims<Values, 2, NR>(values, tile.weights, chunks, outputs + i * kPanel, ahead);
    } else {
      AddDims<Values, 1, NR>(values, tile.weights, chunks, outputs + i * kPanel, ahead);
    }
  }
}

// Moves references by `step`, an integer for each lane of a vector: scores that are not weights yet, from
// `chunk` to those of `scored`, follow.
inline void MoveReference(const AmxScratch& tile, int panel, int lane, int chunk, int scored,
                          Vec step) {
  const Vec minus = Vec::Set(0.0f) - step;
  AddToRows(tile.start + panel * kPanel + lane, 1, minus);
  for (; chunk < scored; ++chunk) {
    AddToRows(ChunkScores(tile, chunk) + lane, kTileDepth, minus);
  }
}

template <int NR>
inline bool AllZero(const float* at) {
  __m512i bits = _mm512_setzero_si512();
  for (int v = 0; v < NR; ++v) bits = _mm512_or_si512(bits, Bits(Vec::Load(at + v * Vec::kLanes)));
  return _mm512_test_epi32_mask(bits, bits) == 0;
}

// Sets the references of lanes that have seen nothing yet.
inline void BeginLanes(const AmxScratch& tile, int panel, int lane, int chunk, int scored) {
  const Vec total = Vec::Load(tile.total + panel * kPanel + lane);
  const __mmask16 fresh = _mm512_cmp_ps_mask(total.v, _mm512_setzero_ps(), _CMP_EQ_OQ);
  if (fresh == 0) [[likely]]
    return;
  const Vec most = LargestScore(ChunkScores(tile, chunk) + lane);
  const __mmask16 far =
      _mm512_mask_cmp_ps_mask(fresh, _mm512_abs_ps(most.v), _mm512_set1_ps(kNearZero), _CMP_GT_OQ);
  const __mmask16 begin =
      _mm512_mask_cmp_ps_mask(far, most.v, _mm512_set1_ps(kMinusInfinity), _CMP_GT_OQ);
  MoveReference(
      tile, panel, lane, chunk, scored,
      {_mm512_maskz_roundscale_ps(begin, most.v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)});
}

// Keeps the totals of a chunk's weights. Where one is too large, the reference moves, all that was made
// relative to it is scaled, and the weights are made again.
template <int NR, typename Weights>
inline void EndChunk(const AmxScratch& tile, int dim_v, int panel, int chunk, int scored,
                     const Weights& weights) {
  for (int v = 0; v < NR; ++v) {
    const int lane = v * Vec::kLanes;
    float* const total = tile.total + panel * kPanel + lane;
    const __mmask16 large =
        _mm512_cmp_ps_mask(weights.total(v).v, _mm512_set1_ps(kLargestTotal), _CMP_GE_OQ);
    if (large == 0) [[likely]] {
      weights.total(v).Store(total);
      continue;
    }
    // Above the largest score and above the sum of all before.
    const Vec most = MaxOrSecond(LargestScore(ChunkScores(tile, chunk) + lane),
                                 Vec{_mm512_getexp_ps(Vec::Load(total).v)});
    const Vec step = {
        _mm512_maskz_roundscale_ps(large, most.v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)};
    const Vec shrink = {_mm512_scalef_ps(_mm512_set1_ps(1.0f), (Vec::Set(0.0f) - step).v)};
    MoveReference(tile, panel, lane, chunk, scored, step);
    ScaleRows(total, 1, shrink);
    ScaleRows(tile.outputs + static_cast<std::int64_t>(panel) * kPanel * dim_v + lane, dim_v,
              shrink);
    std::uint32_t* const before = tile.weights + lane;
    for (int part = 0; part < Weights::kParts; ++part) {
      ScaleWeights(before + part * kBlockKeys / 2 * kPanel, chunk * kTileDepth / 2, shrink);
    }
    ChunkWeights<Weights::kParts, 1> again(ChunkScores(tile, chunk) + lane, total,
                                           before + chunk * kTileDepth / 2 * kPanel,
                                           kBlockKeys / 2 * kPanel);
    again.Finish(WeightConstants<Weights::kParts>());
    again.total(0).Store(total);
  }
}

// The mask at the keys of a chunk. Heads of a token share a mask row.
inline void AddChunkMask(const KeySegment& segment, int rows, int panel, const std::int32_t* keys,
                         int count, float* scores) {
  float bias[kTileDepth];
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

// Soft cap, ALiBi, mask, what is hidden, and the reference.
template <int NR>
inline void EditScores(const AttendArgs& args, const AmxScratch& tile, const BlockTraits& traits,
                       int panel, int chunk) {
  struct {
    float* scores;
    const std::int32_t* keys;
    const float* slopes;
    const float* positions;
    const std::int32_t* begin;
    const std::int32_t* end;
  } at = {ChunkScores(tile, chunk),
          tile.block + chunk * kTileDepth,
          tile.slopes,
          tile.positions,
          tile.begin,
          tile.end};
  const int count = Min(kTileDepth, traits.count - chunk * kTileDepth);
  if (traits.shaped) ShapeScores(args, at, NR, panel, count);
  if (traits.masked) AddChunkMask(*traits.segment, args.rows, panel, at.keys, count, at.scores);
  if (traits.hide) HideInvisible(at, NR, panel, count);
  for (int v = 0; v < NR; ++v) {
    const int lane = v * Vec::kLanes;
    AddToRows(at.scores + lane, count, Vec::Load(tile.start + panel * kPanel + lane));
  }
  for (float* score = at.scores + count * kPanel; score < at.scores + kTileDepth * kPanel;
       score += Vec::kLanes) {
    Vec::Set(kMinusInfinity).Store(score);
  }
}

template <typename Scores, typename Values, int NR>
void AttendPanel(const AttendArgs& args, const AmxScratch& tile, const BlockTraits& traits,
                 int panel, TileAhead& ahead) {
  using Weights = ChunkWeights<Values::kRight, NR>;
  const int dim_v = args.values.dim;
  const int steps = DepthSteps(args.keys.dim);
  const int chunks = traits.chunks();
  const bool edit = traits.shaped || traits.masked || traits.hide || traits.count % kTileDepth != 0;
  const float* const start = tile.start + panel * kPanel;
  // `scored`: chunks whose scores already hold the reference.
  const auto begin = [&](int chunk, int scored) {
    if (chunk < 0) return Weights();
    if (edit) EditScores<NR>(args, tile, traits, panel, chunk);
    for (int v = 0; v < NR; ++v) BeginLanes(tile, panel, v * Vec::kLanes, chunk, scored);
    return Weights(ChunkScores(tile, chunk), tile.total + panel * kPanel,
                   tile.weights + chunk * kTileDepth / 2 * kPanel, kBlockKeys / 2 * kPanel);
  };
  const auto end = [&](int chunk, int scored, const Weights& weights) {
    if (chunk >= 0) EndChunk<NR>(tile, dim_v, panel, chunk, scored, weights);
  };
  for (int chunk = 0; chunk < chunks; ++chunk) {
    Weights before = begin(chunk - 1, chunk);
    const bool from_zero = edit || AllZero<NR>(start);
    ScoreChunk<Scores, NR>(tile, steps, panel, chunk, from_zero ? nullptr : start, before);
    end(chunk - 1, edit ? chunk : chunk + 1, before);
    ahead.Fetch();
  }
  Weights last = begin(chunks - 1, chunks);
  last.Finish(WeightConstants<Values::kRight>());
  end(chunks - 1, chunks, last);
  AddValues<Values, NR>(tile, dim_v, chunks,
                        tile.outputs + static_cast<std::int64_t>(panel) * kPanel * dim_v, ahead);
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
                    PanelsFor(args.rows) * traits.chunks() *
                        (1 + (args.values.dim + 2 * kTileRows - 1) / (2 * kTileRows)));
    AttendBlock<Scores, Values>(args, tile, traits, ahead);
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
  for (int row = 0; row < args.rows; row += kTileRows) trusted &= FinishLanes(args, tile, row);
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
