// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Few rows (decode) over q8_0 keys and values in integers: a row of 128 numbers is 136 bytes, and
// widening it to f32 costs far more than reading it.
//
//   scores: keys in the lanes (TurnedKeys). vpdpbusd adds the products of four bytes of a key with four bytes
//   of a query that all lanes share. No sum crosses lanes.
//
//      s = sum over blocks b:  d_k[b] d_q[b] (sum_i (k_i + 128) q_i - 128 sum_i q_i)
//
//   values: elements in the lanes, four keys in the bytes of a lane (InterleavedValues). Weights are bytes too
//   (ByteWeights), w_j = p_j d_j[b] / u[g, b] with a step u for each group g of 16 keys.
//
//      o_i = sum over chunks and their groups  u[g, b] sum_j w_j v_ji
//
//   Queries are rounded to int8 as in int8-inl.h, which is the larger error where scores spread by more
//   than 1 (docs/tuning.md).
//
// Cost of a key for 4 rows of dim 128: 8 + 8 dot-product instructions, where f32 takes 64 multiply-adds; with
// all that belongs to them 14 + 17 cycles of Zen 4 from the first level, and 2 for the softmax.
//
// The int8 products of AMX were no faster: keys as left operand as they lie in the cache, scales and all,
// and values interleaved by fours, take as long as this from the caches and longer from memory (64 Ki keys: 16
// ms against 12.9).

