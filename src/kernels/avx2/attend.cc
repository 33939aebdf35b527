// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// AVX2 with FMA and F16C: the vector type of simd/kernels-inl.h with 8 lanes.
#include "kernels/avx2/attend.h"

#include <immintrin.h>

namespace coppice {
namespace {

struct Vec {
  static constexpr int kLanes = 8;
  __m256 v;

  static Vec Set(float x) { return {_mm256_set1_ps(x)}; }
  static Vec Load(const float* at) { return {_mm256_loadu_ps(at)}; }
  static Vec LoadF16(const std::uint16_t* at) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)))};
  }
  static Vec LoadBf16(const std::uint16_t* at) {
    const __m256i wide =
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  static Vec LoadInt8(const std::int8_t* at) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
  }
  void Store(float* at) const { _mm256_storeu_ps(at, v); }
};

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec MulAdd(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// The larger; b where either is NaN.
inline Vec MaxOrSecond(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec RoundToInteger(Vec x) {
  return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// p * 2^n where x >= -126 or x is NaN, else 0. The exponent is added as an integer, which is exact
// for the lanes that are kept.
inline Vec ScaleOrZero(Vec p, Vec n, Vec x) {
  const __m256i power =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
  const __m256 keep = _mm256_cmp_ps(x.v, _mm256_set1_ps(-126.0f), _CMP_NLT_UQ);
  return {_mm256_and_ps(keep, _mm256_mul_ps(p.v, _mm256_castsi256_ps(power)))};
}
inline float SumLanes(Vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float MaxLanes(Vec a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline void StoreFourMaxima(Vec a, Vec b, Vec c, Vec d, float* out) {
  const Vec of[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) out[i] = MaxLanes(of[i]);
}
inline bool AnyDifferent(Vec a, Vec b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_NEQ_UQ)) != 0;
}
// score in the lanes with begin <= key < end, -inf in the others.
inline Vec KeepInRange(Vec score, std::int32_t key, const std::int32_t* begin,
                       const std::int32_t* end) {
  const __m256i at = _mm256_set1_epi32(key);
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(begin));
  const __m256i last = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(end));
  const __m256i keep =
      _mm256_andnot_si256(_mm256_cmpgt_epi32(first, at), _mm256_cmpgt_epi32(last, at));
  return {_mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), score.v, _mm256_castsi256_ps(keep))};
}
// out[0..4) = the lane sums of a, b, c and d.
inline void StoreFourSums(Vec a, Vec b, Vec c, Vec d, float* out) {
  const __m256 abcd = _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}
inline float WidenF16(std::uint16_t bits) { return _cvtsh_ss(bits); }
inline float WidenBf16(std::uint16_t bits) {
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(bits) << 16)));
}

constexpr int kFetchStreams = 1;
constexpr int kRowsOfPass = 4;
// Xeon: 9, 6 and 2 % faster than one at 8, 32 and 128 Ki tokens; Zen 4: 5 % faster, 1 and 4 slower.
constexpr int kSearchGroups = 2;
constexpr int kPanelVectors = 2;
// Rows for each number of lane vectors: with 16 registers, 12 accumulators, 2 lane vectors and a
// broadcast.
constexpr int kRegisterRows[] = {0, 8, 6};

#include "kernels/simd/kernels-inl.h"

const Solver& Choose(const AttendShape& shape) {
  return shape.rows <= kMaxFewRows ? kRowsF32 : kTileF32;
}

}  // namespace

const KernelTable avx2::kTable = MakeTable("avx2", /*tile_rows=*/64, /*split_keys=*/256);

}  // namespace coppice
