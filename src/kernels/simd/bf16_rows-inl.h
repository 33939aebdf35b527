// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Few rows (decode) over bf16 or f16 keys and values in bf16 arithmetic. One instruction (vdpbf16ps) adds
// two products to each of 16 f32 sums, so that memory is what decode waits for.
//
//   scores: two rows in the halves of a vector, each beside the half of a key that it is multiplied with;
//   for 32 elements, once with the key as it lies and once with its halves swapped.
//
//      key        | k0  .. k15 | k16 .. k31 |         swapped    | k16 .. k31 | k0  .. k15 |
//      first      | q0  .. q15 | q16 .. q31 |         second     | q16 .. q31 | q0  .. q15 |
//                      row 0        row 1                             row 0        row 1
//
//   values: elements in the lanes, pairs of keys in the two halves of a lane, as in bf16-inl.h.
//
//   f16: shifted right by three, a number is a bf16 2^-112 times as large; queries and weights are made 2^112
//   times as large instead.
//
//      s eeeee mmmmmmmmmm  ->  s 000eeeee mmmmmmm
//
//   What this does not hold is left to f32, a chunk of keys or a slice of values at a time: infinities,
//   NaNs, queries of 2^14 and more, and numbers of which the largest is below 2^-6, since the instruction
//   takes what is below 2^-14 for zero.
//
// Cost of a key for 4 rows of dim 128, counted in the source: 16 + 16 dot-product instructions, where
// f32 takes 64 multiply-adds. Queries, weights and f16 numbers are rounded to bf16, a relative error of
// 2^-9 each.

constexpr int kSlice = 32;  // elements of a row in a vector; the last one may have half of them

// No masked load, which is slower: with one, decoding f16 took 5 % longer (Zen 4, 4 and 64 Ki keys).
template <bool kWhole>
__m512i LoadSlice(const std::byte* at) {
  if constexpr (kWhole) return _mm512_loadu_si512(at);
  return _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}

// Numbers of a type as operands, beside others that are kOtherScale times as large.
template <DType kType>
struct AsBf16;

template <>
struct AsBf16<DType::kBF16> {
  static constexpr bool kHoldsAll = true;
  static constexpr float kOtherScale = 1;

  static __m512i Take(__m512i numbers) { return numbers; }
  static bool Held() { return true; }
};

template <>
struct AsBf16<DType::kF16> {
  static constexpr bool kHoldsAll = false;
  static constexpr float kOtherScale = 0x1p112f;

  __m512i largest = _mm512_setzero_si512();  // that was taken: twice its bits, which drops the sign

  __m512i Take(__m512i numbers) {
    largest = _mm512_max_epu16(largest, _mm512_add_epi16(numbers, numbers));
    // An eighth, rounded: in two's complement, of which the sign and twelve bits are right for both signs.
    const __m512i eighth = _mm512_mulhrs_epi16(numbers, _mm512_set1_epi16(1 << 12));
    return _mm512_and_si512(eighth, _mm512_set1_epi16(static_cast<short>(0x8FFF)));
  }
  // Whether bf16 held all that was taken, see above.
  bool Held() const {
    const __m512i infinity = _mm512_set1_epi16(static_cast<short>(2 * 0x7C00));
    const __m512i small = _mm512_set1_epi16(2 * 0x2400);
    return _mm512_cmpge_epu16_mask(largest, infinity) == 0 &&
           _mm512_cmpge_epu16_mask(largest, small) != 0;
  }
};

template <DType kType>
struct Bf16Rows {
  static constexpr int kElements = 16;        // of each of two queries in a vector
  static constexpr int kRowsOfTwoSlices = 4;  // up to which two slices of sums fit into registers
  static constexpr bool kHoldsAll = AsBf16<kType>::kHoldsAll;

  struct Operands {
    std::uint16_t* queries;    // [kMaxFewRows / 2][slices of dim_k][first, second][kSlice]
    std::uint16_t* weights;    // [kMaxFewRows][kChunkKeys]
    std::uint16_t* nothing;    // [dim_v], the partner of a last key that has none
    bool* held;                // whether bf16 holds the queries
    F32Rows::Operands in_f32;  // where it does not hold all
  };

