// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Few rows (decode) over bf16 keys and values in bf16 arithmetic. One instruction (vdpbf16ps) adds two
// products to each of 16 f32 sums, so that memory is what decode waits for.
//
//   scores: two rows in the halves of a vector, which share 16 elements of a key.
//
//      key      | k0 ..    k15 | k0 ..    k15 |
//      queries  | q0 ..    q15 | q0 ..    q15 |     for each 16 elements
//                    row 0          row 1
//
//   values: elements in the lanes, pairs of keys in the two halves of a lane, as in bf16-inl.h.
//
// Cost of a key for 4 rows of dim 128, counted in the source: 16 + 16 dot-product instructions, where
// f32 takes 64 multiply-adds. Queries and weights are rounded to bf16, a relative error of 2^-9 each.

struct Bf16Rows {
  static constexpr int kElements = 16;  // of each of two queries in a vector
  static constexpr int kKeys = 4;       // scored at a time
  static constexpr int kSlice = 32;     // elements of a value in a vector

  struct Operands {
    std::uint16_t* queries;  // [kMaxFewRows / 2][dim_k / kElements][2][kElements]
    std::uint16_t* weights;  // [kMaxFewRows][kChunkKeys]
    std::uint16_t* nothing;  // [dim_v], the partner of a last key that has none
  };

  static void LayOut(Cutter& cutter, int dim_k, int dim_v, Operands& to) {
    to.queries = cutter.Take<std::uint16_t>(static_cast<std::int64_t>(kMaxFewRows) * dim_k);
    to.weights = cutter.Take<std::uint16_t>(kMaxFewRows * kChunkKeys);
    to.nothing = cutter.Take<std::uint16_t>(dim_v);
  }

  static void TakeQueries(const AttendArgs& args, const Operands& to) {
    const int dim = args.keys.dim;
    const Vec scale = Vec::Set(args.scale * kLog2E);
    for (int row = 0; row < kMaxFewRows; ++row) {
      const float* query = args.queries[Min(row, args.rows - 1)];
      std::uint16_t* out = to.queries + row / 2 * 2 * dim + row % 2 * kElements;
      for (int i = 0; i < dim; i += kElements) {
        StoreRounded(Vec::Load(query + i) * scale, out + 2 * i);
      }
    }
    for (int i = 0; i < args.values.dim; ++i) to.nothing[i] = 0;
  }

  static void Score(const Operands& from, const AttendArgs& args, const KeyChunk& chunk,
                    RowsAhead& ahead, float* scores) {
    const auto key = [&](int j) { return args.keys.data + chunk.key_offsets[j]; };
    for (int row = 0; row < args.rows; row += 4) {
      const std::uint16_t* queries = from.queries + row * args.keys.dim;
      for (int j = 0; j < chunk.count; j += kKeys) {
        ScoreFourRows(queries, args.keys.dim, key(j), key(j + 1), key(j + 2), key(j + 3), ahead,
                      scores + row * kChunkKeys + j);
      }
    }
  }

  static void Add(const Operands& from, const AttendArgs& args, const FewSums& few,
                  const KeyChunk& chunk, RowsAhead& ahead) {
    const int dim = args.values.dim;
    const int count = chunk.count;
    const std::byte* rows[kChunkKeys];
    for (int j = 0; j < count; ++j) rows[j] = args.values.data + chunk.value_offsets[j];
    const int pairs = (count + 1) / 2;
    rows[2 * pairs - 1] =
        count % 2 == 0 ? rows[count - 1] : reinterpret_cast<std::byte*>(from.nothing);
    for (int row = 0; row < args.rows; ++row) {
      const float* weights = few.scores + row * kChunkKeys;
      for (int j = 0; j < count; j += Vec::kLanes) {
        StoreRounded(Vec::Load(weights + j), from.weights + row * kChunkKeys + j);
      }
    }
    for (int row = 0; row < args.rows; row += 4) {
      const auto add = kAddSlices[Min(4, args.rows - row)];
      int i = 0;
      for (; i + 2 * kSlice <= dim; i += 2 * kSlice) {
        add[1](from.weights + row * kChunkKeys, few, row, rows, pairs, dim, i, ahead);
      }
      for (; i < dim; i += kSlice) {
        add[0](from.weights + row * kChunkKeys, few, row, rows, pairs, dim, i, ahead);
      }
    }
  }

