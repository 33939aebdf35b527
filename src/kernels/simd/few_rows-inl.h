// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Few rows (decode): key values sit in the lanes, all rows of the group share each load.
//   One pass over K and V for up to kMaxFewRows rows, a chunk of keys of every KV head at a time:
//
//      each head: scores, four or two keys at a time    each head: softmax, values
//      (the values of the chunk are fetched meanwhile)  (the keys of the next chunk are fetched)
//
//   In a cache [token][head][dim] the rows of all heads of a token are neighbours. The arithmetic
//   takes head after head, but what it finds in the cache was fetched token after token, of every
//   stream of RowsAhead: memory is read from front to back.

// Above this the tile kernel is faster even with most lanes empty (estimated from its cost: 2
// products of 16 lanes against a dot product and a reduction for each row).
constexpr int kMaxFewRows = 8;
// KV heads whose groups are read in turn; more only cost stack.
constexpr int kMaxProblems = 16;

struct FewSums {
  float* outputs;  // [rows][dim_v], not normalised
  float* scores;   // [kMaxFewRows][kChunkKeys]
  float* bias;     // [kChunkKeys]
  float* total;    // [kMaxFewRows][lanes], summed over the lanes at the end
  float highest[kMaxFewRows];
  float shrink[kMaxFewRows];  // of what was summed before the chunk at hand
};

// Rows: what the products are made with, F32Rows below or Int8Rows.
template <typename Rows>
struct FewScratch : FewSums {
  typename Rows::Operands operands;
};

template <typename Rows>
inline void LayOutFew(Cutter& cutter, int dim_k, int dim_v, FewScratch<Rows>& few) {
  Rows::LayOut(cutter, dim_k, dim_v, few.operands);
  few.outputs = cutter.Take<float>(static_cast<std::int64_t>(kMaxFewRows) * dim_v);
  few.scores = cutter.Take<float>(kMaxFewRows * kChunkKeys);
  few.bias = cutter.Take<float>(kChunkKeys);
  few.total = cutter.Take<float>(kMaxFewRows * Vec::kLanes);
}

// Lines for four vectors of numbers, of f16 and narrower types two; where rows go in two passes, two of f32 as
// well, in each pass. One row is computed faster than it is read, rows of f32 in bursts.
template <int R, DType kType>
__attribute__((always_inline)) inline void FetchVectors(RowsAhead& ahead) {
  constexpr int kTimes = R == 1 ? kMoreRequests : kType == DType::kF32 ? kRequests : kEvenRequests;
  ahead.Fetch<kTimes>();
  if (kType == DType::kF32 && ahead.rows() <= kRowsOfPass) ahead.Fetch<kTimes>();
}

// Queries of a pass lie together for each vector of elements, [dim / lanes][R][lanes]. With 16 lanes those of four rows
// are mixed by quarters: a sum then has a quarter of each row, and adding the four up costs half the shuffles
// (Zen 4, f16: 40 to 38 cycles a key, from the first level).
template <int R>
constexpr bool kMixed = R == 4 && Vec::kLanes == 16;

template <int R>
inline void TakePass(const float* const* rows, int dim, Vec scale, float* queries) {
  for (int i = 0; i < dim; i += Vec::kLanes, queries += R * Vec::kLanes) {
    Vec query[R];
    for (int r = 0; r < R; ++r) query[r] = Vec::Load(rows[r] + i) * scale;
    if constexpr (kMixed<R>) MixQuarters(query);
    for (int r = 0; r < R; ++r) query[r].Store(queries + r * Vec::kLanes);
  }
}

