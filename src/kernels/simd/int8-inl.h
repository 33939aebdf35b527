// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// int8 scores of q8_0 keys for the tile kernel (int8_rows-inl.h has those for few rows): an element is four int8 numbers, and one
// instruction (vpdpbusd) adds their products to an int32 sum, four times the f32 rate.
//
//   s = sum over blocks b of 32:  d_k[b] d_q[b] sum_i k_i q_i
//
// Queries are rounded to int8 with one scale for each block of 32, as the keys are. The instruction
// wants one side unsigned, so queries are stored as q + 128, and the sum starts at -128 sum_i k_i.
// Cost for a block, key and lane vector: 8 dot products, a conversion, a product, a multiply-add.

inline int SumBytes(__m256i bytes) {
  // Unsigned bytes, 128 too large each.
  const __m256i sums =
      _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
  const __m128i half =
      _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  return static_cast<int>(_mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1)) -
         128 * static_cast<int>(kQ8BlockSize);
}

// A block of a query, rounded to bytes that are steps of what is returned. An infinity or NaN makes the step one
// too, and the scores of the row NaN.
inline float RoundBlock(const float* from, __m256i& bytes) {
  const Vec halves[] = {Vec::Load(from), Vec::Load(from + Vec::kLanes)};
  const auto size = [](Vec x) { return Vec{_mm512_abs_ps(x.v)}; };
  const Vec largest = MaxOrSecond(size(halves[0]), size(halves[1]));
  const bool nan = _mm512_cmp_ps_mask(halves[0].v, halves[1].v, _CMP_UNORD_Q) != 0;
  const float most = nan ? __builtin_nanf("") : MaxLanes(largest);
  const Vec inverse = Vec::Set(most == 0.0f ? 0.0f : 127 / most);
  const auto round = [&](Vec half) {
    const Vec steps = half * inverse;
    const __mmask16 sane =  // else a scale is no number
        _mm512_cmp_ps_mask(size(steps).v, _mm512_set1_ps(127.5f), _CMP_LT_OQ);
    return _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(sane, steps.v));
  };
  bytes = _mm256_set_m128i(round(halves[1]), round(halves[0]));
  return most / 127;
}

struct Int8Scores {
  static constexpr int kKeys = kTileKeys;
  static constexpr bool kMayOverflow = true;  // an infinite query has no scale
  static constexpr int kBlock = static_cast<int>(kQ8BlockSize);
  static constexpr int kWords = kBlock / 4;
  static constexpr int kRows = 6;  // 12 int32 and 12 f32 sums in registers

  struct Operands {
    std::uint32_t* queries;  // [panels][dim / 4][kPanel], four bytes of a row in an element
    float* query_scales;     // [panels][dim / 32][kPanel]
    std::uint32_t* keys;     // [kTileKeys][dim / 4]
    float* key_scales;       // [kTileKeys][dim / 32]
    std::int32_t* starts;    // [kTileKeys][dim / 32], -128 times the sum of a block
  };

  static void LayOut(Cutter& cutter, int rows, int dim, Operands& to) {
    const std::int64_t lanes = LanesFor(rows);
    const std::int64_t keys = kTileKeys + kRows;  // a last step may read rows that are not there
    to.queries = cutter.Take<std::uint32_t>(lanes * dim / 4);
    to.query_scales = cutter.Take<float>(lanes * dim / kBlock);
    to.keys = cutter.Take<std::uint32_t>(keys * dim / 4);
    to.key_scales = cutter.Take<float>(keys * dim / kBlock);
    to.starts = cutter.Take<std::int32_t>(keys * dim / kBlock);
  }

