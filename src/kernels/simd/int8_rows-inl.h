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
//      o_i = sum over chunks  u sum_j w_j v_ji,   w_j = p_j d_j[b] / u,   u = m_p m_d / 32767
//
//   with m_p the largest p of the row in the chunk and m_d the largest scale of its values in four
//   blocks. Queries are rounded to int8 as in int8-inl.h, which is the larger error by far.
//
// Cost of a key for 4 rows of dim 128, counted in the source: 8 + 16 dot-product instructions, where
// f32 takes 64 multiply-adds, beside 8 + 8 shuffles and conversions. Zen 4, 64 Ki keys: 14.2 GB/s
// against the 8.0 of widened numbers. Gathering scales in one store for four blocks and packing weights
// 32 at a time took the same on a Xeon from 13.8 to 11.6 ms.
//
// The int8 products of AMX were no faster: keys as left operand as they lie in the cache, scales and all,
// and values interleaved by fours, take as long as this from the caches and longer from memory (64 Ki keys: 16
// ms against 12.9).

struct Int8Rows {
  static constexpr int kBlock = static_cast<int>(kQ8BlockSize);
  static constexpr int kWords = kBlock / 4;
  static constexpr int kLanes = Vec::kLanes;

  struct Operands {
    std::uint32_t* queries;  // [kMaxFewRows][dim_k / 4], four signed bytes in an element
    float* query_scales;     // [kMaxFewRows][dim_k / 32]
    std::int32_t* starts;    // [kMaxFewRows][dim_k / 32], -128 times the sum of a block
  };

  static void LayOut(Cutter& cutter, int dim_k, int /*dim_v*/, Operands& to) {
    const std::int64_t blocks = dim_k / kBlock;
    to.queries = cutter.Take<std::uint32_t>(kMaxFewRows * blocks * kWords);
    to.query_scales = cutter.Take<float>(kMaxFewRows * blocks);
    to.starts = cutter.Take<std::int32_t>(kMaxFewRows * blocks);
  }