// scores[r][j] = queries[r] . k_j for R rows and the four keys a, b, c and d. They are no array: the
// compiler would find its elements with vector arithmetic, which waits behind the sums of the four
// keys before (Zen 4, 4 rows x 128: 47 cycles a key against 40).
template <int R, DType kType>
inline void ScoreFourKeys(const float* queries, int dim, const std::byte* a, const std::byte* b,
                          const std::byte* c, const std::byte* d, RowsAhead& ahead, float* scores) {
  Vec sum[R][4];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[r][j] = Vec::Set(0.0f);
  }
  RowsAhead fetch = ahead;
  for (int i = 0; i < dim; i += Vec::kLanes) {
    FetchVectors<R, kType>(fetch);
    const Vec key[4] = {LoadAs<kType>(a, i), LoadAs<kType>(b, i), LoadAs<kType>(c, i),
                        LoadAs<kType>(d, i)};
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec query = Vec::Load(queries + R * i + r * Vec::kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[r][j] = MulAdd(query, key[j], sum[r][j]);
    }
  }
  ahead = fetch;
  if constexpr (kMixed<R>) {
    StoreMixedSums(sum, scores, kChunkKeys);
    return;
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    StoreFourSums(sum[r][0], sum[r][1], sum[r][2], sum[r][3], scores + r * kChunkKeys);
  }
}

// The same for two keys, and more than four rows. Each query is loaded for itself: as an operand of both
// products it would be loaded twice, and loads are as scarce as products (Zen 4: 5 and 6 rows are 4 to 6 %
// faster, 7 and 8 rows 0 to 3).
template <int R, DType kType>
inline void ScoreTwoKeys(const float* queries, int dim, const std::byte* a, const std::byte* b,
                         RowsAhead& ahead, float* scores) {
  Vec sum[R + 1][2];
#pragma GCC unroll 9
  for (int r = 0; r < R + 1; ++r) sum[r][0] = sum[r][1] = Vec::Set(0.0f);
  RowsAhead fetch = ahead;
  for (int i = 0; i < dim; i += Vec::kLanes) {
    if (i % (2 * Vec::kLanes) == 0) FetchVectors<R, kType>(fetch);
    const Vec key[2] = {LoadAs<kType>(a, i), LoadAs<kType>(b, i)};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec query = InRegister(Vec::Load(queries + R * i + r * Vec::kLanes));
      sum[r][0] = MulAdd(query, key[0], sum[r][0]);
      sum[r][1] = MulAdd(query, key[1], sum[r][1]);
    }
  }
  ahead = fetch;
#pragma GCC unroll 4
  for (int r = 0; r < R; r += 2) {
    float four[4];
    StoreFourSums(sum[r][0], sum[r][1], sum[r + 1][0], sum[r + 1][1], four);
    __builtin_memcpy(scores + r * kChunkKeys, four, 2 * sizeof(float));
    if (r + 1 < R) __builtin_memcpy(scores + (r + 1) * kChunkKeys, four + 2, 2 * sizeof(float));
  }
}

// scores[r][j] = queries[r] . k_j for R rows and up to kChunkKeys keys.
template <int R, DType kType>
inline void ScoreChunk(const float* queries, const RowsView& keys, const std::int64_t* offsets,
                       int count, RowsAhead& ahead, float* scores) {
  const auto row = [&](int j) { return keys.data + offsets[j]; };
  if constexpr (R > 4) {
    for (int j = 0; j < count; j += 2) {
      ScoreTwoKeys<R, kType>(queries, keys.dim, row(j), row(j + 1), ahead, scores + j);
    }
  } else {
    for (int j = 0; j < count; j += 4) {
      ScoreFourKeys<R, kType>(queries, keys.dim, row(j), row(j + 1), row(j + 2), row(j + 3), ahead,
                              scores + j);
    }
  }
}

// sum + weight * value
__attribute__((always_inline)) inline Vec AddWeighted(const float& weight, Vec value, Vec sum) {
#if defined(__AVX512F__)
  if constexpr (kWeightsFromMemory) {
    asm volatile("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(value.v), "m"(weight));
    return sum;
  }
#endif
  return MulAdd(Vec::Set(weight), value, sum);
}

// outputs[r][i] = outputs[r][i] * shrink[r] + sum_j weights[r][j] * v_j[i] for NV lane vectors from
// i on: R * NV accumulators.
template <int R, int NV, DType kType>
inline void AddSlice(const float* weights, const float* shrink, const RowsView& values,
                     const std::int64_t* offsets, int count, int i, RowsAhead& ahead,
                     float* outputs) {
  Vec sum[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      sum[r][v] = Vec::Load(outputs + r * values.dim + i + v * Vec::kLanes) * Vec::Set(shrink[r]);
    }
  }
  RowsAhead fetch = ahead;
  for (int j = 0; j < count; ++j) {
    if (NV == 4 || j % 2 == 0) FetchVectors<R, kType>(fetch);
    const std::byte* row = values.data + offsets[j];
    Vec value[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) value[v] = LoadAs<kType>(row, i + v * Vec::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float& weight = weights[r * kChunkKeys + j];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[r][v] = AddWeighted(weight, value[v], sum[r][v]);
    }
  }
  ahead = fetch;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      sum[r][v].Store(outputs + r * values.dim + i + v * Vec::kLanes);
    }
  }
}

