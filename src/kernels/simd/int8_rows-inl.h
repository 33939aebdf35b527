// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Few rows (decode) over q8_0 keys and values in integers: a row of 128 numbers is 136 bytes, and
// widening it to f32 costs far more than reading it.
//
//   scores: keys in the lanes. A block of 16 keys is turned, so that a lane holds four bytes of a key,
//   and vpdpbusd adds their products with four bytes of a query that all lanes share. No sum crosses
//   lanes.
//
//      key 0   | k0..k3 | k4..k7 | ..           word 0: | key 0 | key 1 | .. | key 15 |  k0..k3
//      key 1   | k0..k3 | k4..k7 | ..     ->    word 1: | key 0 | key 1 | .. | key 15 |  k4..k7
//      ..                                       ..
//
//      s = sum over blocks b:  d_k[b] d_q[b] (sum_i (k_i + 128) q_i - 128 sum_i q_i)
//
//   values: elements in the lanes, pairs of keys in the two halves of a lane. The weight of a value in
//   block b is p d_v[b], rounded to int16; vpdpwssd adds the products of a pair.
//
//      o_i = sum over chunks  u[b] sum_j w_j v_ji,   w_j = p_j d_j[b] / u[b],   u[b] = m_p m_d[b] / 32767
//
//   with m_p the largest p of the row in the chunk and m_d[b] the largest scale of its values in the block.
//   Queries are rounded to int8 as in int8-inl.h, which is the larger error by far.
//
// Cost of a key for 4 rows of dim 128: 8 + 16 dot-product instructions, where f32 takes 64 multiply-adds; with
// all that belongs to them 15 + 22 cycles of Zen 4 from the first level. (The instructions of the scores alone,
// without their dependences, take 12.) Their order is that of the source, which `Pin` keeps: between the products of
// one step lies a piece of what the next step needs, which the processor does not look far enough ahead to find.
// In the compiler's order the scores took 17 to 23.
//
// The int8 products of AMX were no faster: keys as left operand as they lie in the cache, scales and all,
// and values interleaved by fours, take as long as this from the caches and longer from memory (64 Ki keys: 16
// ms against 12.9).

