// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Blocks of q8_0 on their way into the lanes that int8 products take (int8_rows-inl.h): in steps, which a loop
// puts between the products of the blocks before. `Pin` keeps that order, for the processor does not look far
// enough ahead to find it, and the compiler would undo it (scores of four rows x 128 took 15 cycles a key of Zen 4,
// in the compiler's order 17 to 23).

// Keeps an instruction's place among others that are pinned.
template <typename T>
__attribute__((always_inline)) inline void Pin(T& x) {
  asm volatile("" : "+v"(x));
}

struct Q8Block {
  static std::uint16_t Scale(const std::byte* block) {
    return *reinterpret_cast<const std::uint16_t*>(block);
  }
  static __m256i Bytes(const std::byte* block) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + sizeof(std::uint16_t)));
  }
  static __m512i TwoBytes(const std::byte* first, const std::byte* second) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(Bytes(first)), Bytes(second), 1);
  }
};

// Turns a block of 16 keys, so that a lane holds four bytes of one.
//
//    key 0   | k0..k3 | k4..k7 | ..           word 0: | key 0 | key 1 | .. | key 15 |  k0..k3
//    key 1   | k0..k3 | k4..k7 | ..     ->    word 1: | key 0 | key 1 | .. | key 15 |  k4..k7
//    ..                                       ..
class TurnedKeys {
 public:
  static constexpr int kSteps = 8;

  // words[w], lane j = the four bytes k + 128 from 4 w on of the j-th key, all there after the last step.
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
    const std::int64_t low = offsets[i < 4 ? i : i + 4];
    const std::int64_t high = offsets[i < 4 ? i + 4 : i + 8];
    parts_[i] = Q8Block::TwoBytes(block + low, block + high);
    Pin(parts_[i]);
    asm("" : "+r"(block));  // else each sum of pointer and offset is an instruction of its own
    switch (i % 4) {
      case 0:
        scales_[i / 4] = _mm_setzero_si128();
        return TakeScales<0>(i / 4, block + low, block + high);
      case 1:
        return TakeScales<1>(i / 4, block + low, block + high);
      case 2:
        return TakeScales<2>(i / 4, block + low, block + high);
      default:
        return TakeScales<3>(i / 4, block + low, block + high);
    }
  }

  template <int kAt>
  __attribute__((always_inline)) void TakeScales(int half, const std::byte* low,
                                                 const std::byte* high) {
    scales_[half] = _mm_insert_epi16(scales_[half], Q8Block::Scale(low), kAt);
    Pin(scales_[half]);
    scales_[half] = _mm_insert_epi16(scales_[half], Q8Block::Scale(high), kAt + 4);
    Pin(scales_[half]);
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

// Interleaves a block of four values, so that a lane holds an element of each.
//
//    value 0   | v0 | v1 | ..             low:  elements 0 to 7 and 16 to 23 of  | v0 v0 v0 v0 | v1 v1 v1 v1 | ..
//    value 1   | v0 | v1 | ..      ->     high: elements 8 to 15 and 24 to 31
//    ..
class InterleavedValues {
 public:
  __m512i low;
  __m512i high;

  // The value at `half` and the one two behind it.
  __attribute__((always_inline)) void Load(int half, const std::byte* block,
                                           const std::int64_t* offsets) {
    parts_[half] = Q8Block::TwoBytes(block + offsets[half], block + offsets[half + 2]);
    Pin(parts_[half]);
  }

  __attribute__((always_inline)) void Mix() {
    const __m512i even = parts_[0];
    parts_[0] = _mm512_unpacklo_epi8(even, parts_[1]);
    Pin(parts_[0]);
    parts_[1] = _mm512_unpackhi_epi8(even, parts_[1]);
    Pin(parts_[1]);
  }

  // Values 0 and 1 are pairs of bytes in the lower half of the parts, 2 and 3 in the upper.
  __attribute__((always_inline)) void Finish() {
    const __m512i from_halves =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    parts_[0] = _mm512_permutexvar_epi16(from_halves, parts_[0]);
    Pin(parts_[0]);
    parts_[1] = _mm512_permutexvar_epi16(from_halves, parts_[1]);
    Pin(parts_[1]);
  }

  __attribute__((always_inline)) void Next() {
    low = parts_[0];
    high = parts_[1];
  }

 private:
  __m512i parts_[2];
};