template <int R, DType kType>
inline void AddChunk(const float* weights, const float* shrink, const RowsView& values,
                     const std::int64_t* offsets, int count, RowsAhead& ahead, float* outputs) {
  int i = 0;
  const auto add = [&]<int NV>() {
    for (; i + NV * Vec::kLanes <= values.dim; i += NV * Vec::kLanes) {
      AddSlice<R, NV, kType>(weights, shrink, values, offsets, count, i, ahead, outputs);
    }
  };
  if constexpr (R <= 4) add.template operator()<4>();
  add.template operator()<2>();
  add.template operator()<1>();
}

using TakePassFn = void (*)(const float* const*, int, Vec, float*);
using ScoreChunkFn = void (*)(const float*, const RowsView&, const std::int64_t*, int, RowsAhead&,
                              float*);
using AddChunkFn = void (*)(const float*, const float*, const RowsView&, const std::int64_t*, int,
                            RowsAhead&, float*);

// kChunkFunctions<kType>.take[R], .score[R] and .add[R], for up to kRowsOfPass rows.
template <DType kType>
struct ChunkFunctions {
  TakePassFn take[kRowsOfPass + 1] = {};
  ScoreChunkFn score[kRowsOfPass + 1] = {};
  AddChunkFn add[kRowsOfPass + 1] = {};

  constexpr ChunkFunctions() { Fill<kRowsOfPass>(); }

 private:
  template <int R>
  constexpr void Fill() {
    if constexpr (R > 0) {
      take[R] = TakePass<R>;
      score[R] = ScoreChunk<R, kType>;
      add[R] = AddChunk<R, kType>;
      Fill<R - 1>();
    }
  }
};
template <DType kType>
constexpr ChunkFunctions<kType> kChunkFunctions;

// For any number of rows: all in one pass, or half of them in each of two.
static_assert(kMaxFewRows <= 2 * kRowsOfPass);
inline int RowsOfPass(int rows) { return rows <= kRowsOfPass ? rows : (rows + 1) / 2; }

// Queries of all rows, for ScoreRows.
inline void TakeRows(const float* const* rows, int count, int dim, Vec scale, float* queries) {
  for (int row = 0, pass = 0; row < count; row += pass) {
    pass = RowsOfPass(count - row);
    kChunkFunctions<DType::kF32>.take[pass](rows + row, dim, scale, queries + row * dim);
  }
}
inline void ScoreRows(const float* queries, int rows, const RowsView& keys,
                      const std::int64_t* offsets, int count, RowsAhead& ahead, float* scores) {
  for (int row = 0, pass = 0; row < rows; row += pass) {
    pass = RowsOfPass(rows - row);
    const ScoreChunkFn score =
        WithType(keys.type, [&]<DType kType>() { return kChunkFunctions<kType>.score[pass]; });
    score(queries + row * keys.dim, keys, offsets, count, ahead, scores + row * kChunkKeys);
  }
}
inline void AddRows(const float* weights, const float* shrink, int rows, const RowsView& values,
                    const std::int64_t* offsets, int count, RowsAhead& ahead, float* outputs) {
  for (int row = 0, pass = 0; row < rows; row += pass) {
    pass = RowsOfPass(rows - row);
    const AddChunkFn add =
        WithType(values.type, [&]<DType kType>() { return kChunkFunctions<kType>.add[pass]; });
    add(weights + row * kChunkKeys, shrink + row, values, offsets, count, ahead,
        outputs + row * values.dim);
  }
}

// Fetches under each vector of weights, where the values' arithmetic does not ask for all lines itself. What it
// takes less than that should not be asked for in a burst: with two the last of eight heads had nothing left to fetch
// under it (Xeon, four streams, in turn: one is 1 to 3 % faster).
constexpr int kSoftmaxFetches = kFetchStreams == 1 ? 2 : 1;