// sum + products of four bytes a lane, of those of `query` in memory in every lane. The compiler takes an
// instruction and a register more for it (Zen 4, 64 Ki keys, in turn: 3 % slower).
__attribute__((always_inline)) inline void AddDots(__m512i words, const std::uint32_t& query,
                                                   __m512i& sum) {
  asm volatile("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(words), "m"(query));
}

struct Int8Rows {
  static constexpr int kBlock = static_cast<int>(kQ8BlockSize);
  static constexpr int kWords = kBlock / 4;
  static constexpr int kLanes = Vec::kLanes;

  struct Operands {
    std::uint32_t* queries;  // [dim_k / 32][kMaxFewRows][kWords], four signed bytes in an element
    float* query_scales;     // [dim_k / 32][kMaxFewRows]
    std::int32_t* starts;    // [dim_k / 32][kMaxFewRows], -128 times the sum of a block
    std::uint16_t* value_scales;  // [dim_v / 32][kChunkKeys], f16, of a chunk
  };

  static void LayOut(Cutter& cutter, int dim_k, int dim_v, Operands& to) {
    const std::int64_t blocks = dim_k / kBlock;
    to.queries = cutter.Take<std::uint32_t>(kMaxFewRows * blocks * kWords);
    to.query_scales = cutter.Take<float>(kMaxFewRows * blocks);
    to.starts = cutter.Take<std::int32_t>(kMaxFewRows * blocks);
    to.value_scales =
        cutter.Take<std::uint16_t>(static_cast<std::int64_t>(dim_v) / kBlock * kChunkKeys);
  }

  static void TakeQueries(const AttendArgs& args, const Operands& to) {
    for (int block = 0; block < args.keys.dim / kBlock; ++block) {
      for (int row = 0; row < args.rows; ++row) {
        const int at = block * kMaxFewRows + row;
        __m256i bytes;
        const float step = RoundBlock(args.queries[row] + block * kBlock, bytes);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.queries + at * kWords), bytes);
        to.query_scales[at] = step * args.scale * kLog2E;
        to.starts[at] = -128 * SumBytes(bytes);
      }
    }
  }

  // Under each vector of weights: what is left of the next keys' lines, two at a time.
  static int SoftmaxFetches(const AttendArgs& args) {
    if (kFetchStreams > 1) return kSoftmaxFetches;
    const int needed = static_cast<int>(RowBytes(DType::kQ8_0, args.keys.dim)) * kChunkKeys / 64;
    const int left = needed - args.values.dim / kBlock * kGroups * kLinesUnderValues;
    const int lines = 2 * args.rows * kVectors;  // with one fetch under each
    return left < 0 ? 0 : (left + lines - 1) / lines;
  }

  static void Score(const FewScratch<Int8Rows>* few, const AttendArgs* args, int problems,
                    const KeyChunk& chunk, RowsAhead& ahead) {
    kScoreKeys[args->rows](few, args, problems, chunk, ahead);
  }

  // While the values of a problem are added, the scales of the next one's are taken.
  static void Add(const FewScratch<Int8Rows>* few, const AttendArgs* args, int p, int problems,
                  const KeyChunk& chunk, RowsAhead& ahead) {
    const int blocks = args[p].values.dim / kBlock;
    const auto rows_of = [&](int problem) {
      return ChunkRows{args[problem].values.data, chunk.value_offsets, chunk.count};
    };
    const auto scales_of = [&](int problem) { return few[problem].operands.value_scales; };
    if (p == 0) TakeScales(rows_of(p), blocks, scales_of(p));
    const int next = p + 1 < problems ? p + 1 : p;
    if (ByteWeights::ArePlain(scales_of(p), blocks)) {
      kAddValues[args[p].rows](few[p], blocks, rows_of(p), scales_of(p),
                               {args[next].values.data, scales_of(next)}, ahead);
    } else {
      AddRows(few[p].scores, few[p].shrink, args[p].rows, args[p].values, chunk.value_offsets,
              chunk.count, ahead, few[p].outputs);
      TakeScales(rows_of(next), blocks, scales_of(next));
    }
  }

 private:
  static constexpr int kVectors = ByteWeights::kVectors;
  static constexpr int kGroups = ByteWeights::kGroups;
  static constexpr int kTogether = 4;  // blocks that are weighed together
  // For 16 keys or values and a block, of 8.5 lines that are needed.
  static constexpr int kLinesUnderScores = 9;
  static constexpr int kLinesUnderValues = 7;
  // One row is computed faster than it is read: with three its decode is 3 to 4 % faster than with two from 64 Ki
  // keys, and 3 slower from 4 Ki.
  static constexpr int RequestsOf(int rows) { return rows == 1 ? kRequests : kEvenRequests; }

  // Values of a chunk.
  struct ChunkRows {
    const std::byte* data;
    const std::int64_t* offsets;  // [kChunkKeys], padded with the last
    int count;
  };

  // Where scales lie, and where they go.
  struct Scales {
    const std::byte* rows;
    std::uint16_t* to;  // [blocks][kChunkKeys]
  };

  // scores[r][key] of R rows and all problems, 16 keys after 16: the rows of a token are neighbours, and read one
  // after another (Zen 4, in turn, against problem after problem: 1 to 3 % faster). The next 16 keys of a block
  // are turned under the products of 16. Each product of a chain waits for the one before: so with few rows
  // there are two chains. All rows share what was turned: against two passes of four, in an earlier order, 5 rows
  // were 16 to 20 % faster, 7 rows 13 to 15, 8 rows 11.
  template <int R>
  static void ScoreKeys(const FewScratch<Int8Rows>* few, const AttendArgs* args, int problems,
                        const KeyChunk& chunk, RowsAhead& ahead) {
    constexpr int kChains = R < 4 ? 2 : 1;
    const int blocks = args->keys.dim / kBlock;
    __m512i next[kWords];
    TurnedKeys turn;
#pragma GCC unroll 8
    for (int step = 0; step < TurnedKeys::kSteps; ++step) {
      turn.Step(step, args->keys.data, chunk.key_offsets, next);
    }
    for (int j = 0; j < chunk.count; j += kLanes) {
      for (int p = 0; p < problems; ++p) {
        Vec sums[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r] = Vec::Set(0.0f);
        const Operands from = few[p].operands;
        const std::uint32_t* queries = from.queries;
        const float* query_scales = from.query_scales;
        const std::int32_t* starts = from.starts;
        float* const scores = few[p].scores + j;
        const std::byte* at = args[p].keys.data;
        const std::int64_t* offsets = chunk.key_offsets + j;
        const bool last = p + 1 == problems;
        const std::byte* const then = args[last ? 0 : p + 1].keys.data;
        const int step = last && j + kLanes < chunk.count ? kLanes : 0;
        for (int block = 0; block < blocks; ++block) {
          at += kQ8BlockBytes;
          if (block + 1 == blocks) {
            at = then;
            offsets += step;
          }
          __m512i words[kWords];
#pragma GCC unroll 8
          for (int w = 0; w < kWords; ++w) words[w] = next[w];
          const Vec key_scales = turn.Scales();
          LinesAhead<kLinesUnderScores, RequestsOf(R)> lines(ahead);
          __m512i dots[R][kChains];
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            dots[r][0] = _mm512_set1_epi32(starts[r]);
            if constexpr (kChains == 2) dots[r][1] = _mm512_setzero_si512();
          }
          lines.Fetch(kWords);
#pragma GCC unroll 8
          for (int w = 0; w < kWords; ++w) {
            lines.Fetch(w);
            turn.Step(w, at, offsets, next);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
              AddDots(words[w], queries[r * kWords + w], dots[r][w % kChains]);
            }
          }
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            if constexpr (kChains == 2) dots[r][0] = _mm512_add_epi32(dots[r][0], dots[r][1]);
            const Vec dot = {_mm512_cvtepi32_ps(dots[r][0])};
            sums[r] = MulAdd(dot * Vec::Set(query_scales[r]), key_scales, sums[r]);
          }
          queries += kMaxFewRows * kWords;
          query_scales += kMaxFewRows;
          starts += kMaxFewRows;
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r].Store(scores + r * kChunkKeys);
      }
    }
  }

  // to[block][key], of a whole chunk.
  static void TakeScales(const ChunkRows& rows, int blocks, std::uint16_t* to) {
    for (int block = 0; block < blocks; ++block, to += kChunkKeys) {
#pragma GCC unroll 8
      for (int j = 0; j < kChunkKeys; ++j) {
        to[j] = Q8Block::Scale(rows.data + rows.offsets[j] + block * kQ8BlockBytes);
      }
    }
  }

  // Four values that are taken next, and the scales of those that follow.
  struct Cursor {
    const std::byte* block;
    const std::int64_t* offsets;
    const std::byte* scales;
    std::uint16_t* scales_to;

    void Skip(int keys) {
      offsets += keys;
      scales_to += keys;
    }
    // From the first four of the last group to those of the first.
    void NextBlock() {
      Skip(-4 * (kGroups - 1));
      block += kQ8BlockBytes;
      scales += kQ8BlockBytes;
      scales_to += kChunkKeys;
    }
    __attribute__((always_inline)) void TakeScales() const {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) scales_to[i] = Q8Block::Scale(scales + offsets[i]);
    }
  };

  // outputs of R rows, shrunk, plus all keys of the chunk.
  template <int R>
  static void AddValues(const FewSums& few, int blocks, const ChunkRows& values,
                        const std::uint16_t* scales, const Scales& following, RowsAhead& ahead) {
    ByteWeights::Steps shares[R];
    alignas(64) float most[R * kLanes];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      shares[r] = ByteWeights::Share(few.scores + r * kChunkKeys, values.count, most + r * kLanes);
    }
    Cursor next = {values.data, values.offsets, following.rows, following.to};
    InterleavedValues four;
    four.Load(0, next.block, next.offsets);
    four.Load(1, next.block, next.offsets);
    four.Mix();
    four.Finish();
    four.Next();
    next.TakeScales();
    for (int first = 0; first < blocks; first += kTogether) {
      const int some = Min(kTogether, blocks - first);
      alignas(64) std::uint8_t weights[kTogether][R * kChunkKeys];
      float units[kTogether];
      for (int b = 0; b < some; ++b) {
        units[b] = ByteWeights::Weigh<R>(shares, scales + (first + b) * kChunkKeys, weights[b]);
      }
      for (int b = 0; b < some; ++b) {
        const int block = first + b;
        Vec sums[R][2];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = Vec::Set(0.0f);
#pragma GCC unroll 1
        for (int group = 0; group < kGroups; ++group) {
          AddGroup<R>(group, block + 1 < blocks, weights[b], most, next, four, ahead, sums);
        }
        AddToOutputs<R>(sums, units[b], few, block, blocks);
      }
    }
  }

  // sums plus a group of keys, of which `four` has the first. The next four are interleaved under the products of
  // four, the first of the next group or block under those of the last.
  template <int R>
  __attribute__((always_inline)) static void AddGroup(int group, bool more_blocks,
                                                      const std::uint8_t* weights,
                                                      const float* most, Cursor& next,
                                                      InterleavedValues& four, RowsAhead& ahead,
                                                      Vec (&sums)[R][2]) {
    const Cursor first = next;
    LinesAhead<kLinesUnderValues, RequestsOf(R)> lines(ahead);
    __m512i dots[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) dots[r][0] = dots[r][1] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      if (v + 1 < kVectors) {
        next.Skip(kLanes);
      } else {
        next = first;
        if (group + 1 < kGroups) {
          next.Skip(4);
        } else if (more_blocks) {
          next.NextBlock();
        }
      }
      const auto add = [&]<int r>() __attribute__((always_inline)) {
        if constexpr (r < R) {
          std::int32_t bytes;
          __builtin_memcpy(&bytes, weights + r * kChunkKeys + 4 * (group * kVectors + v),
                           sizeof(bytes));
          const __m512i weight = _mm512_set1_epi32(bytes);
          dots[r][0] = _mm512_dpbusd_epi32(dots[r][0], weight, four.low);
          Pin(dots[r][0]);
          dots[r][1] = _mm512_dpbusd_epi32(dots[r][1], weight, four.high);
          Pin(dots[r][1]);
        }
      };
      lines.Fetch(2 * v);
      four.Load(0, next.block, next.offsets);
      add.template operator()<0>();
      add.template operator()<4>();
      four.Load(1, next.block, next.offsets);
      add.template operator()<1>();
      add.template operator()<5>();
      if (2 * v + 1 < kLinesUnderValues) lines.Fetch(2 * v + 1);
      four.Mix();
      add.template operator()<2>();
      add.template operator()<6>();
      next.TakeScales();
      four.Finish();
      add.template operator()<3>();
      add.template operator()<7>();
      four.Next();
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec step = Vec::Set(most[r * kLanes + 4 * group]);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        sums[r][i] = MulAdd({_mm512_cvtepi32_ps(dots[r][i])}, step, sums[r][i]);
      }
    }
  }

  // sums: in the order of InterleavedValues.
  template <int R>
  __attribute__((always_inline)) static void AddToOutputs(const Vec (&sums)[R][2], float unit,
                                                          const FewSums& few, int block,
                                                          int blocks) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* const output = few.outputs + (r * blocks + block) * kBlock;
      const Vec shrink = Vec::Set(few.shrink[r]);
      const __m512 low = sums[r][0].v;
      const __m512 high = sums[r][1].v;
      const Vec more[] = {{_mm512_shuffle_f32x4(low, high, _MM_SHUFFLE(1, 0, 1, 0))},
                          {_mm512_shuffle_f32x4(low, high, _MM_SHUFFLE(3, 2, 3, 2))}};
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        float* const at = output + v * kLanes;
        MulAdd(more[v], Vec::Set(unit), Vec::Load(at) * shrink).Store(at);
      }
    }
  }

  using ScoreKeysFn = void (*)(const FewScratch<Int8Rows>*, const AttendArgs*, int, const KeyChunk&,
                               RowsAhead&);
  using AddValuesFn = void (*)(const FewSums&, int, const ChunkRows&, const std::uint16_t*,
                               const Scales&, RowsAhead&);
  // [R]: all rows share what is turned and interleaved.
  static constexpr ScoreKeysFn kScoreKeys[kMaxFewRows + 1] = {
      nullptr,      ScoreKeys<1>, ScoreKeys<2>, ScoreKeys<3>, ScoreKeys<4>,
      ScoreKeys<5>, ScoreKeys<6>, ScoreKeys<7>, ScoreKeys<8>};
  static constexpr AddValuesFn kAddValues[kMaxFewRows + 1] = {
      nullptr,      AddValues<1>, AddValues<2>, AddValues<3>, AddValues<4>,
      AddValues<5>, AddValues<6>, AddValues<7>, AddValues<8>};
};

constexpr Solver kRowsInt8 = {"rows int8 int8", AttendRows<Int8Rows>, RowsScratchOf<Int8Rows>};

inline const Solver& ChooseRows(const AttendShape& shape) {
  const bool q8 = shape.key_type == DType::kQ8_0 && shape.value_type == DType::kQ8_0;
  return shape.fast && q8 ? kRowsInt8 : kRowsF32;
}
