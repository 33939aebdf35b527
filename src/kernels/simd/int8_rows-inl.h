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
//   with m_p the largest p of the row in the chunk and m_d the largest scale. Queries are rounded to
//   int8 as in int8-inl.h, which is the larger error by far.
//
// Cost of a key for 4 rows of dim 128, counted in the source: 8 + 16 dot-product instructions, where
// f32 takes 64 multiply-adds, beside 8 + 8 shuffles and conversions. Zen 4, 64 Ki keys: 14.2 GB/s
// against the 8.0 of widened numbers.

struct Int8Rows {
  static constexpr int kBlock = static_cast<int>(kQ8BlockSize);
  static constexpr int kWords = kBlock / 4;
  static constexpr int kLanes = Vec::kLanes;

  struct Operands {
    std::uint32_t* queries;  // [kMaxFewRows][dim_k / 4], four signed bytes in an element
    float* query_scales;     // [kMaxFewRows][dim_k / 32]
    std::int32_t* starts;    // [kMaxFewRows][dim_k / 32], -128 times the sum of a block
    std::uint16_t* scales;   // [max(dim_k, dim_v) / 32][kChunkKeys], f16, of keys or of values
    std::int16_t* weights;   // [dim_v / 32][kMaxFewRows][kChunkKeys]
  };

  static void LayOut(Cutter& cutter, int dim_k, int dim_v, Operands& to) {
    const std::int64_t blocks = dim_k / kBlock;
    to.queries = cutter.Take<std::uint32_t>(kMaxFewRows * blocks * kWords);
    to.query_scales = cutter.Take<float>(kMaxFewRows * blocks);
    to.starts = cutter.Take<std::int32_t>(kMaxFewRows * blocks);
    to.scales = cutter.Take<std::uint16_t>(Max(dim_k, dim_v) / kBlock * kChunkKeys);
    to.weights = cutter.Take<std::int16_t>(dim_v / kBlock * kMaxFewRows * kChunkKeys);
  }

  static void TakeQueries(const AttendArgs& args, const Operands& to) {
    const int blocks = args.keys.dim / kBlock;
    for (int at = 0; at < args.rows * blocks; ++at) {
      std::uint32_t* words = to.queries + at * kWords;
      const float step = RoundBlock(args.queries[at / blocks] + at % blocks * kBlock, words);
      to.query_scales[at] = step * args.scale * kLog2E;
      int sum = 0;
      for (int word = 0; word < kWords; ++word) {
        words[word] ^= 0x80808080u;
        for (int i = 0; i < 4; ++i) sum += static_cast<std::int8_t>(words[word] >> (8 * i));
      }
      to.starts[at] = -128 * sum;
    }
  }

  static void Score(const Operands& from, const AttendArgs& args, const std::int32_t* keys,
                    int count, RowsAhead& ahead, float* scores) {
    const std::byte* rows[kChunkKeys];
    const int blocks = args.keys.dim / kBlock;
    const int padded = TakeRows(args.keys, keys, count, rows, from.scales);
    for (int first = 0; first < padded; first += kLanes) {
      for (int row = 0; row < args.rows; row += 4) {
        kScoreKeys[Min(4, args.rows - row)](from, row, blocks, rows, first, ahead,
                                            scores + row * kChunkKeys + first);
      }
    }
  }

  static void Add(const Operands& from, const AttendArgs& args, const FewSums& few,
                  const std::int32_t* keys, int count, RowsAhead& ahead) {
    const std::byte* rows[kChunkKeys];
    const int blocks = args.values.dim / kBlock;
    const int padded = TakeRows(args.values, keys, count, rows, from.scales);
    const float step = LargestScale(from.scales, blocks, padded) / 32767;
    float units[kMaxFewRows];
    for (int row = 0; row < args.rows; ++row) {
      units[row] = step * Highest(few.scores + row * kChunkKeys, padded);
    }
    Weigh(from, few.scores, args.rows, blocks, padded, units);
    for (int block = 0; block < blocks; ++block) {
      for (int row = 0; row < args.rows; row += 4) {
        kAddBlock[Min(4, args.rows - row)](from, few, row, units + row, rows, block, blocks,
                                           (count + 1) / 2, ahead);
      }
    }
  }