// Scores of one row to probabilities, in place, padded with zeros to whole vectors. Moves highest
// and total; returns what the sums so far shrink by.
inline float SoftmaxRow(float* scores, int count, float& highest, float* total, int fetches,
                        RowsAhead& ahead) {
  const int padded = (count + Vec::kLanes - 1) / Vec::kLanes * Vec::kLanes;
  for (int j = count; j < padded; ++j) scores[j] = kMinusInfinity;
  const Vec before = Vec::Set(highest);
  Vec most = before;
  for (int j = 0; j < padded; j += Vec::kLanes) most = MaxOrSecond(Vec::Load(scores + j), most);
  // The maximum moves seldom once some keys were seen.
  float shrink = 1.0f;
  if (AnyDifferent(before, most)) {
    const float after = MaxLanes(most);
    float shrinks[Vec::kLanes];
    Exp2(Vec::Set(highest - after)).Store(shrinks);
    shrink = shrinks[0];
    highest = after;
  }
  Vec sum = Vec::Load(total) * Vec::Set(shrink);
  for (int j = 0; j < padded; j += Vec::kLanes) {
    const Vec weight = Exp2(Vec::Load(scores + j) - Vec::Set(highest));
    weight.Store(scores + j);
    for (int n = 0; n < fetches; ++n) ahead.Fetch();
    sum = sum + weight;
  }
  sum.Store(total);
  return shrink;
}