  static void LayOut(Cutter& cutter, int dim_k, int dim_v, Operands& to) {
    to.queries = cutter.Take<std::uint16_t>(static_cast<std::int64_t>(kMaxFewRows) * Padded(dim_k));
    to.weights = cutter.Take<std::uint16_t>(kMaxFewRows * kChunkKeys);
    to.nothing = cutter.Take<std::uint16_t>(dim_v);
    if constexpr (kHoldsAll) return;
    to.held = cutter.Take<bool>(1);
    F32Rows::LayOut(cutter, dim_k, dim_v, to.in_f32);
  }

  static void TakeQueries(const AttendArgs& args, const Operands& to) {
    const int dim = args.keys.dim;
    const Vec scale = Vec::Set(args.scale * kLog2E);
    __mmask16 large = 0;
    for (int row = 0; row < (args.rows + 1) / 2 * 2; ++row) {
      const float* query = args.queries[Min(row, args.rows - 1)];
      const int side = row % 2;
      std::uint16_t* out = to.queries + row / 2 * 2 * Padded(dim) + side * kElements;
      for (int i = 0; i < Padded(dim); i += kElements) {
        const Vec scaled = i < dim ? Vec::Load(query + i) * scale : Vec::Set(0.0f);
        large |= _mm512_cmp_ps_mask(_mm512_abs_ps(scaled.v), _mm512_set1_ps(0x1p14f), _CMP_NLT_UQ);
        const bool swapped = i / kElements % 2 != side;
        StoreRounded(scaled * Vec::Set(AsBf16<kType>::kOtherScale),
                     out + i / kSlice * 2 * kSlice + (swapped ? kSlice : 0));
      }
    }
    for (int i = 0; i < args.values.dim; ++i) to.nothing[i] = 0;
    if constexpr (!kHoldsAll) *to.held = large == 0;
  }

  static int SoftmaxFetches(const AttendArgs& /*args*/) { return kSoftmaxFetches; }
  static void Score(const FewScratch<Bf16Rows>* few, const AttendArgs* args, int problems,
                    const KeyChunk& chunk, RowsAhead& ahead) {
    for (int p = 0; p < problems; ++p) {
      ScoreOne(few[p].operands, args[p], chunk, ahead, few[p].scores);
    }
  }