 private:
  // Finds the rows of a chunk, padded with the last one to whole lane vectors, and gathers their
  // scales, padded with zeros. Returns how many rows that makes.
  static int TakeRows(const RowsView& view, const std::int32_t* keys, int count,
                      const std::byte** rows, std::uint16_t* scales) {
    const int padded = (count + kLanes - 1) / kLanes * kLanes;
    const int blocks = view.dim / kBlock;
    const auto take = blocks == 2 ? TakeScales<2> : blocks == 4 ? TakeScales<4> : TakeScales<0>;
    take(view, keys, count, rows, scales);
    for (int j = count; j < padded; ++j) {
      rows[j] = rows[count - 1];
      for (int block = 0; block < blocks; ++block) scales[block * kChunkKeys + j] = 0;
    }
    return padded;
  }

  // kBlocks: of a row, or 0 for any number.
  template <int kBlocks>
  static void TakeScales(const RowsView& view, const std::int32_t* keys, int count,
                         const std::byte** rows, std::uint16_t* scales) {
    const int blocks = kBlocks == 0 ? view.dim / kBlock : kBlocks;
    const std::byte* const data = view.data;
    const std::int64_t stride = view.stride;
    for (int j = 0; j < count; ++j) {
      const std::byte* row = data + keys[j] * stride;
      asm("" : "+r"(row));  // vector arithmetic would wait behind that of the chunk before
      rows[j] = row;
#pragma GCC unroll 4
      for (int block = 0; block < blocks; ++block) {
        __builtin_memcpy(scales + block * kChunkKeys + j, row + block * kQ8BlockBytes,
                         sizeof(*scales));
      }
    }
  }

  static __m256i LoadBytes(const std::byte* row, int block) {
    return _mm256_loadu_si256(
        reinterpret_cast<const __m256i*>(row + block * kQ8BlockBytes + sizeof(std::uint16_t)));
  }

