// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Weights of softmax that are rounded to bf16 at once, two keys in an element.

// 2^f on [0, 1): relative error 7.5e-5 (least maximum, by linear programming), beside 2^-9 of bf16. The power
// lies in [1, 2), where the half of the last bit of a bf16 is the same for all: with it, cutting off the lower
// half rounds.
constexpr float kBf16Power[] = {9.999252186e-01f + 0x1p-8f, 6.958335407e-01f, 2.260671548e-01f,
                                7.802452308e-02f};
constexpr std::uint32_t kUpperHalves = 0xFFFF0000u;
constexpr std::uint32_t kBf16Ones = 0x3F803F80u;  // two of them

// Elements (low, high) of two vectors, their upper halves. upper: kUpperHalves.
inline __m512i JoinUpperHalves(__m512i upper, __m512i low, __m512i high) {
  constexpr int kAAndBOrC = 0xEA;
  return _mm512_ternarylogic_epi32(upper, high, _mm512_srli_epi32(low, 16), kAAndBOrC);
}