  static void TakeQueries(const float* const* queries, int rows, int dim, float scale,
                          const Operands& to) {
    for (int lane = 0; lane < LanesFor(rows); ++lane) {
      const float* query = queries[lane < rows ? lane : 0];
      const std::int64_t panel = lane / kPanel;
      for (int block = 0; block < dim / kBlock; ++block) {
        __m256i bytes;
        const float step = RoundBlock(query + block * kBlock, bytes);
        std::uint32_t words[kWords];
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(words),
                            _mm256_xor_si256(bytes, _mm256_set1_epi8(-128)));
        to.query_scales[(panel * (dim / kBlock) + block) * kPanel + lane % kPanel] = step * scale;
        for (int word = 0; word < kWords; ++word) {
          to.queries[(panel * (dim / 4) + block * kWords + word) * kPanel + lane % kPanel] =
              words[word];
        }
      }
    }
  }

  static void TakeKeys(const RowsView& view, const std::int32_t* keys, int count,
                       const Operands& to) {
    const int blocks = view.dim / kBlock;
    for (int j = 0; j < count; ++j) {
      const std::byte* from = view.data + keys[j] * view.stride;
      for (int block = 0; block < blocks; ++block, from += kQ8BlockBytes) {
        const std::int64_t at = static_cast<std::int64_t>(j) * blocks + block;
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 2));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.keys + at * kWords), bytes);
        to.key_scales[at] = WidenF16(*reinterpret_cast<const std::uint16_t*>(from));
        to.starts[at] = -128 * SumBytes(bytes);
      }
    }
  }

  // Not inlined, which makes a prefill 8 to 9 % slower (Zen 4, 16 Ki keys, 8/2 heads x 128).
  __attribute__((noinline)) static void Score(const Operands& from, int dim, int panel, int vectors,
                                              int count, float* scores, TileAhead& ahead) {
    for (int j = 0; j < count; j += kRows) {
      if (vectors == 1) {
        ScoreKeys<1>(from, dim, panel, j, Min(kRows, count - j), scores + j * kPanel);
      } else {
        ScoreKeys<2>(from, dim, panel, j, Min(kRows, count - j), scores + j * kPanel);
      }
      ahead.Fetch();
    }
  }
  static constexpr int FetchesOfTile(int /*dim*/) { return kTileKeys / kRows; }

 private:
  template <int NV>
  static void ScoreKeys(const Operands& from, int dim, int panel, int first, int count,
                        float* scores) {
    const int blocks = dim / kBlock;
    const std::uint32_t* queries =
        from.queries + static_cast<std::int64_t>(panel) * (dim / 4) * kPanel;
    const float* query_scales =
        from.query_scales + static_cast<std::int64_t>(panel) * blocks * kPanel;
    const std::uint32_t* keys = from.keys + static_cast<std::int64_t>(first) * dim / 4;
    const float* key_scales = from.key_scales + static_cast<std::int64_t>(first) * blocks;
    const std::int32_t* starts = from.starts + static_cast<std::int64_t>(first) * blocks;
    Vec sum[kRows][NV];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) sum[r][v] = Vec::Set(0.0f);
    }
    for (int block = 0; block < blocks; ++block) {
      __m512i dots[kRows][NV];
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) dots[r][v] = _mm512_set1_epi32(starts[r * blocks + block]);
      }
      for (int word = block * kWords; word < (block + 1) * kWords; ++word) {
        __m512i lanes[NV];
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
          lanes[v] = _mm512_loadu_si512(queries + word * kPanel + v * Vec::kLanes);
        }
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const __m512i key = _mm512_set1_epi32(static_cast<int>(keys[r * (dim / 4) + word]));
#pragma GCC unroll 2
          for (int v = 0; v < NV; ++v) dots[r][v] = _mm512_dpbusd_epi32(dots[r][v], lanes[v], key);
        }
      }
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        const Vec scale = Vec::Load(query_scales + block * kPanel + v * Vec::kLanes);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const Vec dot = {_mm512_cvtepi32_ps(dots[r][v])};
          sum[r][v] = MulAdd(dot * scale, Vec::Set(key_scales[r * blocks + block]), sum[r][v]);
        }
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      if (r >= count) break;
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) sum[r][v].Store(scores + r * kPanel + v * Vec::kLanes);
    }
  }
};
