// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The vector type of simd/kernels-inl.h with 16 lanes, for AVX-512 (F, BW, DQ, VL) and all that
// builds on it. Included inside the anonymous namespace of an attend.cc.

struct Vec {
  static constexpr int kLanes = 16;
  __m512 v;

  static Vec Set(float x) { return {_mm512_set1_ps(x)}; }
  static Vec Load(const float* at) { return {_mm512_loadu_ps(at)}; }
  static Vec LoadF16(const std::uint16_t* at) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)))};
  }
  static Vec LoadBf16(const std::uint16_t* at) {
    const __m512i wide =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  static Vec LoadInt8(const std::int8_t* at) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
  }
  void Store(float* at) const { _mm512_storeu_ps(at, v); }
};

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec MulAdd(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// The larger; b where either is NaN.
inline Vec MaxOrSecond(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec RoundToInteger(Vec x) {
  return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// p * 2^n where x >= -126 or x is NaN, else 0.
inline Vec ScaleOrZero(Vec p, Vec n, Vec x) {
  const __mmask16 keep = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return {_mm512_maskz_scalef_ps(keep, p.v, n.v)};
}
inline float SumLanes(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float MaxLanes(Vec a) { return _mm512_reduce_max_ps(a.v); }
inline bool AnyDifferent(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ) != 0; }
// score in the lanes with begin <= key < end, -inf in the others.
inline Vec KeepInRange(Vec score, std::int32_t key, const std::int32_t* begin,
                       const std::int32_t* end) {
  const __m512i at = _mm512_set1_epi32(key);
  const __mmask16 after = _mm512_cmple_epi32_mask(_mm512_loadu_si512(begin), at);
  const __mmask16 keep = _mm512_mask_cmplt_epi32_mask(after, at, _mm512_loadu_si512(end));
  return {_mm512_mask_blend_ps(keep, _mm512_set1_ps(-__builtin_inff()), score.v)};
}
// Quarter n: the sums of quarter n of a, b, c and d.
inline __m512 SumInQuarters(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  return _mm512_add_ps(_mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
                       _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)));
}
// out[0..4) = the lane sums of a, b, c and d.
inline void StoreFourSums(Vec a, Vec b, Vec c, Vec d, float* out) {
  const __m512 abcd = SumInQuarters(a.v, b.v, c.v, d.v);
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
// Quarter n of mixed row m is that of row n ^ m.
inline void MixQuarters(Vec (&rows)[4]) {
  const auto mixed = [&](int m) {
    __m512 quarters = _mm512_mask_mov_ps(rows[m].v, 0x00F0, rows[1 ^ m].v);
    quarters = _mm512_mask_mov_ps(quarters, 0x0F00, rows[2 ^ m].v);
    return Vec{_mm512_mask_mov_ps(quarters, 0xF000, rows[3 ^ m].v)};
  };
  const Vec all[] = {mixed(0), mixed(1), mixed(2), mixed(3)};
  for (int m = 0; m < 4; ++m) rows[m] = all[m];
}
// out[r * stride + j] = the sum of row r and vector j, of products sums[m][j] of the mixed rows.
__attribute__((always_inline)) inline void StoreMixedSums(const Vec (&sums)[4][4], float* out,
                                                          std::int64_t stride) {
  __m512 quarters[4];  // of the rows
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 odd[] = {sums[1][j].v, sums[3][j].v};
    const __m512 low =
        _mm512_add_ps(sums[0][j].v, _mm512_shuffle_f32x4(odd[0], odd[0], _MM_SHUFFLE(2, 3, 0, 1)));
    const __m512 high =
        _mm512_add_ps(sums[2][j].v, _mm512_shuffle_f32x4(odd[1], odd[1], _MM_SHUFFLE(2, 3, 0, 1)));
    quarters[j] = _mm512_add_ps(low, _mm512_shuffle_f32x4(high, high, _MM_SHUFFLE(1, 0, 3, 2)));
  }
  const __m512 rows = SumInQuarters(quarters[0], quarters[1], quarters[2], quarters[3]);
  _mm_storeu_ps(out, _mm512_castps512_ps128(rows));
  _mm_storeu_ps(out + stride, _mm512_extractf32x4_ps(rows, 1));
  _mm_storeu_ps(out + 2 * stride, _mm512_extractf32x4_ps(rows, 2));
  _mm_storeu_ps(out + 3 * stride, _mm512_extractf32x4_ps(rows, 3));
}
// out[0..4) = the largest lanes of a, b, c and d, of which none is NaN.
inline void StoreFourMaxima(Vec a, Vec b, Vec c, Vec d, float* out) {
  const __m512 ab = _mm512_max_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
  const __m512 cd = _mm512_max_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
  const __m512 abcd = _mm512_max_ps(_mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
                                    _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)));
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  _mm_storeu_ps(out, _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
inline float WidenF16(std::uint16_t bits) { return _cvtsh_ss(bits); }
inline float WidenBf16(std::uint16_t bits) {
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(bits) << 16)));
}

// Lane vectors of a panel. With 2 of them the queries of a panel take 16 KiB at dim 128, half of the
// smallest first-level cache (Zen 4's 32 KiB), and stay there under the keys that stream by.
constexpr int kPanelVectors = 2;
// Rows for each number of lane vectors: with 32 registers, 24 accumulators, 2 lane vectors and a
// broadcast; at least 8 accumulators hide the latency of two FMA ports.
constexpr int kRegisterRows[] = {0, 12, 12};