  static void Add(const FewScratch<Bf16Rows>* scratch, const AttendArgs* problem, int p,
                  int /*problems*/, const KeyChunk& chunk, RowsAhead& ahead) {
    const AttendArgs& args = problem[p];
    const FewSums& few = scratch[p];
    const Operands& from = scratch[p].operands;
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
        StoreRounded(Vec::Load(weights + j) * Vec::Set(AsBf16<kType>::kOtherScale),
                     from.weights + row * kChunkKeys + j);
      }
    }
    const int most = args.rows <= kRowsOfTwoSlices ? 2 : 1;  // slices at a time
    for (int i = 0, taken = 0; i < dim; i += taken) {
      const int size = Min((dim - i) / kSlice, most);
      taken = size == 0 ? kElements : size * kSlice;
      const AddSlicesFn add = kAddSlices[args.rows][size];
      if (add(from.weights, few, rows, pairs, dim, i, ahead)) continue;
      for (int row = 0; row < args.rows; ++row) AddInF32(args, few, chunk, row, i, i + taken);
    }
  }

 private:
  // With so few rows, arithmetic is faster than memory.
  static constexpr int RequestsOf(int rows) {
    return rows <= (kType == DType::kBF16 ? 4 : 2) ? kMoreRequests : kRequests;
  }

  static void ScoreOne(const Operands& from, const AttendArgs& args, const KeyChunk& chunk,
                       RowsAhead& ahead, float* scores) {
    if (kHoldsAll || *from.held) {
      AsBf16<kType> keys;
      const auto score = [&]<int kPairs>() __attribute__((always_inline)) {
        ScoreChunk<kPairs>(from.queries, args.keys, chunk, keys, ahead, scores);
      };
      switch ((args.rows + 1) / 2) {
        case 1:
          score.template operator()<1>();
          break;
        case 2:
          score.template operator()<2>();
          break;
        case 3:
          score.template operator()<3>();
          break;
        default:
          score.template operator()<4>();
      }
      if (keys.Held()) return;
    }
    F32Rows::TakeQueries(args, from.in_f32);  // anew for each chunk, of which few come here
    ScoreRows(from.in_f32.queries, args.rows, args.keys, chunk.key_offsets, chunk.count, ahead,
              scores);
  }

  static constexpr int Padded(int dim) { return (dim + kSlice - 1) / kSlice * kSlice; }

  static void StoreRounded(Vec from, std::uint16_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(from.v));
  }

  // scores[r][j] of kPairs pairs of rows and the keys of a chunk.
  template <int kPairs>
  __attribute__((always_inline)) static void ScoreChunk(const std::uint16_t* queries,
                                                        const RowsView& keys, const KeyChunk& chunk,
                                                        AsBf16<kType>& as_bf16, RowsAhead& ahead,
                                                        float* scores) {
    // Reducing sums across lanes waits for the last products, and the longer for fewer keys (Zen 4, four rows,
    // 256 and 4 Ki keys, bf16: 4 keys 4 % slower).
    constexpr int kKeys = kPairs <= 2 ? 8 : 4;
    for (int j = 0; j < chunk.count; j += kKeys) {
      ScoreKeys<kPairs, kKeys>(queries, keys.dim, keys.data, chunk.key_offsets + j, as_bf16, ahead,
                               scores + j);
    }
  }

  template <int kPairs, int kKeys>
  __attribute__((always_inline)) static void ScoreKeys(const std::uint16_t* queries, int dim,
                                                       const std::byte* keys,
                                                       const std::int64_t* offsets,
                                                       AsBf16<kType>& as_bf16, RowsAhead& ahead,
                                                       float* scores) {
    constexpr int kTimes = RequestsOf(2 * kPairs);
    __m512 sum[kKeys][kPairs];
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) {
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) sum[j][p] = _mm512_setzero_ps();
    }
    AsBf16<kType> taken = as_bf16;
    const auto add = [&]<bool kWhole>(int i) __attribute__((always_inline)) {
      __m512bh first[kPairs];
      __m512bh second[kPairs];
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
        const std::uint16_t* const at = queries + 2 * (p * Padded(dim) + i);
        first[p] = (__m512bh)_mm512_loadu_si512(at);
        second[p] = (__m512bh)_mm512_loadu_si512(at + kSlice);
      }
#pragma GCC unroll 2
      for (int four = 0; four < kKeys; four += 4) {
        __m512i key[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          key[j] = taken.Take(LoadSlice<kWhole>(keys + offsets[four + j] + 2 * i));
        }
        ahead.Fetch<kTimes>();
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 4
          for (int p = 0; p < kPairs; ++p) {
            sum[four + j][p] = _mm512_dpbf16_ps(sum[four + j][p], first[p], (__m512bh)key[j]);
          }
        }
        if constexpr (kWhole) ahead.Fetch<kTimes>();
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const auto swapped =
              (__m512bh)_mm512_shuffle_i64x2(key[j], key[j], _MM_SHUFFLE(1, 0, 3, 2));
#pragma GCC unroll 4
          for (int p = 0; p < kPairs; ++p) {
            sum[four + j][p] = _mm512_dpbf16_ps(sum[four + j][p], second[p], swapped);
          }
        }
      }
    };
    int i = 0;
    for (; i + kSlice <= dim; i += kSlice) add.template operator()<true>(i);
    if (i < dim) add.template operator()<false>(i);
    as_bf16 = taken;
#pragma GCC unroll 2
    for (int j = 0; j < kKeys; j += 4) {
      __m512 quarters[kPairs + 1];  // of the sums of four keys, the lower two of a pair's first row
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
        quarters[p] = SumInQuarters(sum[j][p], sum[j + 1][p], sum[j + 2][p], sum[j + 3][p]);
      }
      quarters[kPairs] = quarters[kPairs - 1];