// Keeps an instruction's place among others that are pinned.
template <typename T>
__attribute__((always_inline)) inline void Pin(T& x) {
  asm volatile("" : "+v"(x));
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
    const int left = needed - args.values.dim / kBlock * kVectors * kLinesUnderValues;
    const int lines = 2 * args.rows * kVectors;  // with one fetch under each
    return left < 0 ? 0 : (left + lines - 1) / lines;
  }

  static void Score(const Operands& from, const AttendArgs& args, const KeyChunk& chunk,
                    RowsAhead& ahead, float* scores) {
    const Rows keys = {args.keys.data, chunk.key_offsets, chunk.count};
    kScoreKeys[args.rows](from, args.keys.dim / kBlock, keys, ahead, scores);
  }

  // While the values of a problem are added, the scales of the next one's are taken.
  static void Add(const FewScratch<Int8Rows>* few, const AttendArgs* args, int p, int problems,
                  const KeyChunk& chunk, RowsAhead& ahead) {
    const int blocks = args[p].values.dim / kBlock;
    const Rows values = {args[p].values.data, chunk.value_offsets, chunk.count};
    const Operands& own = few[p].operands;
    if (p == 0) TakeScales(values, blocks, own.value_scales);
    const int next = p + 1 < problems ? p + 1 : p;
    kAddValues[args[p].rows](few[p], own, blocks, values,
                             {args[next].values.data, few[next].operands.value_scales}, ahead);
  }

 private:
  // For 16 keys or values and a block, of 8.5 lines that are needed.
  static constexpr int kLinesUnderScores = 9;
  static constexpr int kLinesUnderValues = 7;
  static constexpr int kQuad = 4;                       // blocks that are weighed together
  static constexpr int kVectors = kChunkKeys / kLanes;  // of a chunk's keys
  static constexpr float kMost = 32767;                 // of weights and what they are made of

  // Of the chunk's keys or values.
  struct Rows {
    const std::byte* data;
    const std::int64_t* offsets;  // [kChunkKeys], padded with the last
    int count;

    int vectors() const { return (count + kLanes - 1) / kLanes; }
  };

  // Where scales lie, and where they go.
  struct Scales {
    const std::byte* rows;
    std::uint16_t* to;  // [blocks][kChunkKeys]
  };

  static std::uint16_t ScaleAt(const std::byte* block) {
    return *reinterpret_cast<const std::uint16_t*>(block);
  }
  static __m256i BytesAt(const std::byte* block) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + sizeof(std::uint16_t)));
  }
  static Vec Widen(const std::uint16_t* halves) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)))};
  }

  // Turns a block of 16 keys, in eight steps that a loop puts between its products.
  class Turn {
   public:
    // words[w], lane j = the four bytes k + 128 from 4 w on of the j-th key, all there after step 7.
    // The j-th key's block lies offsets[j] behind `block`.
    __attribute__((always_inline)) void Step(int step, const std::byte* block,
                                             const std::int64_t* offsets, __m512i* words) {
      if (step < 4) {
        Load(2 * step, block, offsets);
        Load(2 * step + 1, block, offsets);
        MixPairs(2 * step);
      }
      if (step == 2) MixFours(0);
      if (step == 4) MixFours(4);
      if (step == 5) {
        Finish(0, words);
        Finish(1, words);
      }
      if (step == 6) Finish(2, words);
      if (step == 7) Finish(3, words);
    }

    // Of the keys, after step 3.
    Vec Scales() const { return {_mm512_cvtph_ps(_mm256_set_m128i(scales_[1], scales_[0]))}; }

   private:
    __attribute__((always_inline)) void Load(int i, const std::byte* block,
                                             const std::int64_t* offsets) {
      const std::byte* const low = block + offsets[i < 4 ? i : i + 4];
      const std::byte* const high = block + offsets[i < 4 ? i + 4 : i + 8];
      parts_[i] = _mm512_inserti64x4(_mm512_castsi256_si512(BytesAt(low)), BytesAt(high), 1);
      Pin(parts_[i]);
      __m128i& scales = scales_[i / 4];
      if (i % 4 == 0) {
        scales = _mm_insert_epi16(_mm_setzero_si128(), ScaleAt(low), 0);
        Pin(scales);
        scales = _mm_insert_epi16(scales, ScaleAt(high), 4);
      } else if (i % 4 == 1) {
        scales = _mm_insert_epi16(scales, ScaleAt(low), 1);
        Pin(scales);
        scales = _mm_insert_epi16(scales, ScaleAt(high), 5);
      } else if (i % 4 == 2) {
        scales = _mm_insert_epi16(scales, ScaleAt(low), 2);
        Pin(scales);
        scales = _mm_insert_epi16(scales, ScaleAt(high), 6);
      } else {
        scales = _mm_insert_epi16(scales, ScaleAt(low), 3);
        Pin(scales);
        scales = _mm_insert_epi16(scales, ScaleAt(high), 7);
      }
      Pin(scales);
    }

    __attribute__((always_inline)) void MixPairs(int i) {
      const __m512i low = _mm512_unpacklo_epi32(parts_[i], parts_[i + 1]);
      parts_[i + 1] = _mm512_unpackhi_epi32(parts_[i], parts_[i + 1]);
      parts_[i] = low;
      Pin(parts_[i]);
      Pin(parts_[i + 1]);
    }

    // Then a 128-bit lane has a word, or the fourth after it, of four keys.
    __attribute__((always_inline)) void MixFours(int half) {
      __m512i* const at = parts_ + half;
      const __m512i fours[] = {
          _mm512_unpacklo_epi64(at[0], at[2]), _mm512_unpackhi_epi64(at[0], at[2]),
          _mm512_unpacklo_epi64(at[1], at[3]), _mm512_unpackhi_epi64(at[1], at[3])};
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        at[i] = fours[i];
        Pin(at[i]);
      }
    }

    __attribute__((always_inline)) void Finish(int w, __m512i* words) const {
      const __m512i flip = _mm512_set1_epi32(static_cast<int>(0x80808080u));
      const __m512i low = _mm512_shuffle_i32x4(parts_[w], parts_[w + 4], _MM_SHUFFLE(2, 0, 2, 0));
      const __m512i high = _mm512_shuffle_i32x4(parts_[w], parts_[w + 4], _MM_SHUFFLE(3, 1, 3, 1));
      words[w] = _mm512_xor_si512(low, flip);
      words[w + 4] = _mm512_xor_si512(high, flip);
      Pin(words[w]);
      Pin(words[w + 4]);
    }

    __m512i parts_[8];
    __m128i scales_[2];
  };

  // scores[r][key] of R rows. The next 16 keys are turned under the products of 16. Each product of a chain
  // waits for the one before: so with few rows there are two chains. All rows share what was turned: against two
  // passes of four, in an earlier order, 5 rows were 16 to 20 % faster, 7 rows 13 to 15, 8 rows 11.
  template <int R>
  static void ScoreKeys(const Operands& operands, int blocks, const Rows& rows, RowsAhead& ahead,
                        float* scores) {
    constexpr int kChains = R < 4 ? 2 : 1;
    const Operands from = operands;
    const Rows keys = rows;
    __m512i next[kWords];
    Turn turn;
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step) turn.Step(step, keys.data, keys.offsets, next);
    for (int block = 0; block < blocks; ++block) {
      const std::uint32_t* const queries = from.queries + block * kWords * kMaxFewRows;
      const float* const query_scales = from.query_scales + block * kMaxFewRows;
      const std::int32_t* const starts = from.starts + block * kMaxFewRows;
      const __mmask16 summed = block == 0 ? 0 : 0xFFFF;
      const int following = block + 1 < blocks ? block + 1 : block;
      for (int j = 0; j < keys.count; j += kLanes) {
        __m512i words[kWords];
#pragma GCC unroll 8
        for (int w = 0; w < kWords; ++w) words[w] = next[w];
        const Vec key_scales = turn.Scales();
        const bool last = j + kLanes >= keys.count;
        const std::int64_t* const offsets = keys.offsets + (last ? 0 : j + kLanes);
        const std::byte* const at = keys.data + (last ? following : block) * kQ8BlockBytes;
        LinesAhead<kLinesUnderScores> lines(ahead);
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
            const __m512i query = _mm512_set1_epi32(static_cast<int>(queries[r * kWords + w]));
            __m512i& dot = dots[r][w % kChains];
            dot = _mm512_dpbusd_epi32(dot, words[w], query);
            Pin(dot);
          }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          if constexpr (kChains == 2) dots[r][0] = _mm512_add_epi32(dots[r][0], dots[r][1]);
          const Vec dot = {_mm512_cvtepi32_ps(dots[r][0])};
          float* const score = scores + r * kChunkKeys + j;
          const Vec sum = {_mm512_maskz_loadu_ps(summed, score)};
          MulAdd(dot * Vec::Set(query_scales[r]), key_scales, sum).Store(score);
        }
      }
    }
  }

  // to[block][key], whole vectors of keys.
  static void TakeScales(const Rows& rows, int blocks, std::uint16_t* to) {
    for (int block = 0; block < blocks; ++block, to += kChunkKeys) {
      for (int j = 0; j < rows.vectors() * kLanes; ++j) {
        to[j] = ScaleAt(rows.data + rows.offsets[j] + block * kQ8BlockBytes);
      }
    }
  }

  // Of f16 numbers without signs: their order is that of their bits, and above the finite ones come infinities
  // and NaN.
  static float Largest(const std::uint16_t* halves, int vectors) {
    __m256i most = _mm256_setzero_si256();
    for (int v = 0; v < vectors; ++v) most = _mm256_max_epu16(most, SizesAt(halves + v * kLanes));
    const __m128i half =
        _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    const __m128i least = _mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)));
    const auto bits = static_cast<std::uint16_t>(~_mm_cvtsi128_si32(least));
    return bits >= 0x7C00 ? __builtin_nanf("") : WidenF16(bits);
  }
  static __m256i SizesAt(const std::uint16_t* halves) {
    return _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)),
                            _mm256_set1_epi16(0x7FFF));
  }

  // Numbers up to kMost in size, of 64 keys.
  __attribute__((always_inline)) static void Narrow(const Vec* numbers, std::int16_t* to) {
    // Packing leaves four of the first 16 keys, four of the second, ..
    const __m512i in_order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v += 2) {
      const __m512i packed = _mm512_packs_epi32(_mm512_cvtps_epi32(numbers[v].v),
                                                _mm512_cvtps_epi32(numbers[v + 1].v));
      _mm512_storeu_si512(to + v * kLanes, _mm512_permutexvar_epi64(in_order, packed));
    }
  }

  // shares[key] = kMost times the probability of a row by the largest, which is returned; zeros behind the last
  // vector of keys.
  static float Share(const float* probabilities, int vectors, std::int16_t* shares) {
    Vec p[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      p[v] = v < vectors ? Vec::Load(probabilities + v * kLanes) : Vec::Set(0.0f);
    }
    const float most = MaxLanes(MaxOrSecond(MaxOrSecond(p[0], p[1]), MaxOrSecond(p[2], p[3])));
    const Vec inverse = Vec::Set(most > 0 ? kMost / most : 0.0f);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) p[v] = p[v] * inverse;
    Narrow(p, shares);
    return most;
  }

  // weights[r][key] of a block. Returns the unit for a largest probability of 1.
  template <int R>
  static float Weigh(const std::int16_t* shares, const std::uint16_t* value_scales, int vectors,
                     std::int16_t* weights) {
    const float most = Largest(value_scales, vectors);
    const Vec inverse = Vec::Set(most > 0 ? kMost / most : 0.0f);
    Vec numbers[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      numbers[v] = v < vectors ? Widen(value_scales + v * kLanes) * inverse : Vec::Set(0.0f);
    }
    alignas(64) std::int16_t scales[kChunkKeys];
    Narrow(numbers, scales);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int i = 0; i < kChunkKeys; i += 2 * kLanes) {
        const __m512i share = _mm512_load_si512(shares + r * kChunkKeys + i);
        _mm512_store_si512(weights + r * kChunkKeys + i,
                           _mm512_mulhrs_epi16(share, _mm512_load_si512(scales + i)));
      }
    }
    return most * (0x1p15f / (kMost * kMost));
  }

  // outputs of R rows, shrunk, plus all keys of the chunk.
  template <int R>
  static void AddValues(const FewSums& few, const Operands& from, int blocks, const Rows& values,
                        const Scales& following, RowsAhead& ahead) {
    alignas(64) std::int16_t shares[R * kChunkKeys];
    float most[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      most[r] = Share(few.scores + r * kChunkKeys, values.vectors(), shares + r * kChunkKeys);
    }
    for (int first = 0; first < blocks; first += kQuad) {
      const int some = Min(kQuad, blocks - first);
      alignas(64) std::int16_t weights[kQuad][R * kChunkKeys];
      float units[kQuad];
      for (int b = 0; b < some; ++b) {
        units[b] = Weigh<R>(shares, from.value_scales + (first + b) * kChunkKeys, values.vectors(),
                            weights[b]);
      }
      for (int b = 0; b < some; ++b) {
        AddBlock<R>(few, weights[b], most, units[b], values, first + b, blocks, following, ahead);
      }
    }
  }

  // The same of one block. A pair of values is widened under the products of the pair before.
  template <int R>
  static void AddBlock(const FewSums& few, const std::int16_t* weights, const float* most,
                       float unit, const Rows& values, int block, int blocks,
                       const Scales& following, RowsAhead& ahead) {
    __m512i sum[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
    const std::byte* const from = values.data + block * kQ8BlockBytes;
    const std::byte* const scale_from = following.rows + block * kQ8BlockBytes;
    std::uint16_t* scale_to = following.to + block * kChunkKeys;
    const std::int64_t* offsets = values.offsets;
    __m512i low;   // elements 0 to 7 and 16 to 23
    __m512i high;  // the others
    const auto take = [&]() __attribute__((always_inline)) {
      const __m256i a = BytesAt(from + offsets[0]);
      const __m256i b = BytesAt(from + offsets[1]);
      scale_to[0] = ScaleAt(scale_from + offsets[0]);
      scale_to[1] = ScaleAt(scale_from + offsets[1]);
      low = _mm512_cvtepi8_epi16(_mm256_unpacklo_epi8(a, b));
      high = _mm512_cvtepi8_epi16(_mm256_unpackhi_epi8(a, b));
    };
    take();
    const std::int64_t* const last = offsets + values.vectors() * kLanes - 2;
    for (int j = 0; j < values.count; j += kLanes) {
      LinesAhead<kLinesUnderValues> lines(ahead);
#pragma GCC unroll 8
      for (int pair = 0; pair < kLanes / 2; ++pair) {
        const __m512i this_low = low;
        const __m512i this_high = high;
        if (offsets != last) {
          offsets += 2;
          scale_to += 2;
        }
        if (pair < kLinesUnderValues) lines.Fetch(pair);
        take();
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          std::int32_t both;
          __builtin_memcpy(&both, weights + r * kChunkKeys, sizeof(both));
          const __m512i weight = _mm512_set1_epi32(both);
          sum[r][0] = _mm512_dpwssd_epi32(sum[r][0], this_low, weight);
          Pin(sum[r][0]);
          sum[r][1] = _mm512_dpwssd_epi32(sum[r][1], this_high, weight);
          Pin(sum[r][1]);
        }
        weights += 2;
      }
    }
    const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 19, 18, 17, 16, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i second =
        _mm512_set_epi32(31, 30, 29, 28, 27, 26, 25, 24, 15, 14, 13, 12, 11, 10, 9, 8);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* const output = few.outputs + (r * blocks + block) * kBlock;
      const Vec scale = Vec::Set(most[r] * unit);
      const Vec shrink = Vec::Set(few.shrink[r]);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const Vec more = {_mm512_cvtepi32_ps(
            _mm512_permutex2var_epi32(sum[r][0], v == 0 ? first : second, sum[r][1]))};
        MulAdd(more, scale, Vec::Load(output + v * kLanes) * shrink).Store(output + v * kLanes);
      }
    }
  }

  using ScoreKeysFn = void (*)(const Operands&, int, const Rows&, RowsAhead&, float*);
  using AddValuesFn = void (*)(const FewSums&, const Operands&, int, const Rows&, const Scales&,
                               RowsAhead&);
  // [R]: all rows share what is turned and widened.
  static constexpr ScoreKeysFn kScoreKeys[kMaxFewRows + 1] = {
      nullptr,      ScoreKeys<1>, ScoreKeys<2>, ScoreKeys<3>, ScoreKeys<4>,
      ScoreKeys<5>, ScoreKeys<6>, ScoreKeys<7>, ScoreKeys<8>};
  static constexpr AddValuesFn kAddValues[kMaxFewRows + 1] = {
      nullptr,      AddValues<1>, AddValues<2>, AddValues<3>, AddValues<4>,
      AddValues<5>, AddValues<6>, AddValues<7>, AddValues<8>};
};

constexpr Solver kRowsInt8 = {"rows int8 int16", AttendRows<Int8Rows>, RowsScratchOf<Int8Rows>};

inline const Solver& ChooseRows(const AttendShape& shape) {
  const bool q8 = shape.key_type == DType::kQ8_0 && shape.value_type == DType::kQ8_0;
  return shape.fast && q8 ? kRowsInt8 : kRowsF32;
}