// Scores of one row at ascending keys: soft cap, then ALiBi.
inline void ShapeRow(const AttendArgs& args, int row, const std::int32_t* keys, int count,
                     float* scores) {
  if (args.softcap > 0) {
    const float cap = args.softcap * kLog2E;
    for (int j = 0; j < count; j += Vec::kLanes) {
      (Tanh(Vec::Load(scores + j) * Vec::Set(1 / cap)) * Vec::Set(cap)).Store(scores + j);
    }
  }
  if (args.slopes != nullptr) {
    const float slope = args.slopes[row] * kLog2E;
    for (int j = 0; j < count; ++j) {
      scores[j] += slope * static_cast<float>(keys[j] - args.positions[row]);
    }
  }
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
inline void AddVisibleValues(const AttendArgs& args, const FewSums& few, int row,
                             const KeyChunk& chunk) {
  const float keep = 1.0f;
  RowsAhead nothing;
  const int dim = args.values.dim;
  float* output = few.outputs + static_cast<std::int64_t>(row) * dim;
  for (int i = 0; i < dim; ++i) output[i] *= few.shrink[row];
  for (int j = 0; j < chunk.count; ++j) {
    const float* weight = few.scores + row * kChunkKeys + j;
    if (*weight == 0.0f) continue;
    AddRows(weight, &keep, 1, args.values, chunk.value_offsets + j, 1, nothing, output);
  }
}

// Scores of a chunk, all there, to weights.
inline void WeighChunk(const AttendArgs& args, const KeyChunk& chunk, int fetches, FewSums& few,
                       RowsAhead& ahead) {
  for (int row = 0; row < args.rows; ++row) {
    float* scores = few.scores + row * kChunkKeys;
    ShapeRow(args, row, chunk.keys, chunk.count, scores);
    if (!chunk.all_visible || chunk.segment->mask_rows != nullptr) {
      RestrictRow(*chunk.segment, row, chunk.keys, chunk.count, few.bias, scores);
    }
    few.shrink[row] = SoftmaxRow(scores, chunk.count, few.highest[row],
                                 few.total + row * Vec::kLanes, fetches, ahead);
  }
}

struct F32Rows {
  struct Operands {
    float* queries;  // of TakeRows, times scale * log2(e)
  };
  static void LayOut(Cutter& cutter, int dim_k, int /*dim_v*/, Operands& to) {
    to.queries = cutter.Take<float>(static_cast<std::int64_t>(kMaxFewRows) * dim_k);
  }
  static void TakeQueries(const AttendArgs& args, const Operands& to) {
    TakeRows(args.queries, args.rows, args.keys.dim, Vec::Set(args.scale * kLog2E), to.queries);
  }
  // Zen 4, in turn: f16 is 1 to 3 % faster than with two, q8_0 1, f32 2 slower to 3 faster.
  static int SoftmaxFetches(const AttendArgs& /*args*/) {
    return kFetchStreams == 1 ? 0 : kSoftmaxFetches;
  }
  static void Score(const FewScratch<F32Rows>* few, const AttendArgs* args, int problems,
                    const KeyChunk& chunk, RowsAhead& ahead) {
    for (int p = 0; p < problems; ++p) {
      ScoreRows(few[p].operands.queries, args[p].rows, args[p].keys, chunk.key_offsets, chunk.count,
                ahead, few[p].scores);
    }
  }
  static void Add(const FewScratch<F32Rows>* few, const AttendArgs* args, int p, int /*problems*/,
                  const KeyChunk& chunk, RowsAhead& ahead) {
    AddRows(few[p].scores, few[p].shrink, args[p].rows, args[p].values, chunk.value_offsets,
            chunk.count, ahead, few[p].outputs);
  }
};

// A chunk of all problems; `next` will be read after it.
template <typename Rows>
inline void AttendChunk(const AttendArgs* args, int problems, const KeyChunk& chunk,
                        const KeyChunk& next, FewScratch<Rows>* few) {
  RowsAhead values(args, &AttendArgs::values, problems, chunk.value_offsets, chunk.count);
  Rows::Score(few, args, problems, chunk, values);
  RowsAhead ahead(args, &AttendArgs::keys, problems, next.key_offsets, next.count);
  for (int p = 0; p < problems; ++p) {
    WeighChunk(args[p], chunk, Rows::SoftmaxFetches(args[p]), few[p], ahead);
    if (chunk.all_visible) {
      Rows::Add(few, args, p, problems, chunk, ahead);
    } else {
      for (int row = 0; row < args[p].rows; ++row) AddVisibleValues(args[p], few[p], row, chunk);
    }
  }
}

inline void BeginFew(const AttendArgs& args, FewSums& few) {
  const int dim_v = args.values.dim;
  for (int row = 0; row < args.rows; ++row) {
    few.highest[row] = kLowest;
    Vec::Set(0.0f).Store(few.total + row * Vec::kLanes);
    for (int i = 0; i < dim_v; i += Vec::kLanes) {
      Vec::Set(0.0f).Store(few.outputs + row * dim_v + i);
    }
  }
}

inline void FinishFew(const AttendArgs& args, const FewSums& few) {
  const int dim_v = args.values.dim;
  for (int row = 0; row < args.rows; ++row) {
    const float total = SumLanes(Vec::Load(few.total + row * Vec::kLanes));
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    for (int i = 0; i < dim_v; i += Vec::kLanes) {
      (Vec::Load(few.outputs + row * dim_v + i) * Vec::Set(inverse)).Store(args.outputs[row] + i);
    }
    args.lses[row] =
        total == 0.0f ? kMinusInfinity : (few.highest[row] + __builtin_log2f(total)) * kLn2;
  }
}

template <typename Rows>
inline void AttendFew(const AttendArgs* args, int problems) {
  FewScratch<Rows> few[kMaxProblems];
  Cutter cutter{args[0].scratch};
  for (int p = 0; p < problems; ++p) {
    LayOutFew(cutter, args[p].keys.dim, args[p].values.dim, few[p]);
    if (!args[0].same_queries) Rows::TakeQueries(args[p], few[p].operands);
    BeginFew(args[p], few[p]);
  }
  KeyChunk chunks[2];
  ChunkWalk walk(args[0]);
  walk.Next(chunks[0]);
  if (chunks[0].segment != nullptr && !args[0].fetched) {
    RowsAhead(args, &AttendArgs::keys, problems, chunks[0].key_offsets, chunks[0].count).Load();
  }
  for (int i = 0; chunks[i % 2].segment != nullptr; ++i) {
    walk.Next(chunks[(i + 1) % 2]);
    AttendChunk(args, problems, chunks[i % 2], chunks[(i + 1) % 2], few);
  }
  for (int p = 0; p < problems; ++p) FinishFew(args[p], few[p]);
}