 private:
  static void StoreRounded(Vec from, std::uint16_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(from.v));
  }

  // scores[r][j] of four rows and the keys a, b, c and d.
  static void ScoreFourRows(const std::uint16_t* queries, int dim, const std::byte* a,
                            const std::byte* b, const std::byte* c, const std::byte* d,
                            RowsAhead& ahead, float* scores) {
    __m512 sum[2][kKeys];
#pragma GCC unroll 4
    for (int j = 0; j < kKeys; ++j) sum[0][j] = sum[1][j] = _mm512_setzero_ps();
    for (int i = 0; i < dim; i += kElements) {
      ahead.Fetch();
      const auto first = (__m512bh)_mm512_loadu_si512(queries + 2 * i);
      const auto second = (__m512bh)_mm512_loadu_si512(queries + 2 * (dim + i));
      const __m512bh key[kKeys] = {LoadTwice(a + 2 * i), LoadTwice(b + 2 * i), LoadTwice(c + 2 * i),
                                   LoadTwice(d + 2 * i)};
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) {
        sum[0][j] = _mm512_dpbf16_ps(sum[0][j], first, key[j]);
        sum[1][j] = _mm512_dpbf16_ps(sum[1][j], second, key[j]);
      }
    }
    const __m512 low = SumInQuarters(sum[0][0], sum[0][1], sum[0][2], sum[0][3]);
    const __m512 high = SumInQuarters(sum[1][0], sum[1][1], sum[1][2], sum[1][3]);
    const __m512 rows = _mm512_add_ps(_mm512_shuffle_f32x4(low, high, _MM_SHUFFLE(2, 0, 2, 0)),
                                      _mm512_shuffle_f32x4(low, high, _MM_SHUFFLE(3, 1, 3, 1)));
    _mm_storeu_ps(scores, _mm512_castps512_ps128(rows));
    _mm_storeu_ps(scores + kChunkKeys, _mm512_extractf32x4_ps(rows, 1));
    _mm_storeu_ps(scores + 2 * kChunkKeys, _mm512_extractf32x4_ps(rows, 2));
    _mm_storeu_ps(scores + 3 * kChunkKeys, _mm512_extractf32x4_ps(rows, 3));
  }

  static __m512bh LoadTwice(const std::byte* half) {
    return (__m512bh)_mm512_broadcast_i64x4(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
  }

  // outputs[r][i..] of R rows and N slices from i on, shrunk, plus the keys of the chunk in pairs.
  template <int R, int N>
  static void AddSlices(const std::uint16_t* weights, const FewSums& few, int row,
                        const std::byte* const* rows, int pairs, int dim, int i, RowsAhead& ahead) {
    const __mmask32 inside = dim - i < kSlice ? 0xFFFFu : 0xFFFFFFFFu;
    __m512 sum[R][N][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) sum[r][n][0] = sum[r][n][1] = _mm512_setzero_ps();
    }
    for (int pair = 0; pair < pairs; ++pair) {
      __m512bh low[N];
      __m512bh high[N];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        // Of four rows, the softmax fetched a quarter.
        if (R < 4 || n == 0 || pair % 2 == 0) ahead.Fetch();
        const int at = 2 * (i + n * kSlice);
        const __m512i a = _mm512_maskz_loadu_epi16(inside, rows[2 * pair] + at);
        const __m512i b = _mm512_maskz_loadu_epi16(inside, rows[2 * pair + 1] + at);
        low[n] = (__m512bh)_mm512_unpacklo_epi16(a, b);
        high[n] = (__m512bh)_mm512_unpackhi_epi16(a, b);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        std::int32_t both;
        __builtin_memcpy(&both, weights + r * kChunkKeys + 2 * pair, sizeof(both));
        const auto weight = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) {
          sum[r][n][0] = _mm512_dpbf16_ps(sum[r][n][0], low[n], weight);
          sum[r][n][1] = _mm512_dpbf16_ps(sum[r][n][1], high[n], weight);
        }
      }
    }
    // Unpacking put elements 0 to 3 of each eight low and 4 to 7 high.
    const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i second =
        _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        const int at = i + n * kSlice;
        float* output = few.outputs + (row + r) * dim + at;
        const Vec shrink = Vec::Set(few.shrink[row + r]);
        MulAdd(Vec::Load(output), shrink,
               {_mm512_permutex2var_ps(sum[r][n][0], first, sum[r][n][1])})
            .Store(output);
        if (dim - at == Vec::kLanes) continue;
        MulAdd(Vec::Load(output + Vec::kLanes), shrink,
               {_mm512_permutex2var_ps(sum[r][n][0], second, sum[r][n][1])})
            .Store(output + Vec::kLanes);
      }
    }
  }

  using AddSlicesFn = void (*)(const std::uint16_t*, const FewSums&, int, const std::byte* const*,
                               int, int, int, RowsAhead&);
  template <int R>
  static constexpr AddSlicesFn kAddSlicesOf[2] = {AddSlices<R, 1>, AddSlices<R, 2>};
  static constexpr const AddSlicesFn* kAddSlices[5] = {nullptr, kAddSlicesOf<1>, kAddSlicesOf<2>,
                                                       kAddSlicesOf<3>, kAddSlicesOf<4>};
};

constexpr Solver kRowsBf16 = {"rows bf16 bf16", AttendRows<Bf16Rows>, RowsScratchOf<Bf16Rows>};
