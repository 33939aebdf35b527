// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Advanced SIMD of AArch64 (ARMv8.0, no extension): the vector type of simd/kernels-inl.h with 4
// lanes. What the kernels do, their shapes and costs stand there. Correct under emulation; its speed
// was never measured, so the constants below follow from the registers alone.
#include "kernels/neon/attend.h"

#include <arm_neon.h>

namespace coppice {
namespace {

struct Vec {
  static constexpr int kLanes = 4;
  float32x4_t v;

  static Vec Set(float x) { return {vdupq_n_f32(x)}; }
  static Vec Load(const float* at) { return {vld1q_f32(at)}; }
  static Vec LoadF16(const std::uint16_t* at) {
    return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at)))};
  }
  static Vec LoadBf16(const std::uint16_t* at) {
    return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(at), 16))};
  }
  static Vec LoadInt8(const std::int8_t* at) {
    std::int32_t four;  // 8 bytes could end behind the row
    __builtin_memcpy(&four, at, sizeof(four));
    const int16x4_t wide = vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))));
    return {vcvtq_f32_s32(vmovl_s16(wide))};
  }
  void Store(float* at) const { vst1q_f32(at, v); }
};

inline Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
inline Vec MulAdd(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
// The larger; b where either is NaN. (FMAXNM, one instruction, would return a where only b is NaN.)
inline Vec MaxOrSecond(Vec a, Vec b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
inline Vec RoundToInteger(Vec x) { return {vrndnq_f32(x.v)}; }
// p * 2^n where x >= -126 or x is NaN, else 0. The exponent is made as an integer, which is exact
// for the lanes that are kept.
inline Vec ScaleOrZero(Vec p, Vec n, Vec x) {
  const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v), vdupq_n_s32(127)), 23);
  const float32x4_t scaled = vmulq_f32(p.v, vreinterpretq_f32_s32(power));
  const uint32x4_t drop = vcltq_f32(x.v, vdupq_n_f32(-126.0f));
  return {vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(scaled), drop))};
}
inline float SumLanes(Vec a) { return vaddvq_f32(a.v); }
inline float MaxLanes(Vec a) { return vmaxvq_f32(a.v); }
inline void StoreFourMaxima(Vec a, Vec b, Vec c, Vec d, float* out) {
  const Vec of[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) out[i] = MaxLanes(of[i]);
}
inline bool AnyDifferent(Vec a, Vec b) { return vminvq_u32(vceqq_f32(a.v, b.v)) == 0; }
// score in the lanes with begin <= key < end, -inf in the others.
inline Vec KeepInRange(Vec score, std::int32_t key, const std::int32_t* begin,
                       const std::int32_t* end) {
  const int32x4_t at = vdupq_n_s32(key);
  const uint32x4_t keep = vandq_u32(vcleq_s32(vld1q_s32(begin), at), vcltq_s32(at, vld1q_s32(end)));
  return {vbslq_f32(keep, score.v, vdupq_n_f32(-__builtin_inff()))};
}
// out[0..4) = the lane sums of a, b, c and d.
inline void StoreFourSums(Vec a, Vec b, Vec c, Vec d, float* out) {
  vst1q_f32(out, vpaddq_f32(vpaddq_f32(a.v, b.v), vpaddq_f32(c.v, d.v)));
}
inline float WidenF16(std::uint16_t bits) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
}
inline float WidenBf16(std::uint16_t bits) {
  return vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(std::uint32_t{bits} << 16)), 0);
}

constexpr int kFetchStreams = 1;
constexpr int kRowsOfPass = 4;
constexpr int kSearchGroups = 2;
// A panel of 4 vectors, 16 rows, takes 10 loads for 24 multiply-adds; one of 2 would take 14.
constexpr int kPanelVectors = 4;
// Rows for each number of lane vectors: with 32 registers, 24 accumulators, 4 lane vectors and a
// broadcast. A core with four pipes of latency 4 wants 16 accumulators, which only a last panel of
// up to 4 rows lacks.
constexpr int kRegisterRows[] = {0, 8, 8, 8, 6};

#include "kernels/simd/kernels-inl.h"

const Solver& Choose(const AttendShape& shape) {
  return shape.rows <= kMaxFewRows ? kRowsF32 : kTileF32;
}

}  // namespace

const KernelTable neon::kTable = MakeTable("neon", /*tile_rows=*/64, /*split_keys=*/256);

}  // namespace coppice