  // words[w], lane j = the four bytes k + 128 from 4 w on of key j.
  __attribute__((always_inline)) static void TurnKeys(const std::byte* const* rows, int block,
                                                      __m512i* words) {
    __m512i pairs[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const int j = i < 4 ? i : i + 4;
      pairs[i] = _mm512_inserti64x4(_mm512_castsi256_si512(LoadBytes(rows[j], block)),
                                    LoadBytes(rows[j + 4], block), 1);
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

  // scores[r][j] of R rows and 16 keys.
  template <int R>
  static void ScoreKeys(const Operands& from, int row, int blocks, const std::byte* const* rows,
                        int first, RowsAhead& ahead, float* scores) {
    Vec sum[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[r] = Vec::Set(0.0f);
    for (int block = 0; block < blocks; ++block) {
      __m512i words[kWords];
      TurnKeys(rows + first, block, words);
      const Vec key_scale = Vec::LoadF16(from.scales + block * kChunkKeys + first);
      const std::uint32_t* query[R];
      __m512i dots[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const int at = (row + r) * blocks + block;
        query[r] = from.queries + at * kWords;
        dots[r] = _mm512_set1_epi32(from.starts[at]);
      }
      ahead.Fetch();
#pragma GCC unroll 8
      for (int w = 0; w < kWords; ++w) {
        if (w % 2 == 0) ahead.Fetch();
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const __m512i word = _mm512_set1_epi32(static_cast<int>(query[r][w]));
          dots[r] = _mm512_dpbusd_epi32(dots[r], words[w], word);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec dot = {_mm512_cvtepi32_ps(dots[r])};
        const Vec scale = Vec::Set(from.query_scales[(row + r) * blocks + block]);
        sum[r] = MulAdd(dot * scale, key_scale, sum[r]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[r].Store(scores + r * kChunkKeys);
  }

  // NaN when any of them is no number.
  static float LargestScale(const std::uint16_t* scales, int blocks, int padded) {
    Vec most = Vec::Set(0.0f);
    Vec poison = Vec::Set(0.0f);
    for (int block = 0; block < blocks; ++block) {
      for (int j = 0; j < padded; j += kLanes) {
        const Vec scale = Vec::LoadF16(scales + block * kChunkKeys + j);
        most = MaxOrSecond(Vec{_mm512_abs_ps(scale.v)}, most);
        poison = MulAdd(scale, Vec::Set(0.0f), poison);
      }
    }
    return AnyDifferent(poison, Vec::Set(0.0f)) ? __builtin_nanf("") : MaxLanes(most);
  }

  static float Highest(const float* probabilities, int padded) {
    Vec most = Vec::Load(probabilities);
    for (int j = kLanes; j < padded; j += kLanes) {
      most = MaxOrSecond(most, Vec::Load(probabilities + j));
    }
    return MaxLanes(most);
  }

  // The weights of all rows, in units of each.
  static void Weigh(const Operands& from, const float* probabilities, int rows, int blocks,
                    int padded, const float* units) {
    float inverses[kMaxFewRows];
    for (int row = 0; row < rows; ++row) inverses[row] = units[row] > 0 ? 1 / units[row] : 0.0f;
    for (int block = 0; block < blocks; ++block) {
      for (int j = 0; j < padded; j += kLanes) {
        const Vec scale = Vec::LoadF16(from.scales + block * kChunkKeys + j);
        for (int row = 0; row < rows; ++row) {
          const Vec share =
              Vec::Load(probabilities + row * kChunkKeys + j) * Vec::Set(inverses[row]);
          const Vec weight = share * scale;
          std::int16_t* to = from.weights + (block * kMaxFewRows + row) * kChunkKeys + j;
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                              _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(weight.v)));
        }
      }
    }
  }

  // outputs[r][block] of R rows, shrunk, plus all keys of the chunk, in pairs.
  template <int R>
  static void AddBlock(const Operands& from, const FewSums& few, int row, const float* units,
                       const std::byte* const* rows, int block, int blocks, int pairs,
                       RowsAhead& ahead) {
    __m512i sum[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
    const std::int16_t* weights = from.weights + (block * kMaxFewRows + row) * kChunkKeys;
    RowsAhead fetch = ahead;
    for (int pair = 0; pair < pairs; ++pair) {
      if (pair % 2 == 0) fetch.Fetch();  // the softmax fetched half
      const __m256i a = LoadBytes(rows[2 * pair], block);
      const __m256i b = LoadBytes(rows[2 * pair + 1], block);
      const __m512i low = _mm512_cvtepi8_epi16(_mm256_unpacklo_epi8(a, b));
      const __m512i high = _mm512_cvtepi8_epi16(_mm256_unpackhi_epi8(a, b));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        std::int32_t both;
        __builtin_memcpy(&both, weights + r * kChunkKeys + 2 * pair, sizeof(both));
        const __m512i weight = _mm512_set1_epi32(both);
        sum[r][0] = _mm512_dpwssd_epi32(sum[r][0], low, weight);
        sum[r][1] = _mm512_dpwssd_epi32(sum[r][1], high, weight);
      }
    }
    ahead = fetch;
    // Unpacking put elements 0 to 7 and 16 to 23 low.
    const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 19, 18, 17, 16, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i second =
        _mm512_set_epi32(31, 30, 29, 28, 27, 26, 25, 24, 15, 14, 13, 12, 11, 10, 9, 8);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      float* output = few.outputs + ((row + r) * blocks + block) * kBlock;
      const Vec unit = Vec::Set(units[r]);
      const Vec shrink = Vec::Set(few.shrink[row + r]);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const Vec more = {_mm512_cvtepi32_ps(
            _mm512_permutex2var_epi32(sum[r][0], v == 0 ? first : second, sum[r][1]))};
        MulAdd(more, unit, Vec::Load(output + v * kLanes) * shrink).Store(output + v * kLanes);
      }
    }
  }

  using ScoreKeysFn = void (*)(const Operands&, int, int, const std::byte* const*, int, RowsAhead&,
                               float*);
  using AddBlockFn = void (*)(const Operands&, const FewSums&, int, const float*,
                              const std::byte* const*, int, int, int, RowsAhead&);
  static constexpr ScoreKeysFn kScoreKeys[5] = {nullptr, ScoreKeys<1>, ScoreKeys<2>, ScoreKeys<3>,
                                                ScoreKeys<4>};
  static constexpr AddBlockFn kAddBlock[5] = {nullptr, AddBlock<1>, AddBlock<2>, AddBlock<3>,
                                              AddBlock<4>};
};

constexpr Solver kRowsInt8 = {"rows int8 int16", AttendRows<Int8Rows>, RowsScratchOf<Int8Rows>};

inline const Solver& ChooseRows(const AttendShape& shape) {
  const bool q8 = shape.key_type == DType::kQ8_0 && shape.value_type == DType::kQ8_0;
  return shape.fast && q8 ? kRowsInt8 : kRowsF32;
}