  static void TakeQueries(const AttendArgs& args, const Operands& to) {
    const int blocks = args.keys.dim / kBlock;
    for (int at = 0; at < args.rows * blocks; ++at) {
      std::uint32_t* words = to.queries + at * kWords;
      const float step = RoundBlock(args.queries[at / blocks] + at % blocks * kBlock, words);
      to.query_scales[at] = step * args.scale * kLog2E;
      const __m256i bytes = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<__m256i*>(words)),
                                             _mm256_set1_epi8(-128));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), bytes);
      to.starts[at] = -128 * SumBytes(bytes);
    }
  }

  static void Score(const Operands& from, const AttendArgs& args, const KeyChunk& chunk,
                    RowsAhead& ahead, float* scores) {
    const Rows keys = {args.keys.data, chunk.key_offsets, chunk.count};
    const int blocks = args.keys.dim / kBlock;
    for (int first = 0; first < blocks; first += kQuad) {
      const int some = Min(kQuad, blocks - first);
      alignas(64) float scales[kQuad * kChunkKeys];
      TakeScales(keys, first, some, scales);
      kScoreKeys[args.rows](from, first, some, blocks, keys, scales, ahead, scores);
    }
  }

  static void Add(const Operands& /*from*/, const AttendArgs& args, const FewSums& few,
                  const KeyChunk& chunk, RowsAhead& ahead) {
    const Rows values = {args.values.data, chunk.value_offsets, chunk.count};
    const int blocks = args.values.dim / kBlock;
    for (int first = 0; first < blocks; first += kQuad) {
      const int some = Min(kQuad, blocks - first);
      alignas(64) float scales[kQuad * kChunkKeys];
      const float step = TakeScales(values, first, some, scales) / 32767;
      kAddBlocks[args.rows](few, first, some, blocks, values, scales, step, ahead);
    }
  }

 private:
  static constexpr int kQuad = 4;             // blocks whose scales are gathered together
  static constexpr int kPacked = 2 * kLanes;  // keys in a vector of weights

  // Of the chunk's keys or values.
  struct Rows {
    const std::byte* data;
    const std::int64_t* offsets;  // [kChunkKeys], padded with the last
    int count;

    __m256i Load(int j, int block) const {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(
          data + offsets[j] + block * kQ8BlockBytes + sizeof(std::uint16_t)));
    }
  };

  // Where a key's scale lies after unpacking, of 16 keys of one block, then of another: a lane quarter q
  // has those of keys 2 q, 8 + 2 q, 2 q + 1 and 9 + 2 q.
  alignas(64) static constexpr std::uint16_t kUnpacked[2 * kLanes] = {
      0, 2, 8,  10, 16, 18, 24, 26, 1, 3, 9,  11, 17, 19, 25, 27,
      4, 6, 12, 14, 20, 22, 28, 30, 5, 7, 13, 15, 21, 23, 29, 31};

  // scales[b][key] of up to four blocks, zero where there is no block or key. Returns the largest size,
  // NaN when any is no finite number. The four of a key leave in one store: as stores to four lines
  // they were 15 % of the whole.
  static float TakeScales(const Rows& rows, int block, int blocks, float* scales) {
    alignas(64) std::uint64_t packed[kChunkKeys];
    const auto take = blocks == 4   ? PackScales<4>
                      : blocks == 3 ? PackScales<3>
                      : blocks == 2 ? PackScales<2>
                                    : PackScales<1>;
    take(rows, block * kQ8BlockBytes, packed);
    const __m512i order = _mm512_load_si512(kUnpacked);
    __m512i largest = _mm512_setzero_si512();
    for (int j = 0; j < kChunkKeys; j += kLanes) {
      const __m512i low = _mm512_load_si512(packed + j);
      const __m512i high = _mm512_load_si512(packed + j + kLanes / 2);
      const __m512i even = _mm512_unpacklo_epi16(low, high);
      const __m512i odd = _mm512_unpackhi_epi16(low, high);
      const __m512i twos[] = {_mm512_permutexvar_epi16(order, _mm512_unpacklo_epi32(even, odd)),
                              _mm512_permutexvar_epi16(order, _mm512_unpackhi_epi32(even, odd))};
#pragma GCC unroll 4
      for (int b = 0; b < kQuad; ++b) {
        const __m256i halves = b % 2 == 0 ? _mm512_castsi512_si256(twos[b / 2])
                                          : _mm512_extracti64x4_epi64(twos[b / 2], 1);
        Vec{_mm512_cvtph_ps(halves)}.Store(scales + b * kChunkKeys + j);
      }
      const __m512i size = _mm512_set1_epi16(0x7FFF);
      largest = _mm512_max_epu16(largest, _mm512_and_si512(low, size));
      largest = _mm512_max_epu16(largest, _mm512_and_si512(high, size));
    }
    return LargestHalf(largest);
  }

  // packed[key]: up to four scales, zeros behind them and behind the last key. 32 bytes further on, the next
  // scale has moved on by one 16-bit element.
  template <int kBlocks>
  static void PackScales(Rows rows, std::int64_t offset, std::uint64_t* packed) {
    for (int j = 0; j < rows.count; ++j) {
      const auto* const row =
          reinterpret_cast<const __m128i*>(rows.data + rows.offsets[j] + offset);
      __m128i four = _mm_blend_epi16(_mm_setzero_si128(), _mm_loadu_si128(row), 1);
      if constexpr (kBlocks > 1) four = _mm_blend_epi16(four, _mm_loadu_si128(row + 2), 2);
      if constexpr (kBlocks > 2) four = _mm_blend_epi16(four, _mm_loadu_si128(row + 4), 4);
      if constexpr (kBlocks > 3) four = _mm_blend_epi16(four, _mm_loadu_si128(row + 6), 8);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(packed + j), four);
    }
    for (int j = rows.count; j < kChunkKeys; ++j) packed[j] = 0;
  }

  // Of f16 numbers without signs: their order is that of their bits, and above the finite ones come
  // infinities and NaN.
  static float LargestHalf(__m512i halves) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
    const __m512i larger =
        _mm512_max_epu32(_mm512_slli_epi32(halves, 16), _mm512_and_si512(halves, upper));
    const auto bits = static_cast<std::uint16_t>(_mm512_reduce_max_epu32(larger) >> 16);
    return bits >= 0x7C00 ? __builtin_nanf("") : WidenF16(bits);
  }

  // words[w], lane j = the four bytes k + 128 from 4 w on of key first + j.
  __attribute__((always_inline)) static void TurnKeys(const Rows& keys, int first, int block,
                                                      __m512i* words) {
    __m512i pairs[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const int j = first + (i < 4 ? i : i + 4);
      pairs[i] = _mm512_inserti64x4(_mm512_castsi256_si512(keys.Load(j, block)),
                                    keys.Load(j + 4, block), 1);
    }
    __m512i fours[8];  // a 128-bit lane has a word, or the fourth after it, of four keys
#pragma GCC unroll 2
    for (int half = 0; half < 8; half += 4) {
      const __m512i ab_low = _mm512_unpacklo_epi32(pairs[half], pairs[half + 1]);
      const __m512i ab_high = _mm512_unpackhi_epi32(pairs[half], pairs[half + 1]);
      const __m512i cd_low = _mm512_unpacklo_epi32(pairs[half + 2], pairs[half + 3]);
      const __m512i cd_high = _mm512_unpackhi_epi32(pairs[half + 2], pairs[half + 3]);
      fours[half] = _mm512_unpacklo_epi64(ab_low, cd_low);
      fours[half + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
      fours[half + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
      fours[half + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    const __m512i flip = _mm512_set1_epi32(static_cast<int>(0x80808080u));
#pragma GCC unroll 4
    for (int w = 0; w < 4; ++w) {
      const __m512i low = _mm512_shuffle_i32x4(fours[w], fours[w + 4], _MM_SHUFFLE(2, 0, 2, 0));
      const __m512i high = _mm512_shuffle_i32x4(fours[w], fours[w + 4], _MM_SHUFFLE(3, 1, 3, 1));
      words[w] = _mm512_xor_si512(low, flip);
      words[w + 4] = _mm512_xor_si512(high, flip);
    }
  }

  // scores[r][key] of R rows: the sums over some blocks, added to those of the blocks before. Shuffles have
  // one port, products two, and each product of a chain waits for the one before: so a block is turned
  // before the products of its predecessor, and those are two chains for up to four rows (Xeon, from the first
  // level: 15.0 to 12.3 cycles a key). More rows are chains enough, and share what was turned: against two
  // passes of four (512 keys and 16 Ki, in turn) 5 rows are 16 and 20 % faster, 7 rows 13 and 15, 8 rows 11.
  template <int R>
  static void ScoreKeys(const Operands& from, int first, int some, int blocks, const Rows& keys,
                        const float* scales, RowsAhead& ahead, float* scores) {
    constexpr int kChains = R > 4 ? 1 : 2;
    RowsAhead fetch = ahead;
    for (int j = 0; j < keys.count; j += kLanes) {
      Vec sum[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        sum[r] = first == 0 ? Vec::Set(0.0f) : Vec::Load(scores + r * kChunkKeys + j);
      }
      __m512i next[kWords];
      TurnKeys(keys, j, first, next);
      for (int block = 0; block < some; ++block) {
        __m512i words[kWords];
#pragma GCC unroll 8
        for (int w = 0; w < kWords; ++w) words[w] = next[w];
        if (block + 1 < some) TurnKeys(keys, j, first + block + 1, next);
        const Vec key_scale = Vec::Load(scales + block * kChunkKeys + j);
        const std::uint32_t* query[R];
        __m512i dots[R][kChains];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const int at = r * blocks + first + block;
          query[r] = from.queries + at * kWords;
          dots[r][0] = _mm512_set1_epi32(from.starts[at]);
          if constexpr (kChains == 2) dots[r][1] = _mm512_setzero_si512();
        }
        fetch.Fetch();
#pragma GCC unroll 8
        for (int w = 0; w < kWords; ++w) {
          if (w % 2 == 0) fetch.Fetch();
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            const __m512i word = _mm512_set1_epi32(static_cast<int>(query[r][w]));
            __m512i& dot = dots[r][w % kChains];
            dot = _mm512_dpbusd_epi32(dot, words[w], word);
          }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          if constexpr (kChains == 2) dots[r][0] = _mm512_add_epi32(dots[r][0], dots[r][1]);
          const Vec dot = {_mm512_cvtepi32_ps(dots[r][0])};
          const Vec scale = Vec::Set(from.query_scales[r * blocks + first + block]);
          sum[r] = MulAdd(dot * scale, key_scale, sum[r]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r].Store(scores + r * kChunkKeys + j);
    }
    ahead = fetch;
  }

  // shares[key] = probability / unit of a row, zeros up to whole vectors of weights. Returns the unit: step
  // times the largest probability.
  static float Share(const float* probabilities, int count, float step, float* shares) {
    Vec most = Vec::Load(probabilities);
    for (int j = kLanes; j < count; j += kLanes) {
      most = MaxOrSecond(most, Vec::Load(probabilities + j));
    }
    const float unit = step * MaxLanes(most);
    const Vec inverse = Vec::Set(unit > 0 ? 1 / unit : 0.0f);
    for (int j = 0; j < count; j += kPacked) {
      (Vec::Load(probabilities + j) * inverse).Store(shares + j);
      const bool any = j + kLanes < count;  // behind the last key lies anything
      (any ? Vec::Load(probabilities + j + kLanes) * inverse : Vec::Set(0.0f))
          .Store(shares + j + kLanes);
    }
    return unit;
  }

  // outputs[r] of some blocks and R rows, shrunk, plus all keys of the chunk. step: of weights, for a
  // probability of 1.
  template <int R>
  static void AddBlocks(const FewSums& few, int first, int some, int blocks, const Rows& values,
                        const float* scales, float step, RowsAhead& ahead) {
    alignas(64) float shares[R * kChunkKeys];
    float units[R];
    for (int r = 0; r < R; ++r) {
      units[r] = Share(few.scores + r * kChunkKeys, values.count, step, shares + r * kChunkKeys);
    }
    for (int block = 0; block < some; ++block) {
      alignas(64) std::int16_t weights[R * kChunkKeys];
      for (int r = 0; r < R; ++r) {
        Weigh(shares + r * kChunkKeys, scales + block * kChunkKeys, values.count,
              weights + r * kChunkKeys);
      }
      AddBlock<R>(few, weights, units, values, first + block, blocks, ahead);
    }
  }

  // weights[key], 32 keys to a vector, in the order in which packing leaves them: four of the first 16, four
  // of the second, ..
  static void Weigh(const float* shares, const float* scales, int count, std::int16_t* weights) {
    const auto weigh = [&](int j) {
      return _mm512_cvtps_epi32((Vec::Load(shares + j) * Vec::Load(scales + j)).v);
    };
    for (int j = 0; j < count; j += kPacked) {
      _mm512_store_si512(weights + j, _mm512_packs_epi32(weigh(j), weigh(j + kLanes)));
    }
  }

  template <int R>
  static void AddBlock(const FewSums& few, const std::int16_t* weights, const float* units,
                       const Rows& values, int block, int blocks, RowsAhead& ahead) {
    __m512i sum[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
    RowsAhead fetch = ahead;
    for (int j = 0; j < values.count; j += kPacked) {
      for (int four = 0; four < kLanes; four += 4) {
        const std::int16_t* const weight = weights + j + 2 * four;
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; ++pair) {
          const int key = j + four + pair / 2 * kLanes + pair % 2 * 2;
          if (pair % 2 == 0) fetch.Fetch();  // enough beside those of the softmax
          const __m256i a = values.Load(key, block);
          const __m256i b = values.Load(key + 1, block);
          const __m512i low = _mm512_cvtepi8_epi16(_mm256_unpacklo_epi8(a, b));
          const __m512i high = _mm512_cvtepi8_epi16(_mm256_unpackhi_epi8(a, b));
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            std::int32_t both;
            __builtin_memcpy(&both, weight + r * kChunkKeys + 2 * pair, sizeof(both));
            const __m512i each = _mm512_set1_epi32(both);
            sum[r][0] = _mm512_dpwssd_epi32(sum[r][0], low, each);
            sum[r][1] = _mm512_dpwssd_epi32(sum[r][1], high, each);
            asm("" : "+v"(sum[r][0]), "+v"(sum[r][1]));  // else they are copied, 1 % of the whole
          }
        }
      }
    }
    ahead = fetch;
    // Unpacking put elements 0 to 7 and 16 to 23 low.
    const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 19, 18, 17, 16, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i second =
        _mm512_set_epi32(31, 30, 29, 28, 27, 26, 25, 24, 15, 14, 13, 12, 11, 10, 9, 8);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* output = few.outputs + (r * blocks + block) * kBlock;
      const Vec unit = Vec::Set(units[r]);
      const Vec shrink = Vec::Set(few.shrink[r]);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const Vec more = {_mm512_cvtepi32_ps(
            _mm512_permutex2var_epi32(sum[r][0], v == 0 ? first : second, sum[r][1]))};
        MulAdd(more, unit, Vec::Load(output + v * kLanes) * shrink).Store(output + v * kLanes);
      }
    }
  }

  using ScoreKeysFn = void (*)(const Operands&, int, int, int, const Rows&, const float*,
                               RowsAhead&, float*);
  using AddBlocksFn = void (*)(const FewSums&, int, int, int, const Rows&, const float*, float,
                               RowsAhead&);
  // [R]: all rows share what is turned and widened.
  static constexpr ScoreKeysFn kScoreKeys[kMaxFewRows + 1] = {
      nullptr,      ScoreKeys<1>, ScoreKeys<2>, ScoreKeys<3>, ScoreKeys<4>,
      ScoreKeys<5>, ScoreKeys<6>, ScoreKeys<7>, ScoreKeys<8>};
  static constexpr AddBlocksFn kAddBlocks[kMaxFewRows + 1] = {
      nullptr,      AddBlocks<1>, AddBlocks<2>, AddBlocks<3>, AddBlocks<4>,
      AddBlocks<5>, AddBlocks<6>, AddBlocks<7>, AddBlocks<8>};
};

constexpr Solver kRowsInt8 = {"rows int8 int16", AttendRows<Int8Rows>, RowsScratchOf<Int8Rows>};

inline const Solver& ChooseRows(const AttendShape& shape) {
  const bool q8 = shape.key_type == DType::kQ8_0 && shape.value_type == DType::kQ8_0;
  return shape.fast && q8 ? kRowsInt8 : kRowsF32;
}