#pragma GCC unroll 2
      for (int p = 0; p < kPairs; p += 2) {
        const __m512 a = quarters[p];
        const __m512 b = quarters[p + 1];
        const __m512 rows = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(2, 0, 2, 0)),
                                          _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
        float* const out = scores + 2 * p * kChunkKeys + j;
        _mm_storeu_ps(out, _mm512_castps512_ps128(rows));
        _mm_storeu_ps(out + kChunkKeys, _mm512_extractf32x4_ps(rows, 1));
        if (p + 1 == kPairs) continue;
        _mm_storeu_ps(out + 2 * kChunkKeys, _mm512_extractf32x4_ps(rows, 2));
        _mm_storeu_ps(out + 3 * kChunkKeys, _mm512_extractf32x4_ps(rows, 3));
      }
    }
  }

  // outputs[r][i..] of R rows and kSize slices (0: half of one) from i on, shrunk, plus the keys of the chunk in
  // pairs. Returns whether bf16 held the values; else outputs are as before.
  template <int R, int kSize>
  static bool AddSlices(const std::uint16_t* weights, const FewSums& few,
                        const std::byte* const* rows, int pairs, int dim, int i, RowsAhead& ahead) {
    constexpr int N = kSize == 2 ? 2 : 1;
    constexpr int kTimes = RequestsOf(R);
    constexpr int kFetchesOfFour = R < 4 ? 4 : R < 8 ? 3 : 2;  // the softmax fetched the rest
    __m512 sum[R][N][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) sum[r][n][0] = sum[r][n][1] = _mm512_setzero_ps();
    }
    AsBf16<kType> values;
    for (int pair = 0; pair < pairs; ++pair) {
      __m512bh low[N];
      __m512bh high[N];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        if ((N * pair + n) % 4 < kFetchesOfFour) ahead.Fetch<kTimes>();
        const int at = 2 * (i + n * kSlice);
        const __m512i a = values.Take(LoadSlice<(kSize > 0)>(rows[2 * pair] + at));
        const __m512i b = values.Take(LoadSlice<(kSize > 0)>(rows[2 * pair + 1] + at));
        low[n] = (__m512bh)_mm512_unpacklo_epi16(a, b);
        high[n] = (__m512bh)_mm512_unpackhi_epi16(a, b);
      }
#pragma GCC unroll 8
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
    if (!values.Held()) return false;
    // Unpacking put elements 0 to 3 of each eight low and 4 to 7 high.
    const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i second =
        _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        const int at = i + n * kSlice;
        float* output = few.outputs + r * dim + at;
        const Vec shrink = Vec::Set(few.shrink[r]);
        MulAdd(Vec::Load(output), shrink,
               {_mm512_permutex2var_ps(sum[r][n][0], first, sum[r][n][1])})
            .Store(output);
        if (kSize == 0) continue;
        MulAdd(Vec::Load(output + Vec::kLanes), shrink,
               {_mm512_permutex2var_ps(sum[r][n][0], second, sum[r][n][1])})
            .Store(output + Vec::kLanes);
      }
    }
    return true;
  }

  // The same for one row and the elements [begin, end).
  static void AddInF32(const AttendArgs& args, const FewSums& few, const KeyChunk& chunk, int row,
                       int begin, int end) {
    RowsAhead nothing;
    for (int i = begin; i < end; i += Vec::kLanes) {
      AddSlice<1, 1, kType>(few.scores + row * kChunkKeys, few.shrink + row, args.values,
                            chunk.value_offsets, chunk.count, i, nothing,
                            few.outputs + row * args.values.dim);
    }
  }

  using AddSlicesFn = bool (*)(const std::uint16_t*, const FewSums&, const std::byte* const*, int,
                               int, int, RowsAhead&);
  // [rows][slices at a time]: all rows share what is loaded and shifted.
  template <int R>
  static constexpr AddSlicesFn kAddSlicesOf[] = {AddSlices<R, 0>, AddSlices<R, 1>,
                                                 AddSlices<R, R <= kRowsOfTwoSlices ? 2 : 1>};
  static constexpr const AddSlicesFn* kAddSlices[kMaxFewRows + 1] = {
      nullptr,         kAddSlicesOf<1>, kAddSlicesOf<2>, kAddSlicesOf<3>, kAddSlicesOf<4>,
      kAddSlicesOf<5>, kAddSlicesOf<6>, kAddSlicesOf<7>, kAddSlicesOf<8>};
};

template <DType kType>
constexpr Solver kRowsBf16 = {"rows bf16 bf16", AttendRows<Bf16Rows<kType>>,
                              RowsScratchOf<Bf16Rows<kType>>};
