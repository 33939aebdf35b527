// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Few rows (decode): key values sit in the lanes, all rows of the group share each load.
//   One pass over K and V for up to kMaxFewRows rows, a chunk of keys of every KV head in turn,
//   since in a cache [token][head][dim] their rows are neighbours. While the scores of a chunk are
//   computed its values are fetched ahead, and under the values the keys that come next.

// Keys in a chunk of the few-rows kernel. Read at 65,536 keys, 8 KV heads x 128, f16, one thread of
// an Ice Lake Xeon that streams 13.5 GB/s: 16 keys 8.7, 32 keys 9.4, 64 keys 8.7, 128 keys 3.7 GB/s.
constexpr int kChunkKeys = 32;
// Above this the tile kernel is faster even with most lanes empty (estimated from its cost: 2
// products of 16 lanes against a dot product and a reduction for each row).
constexpr int kMaxFewRows = 8;
// KV heads whose chunks are read in turn; more only cost stack.
constexpr int kMaxProblems = 16;

struct FewScratch {
  float* queries;  // [rows][dim_k], times scale * log2(e)
  float* outputs;  // [rows][dim_v], not normalised
  float* scores;   // [kMaxFewRows][kChunkKeys]
  float* bias;     // [kChunkKeys]
  float highest[kMaxFewRows];
  float total[kMaxFewRows];
};

inline void LayOutFew(Cutter& cutter, int dim_k, int dim_v, FewScratch& few) {
  few.queries = cutter.Take<float>(static_cast<std::int64_t>(kMaxFewRows) * dim_k);
  few.outputs = cutter.Take<float>(static_cast<std::int64_t>(kMaxFewRows) * dim_v);
  few.scores = cutter.Take<float>(kMaxFewRows * kChunkKeys);
  few.bias = cutter.Take<float>(kChunkKeys);
}

inline void PrefetchRow(const RowsView& view, std::int32_t row) {
  const std::byte* at = view.data + row * view.stride;
  const auto bytes = static_cast<int>(RowBytes(view.type, view.dim));
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
constexpr AddValuesFn kAddValues[5] = {nullptr, AddChunkValues<1, kType>, AddChunkValues<2, kType>,
                                       AddChunkValues<3, kType>, AddChunkValues<4, kType>};

inline ScoreChunkFn ScoreChunkFor(DType type, int rows) {
  return WithType(type, [&]<DType kType>() { return kScoreChunk<kType>[rows]; });
}
inline AddValuesFn AddValuesFor(DType type, int rows) {
  return WithType(type, [&]<DType kType>() { return kAddValues<kType>[rows]; });
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
                          const std::int32_t* keys, int count, const Ahead& next, FewScratch& few) {
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
    ShapeRow(args, row, keys, count, scores);
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
  Cutter cutter{args[0].scratch};
  for (int p = 0; p < problems; ++p) {
    LayOutFew(cutter, args[p].keys.dim, args[p].values.dim, few[p]);
    BeginFew(args[p], few[p]);
  }
  for (int s = 0; s < args[0].segment_count; ++s) AttendFewSegment(args, problems, s, few);
  for (int p = 0; p < problems; ++p) FinishFew(args[p], few[p]);
}
