// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Weights of q8_0 values as bytes, for int8_rows-inl.h. The weight of key j for block b of its value is p_j d_j[b],
// the probability and the value's scale, in steps of
//
//      u[g, b] = m_p[g] m_d[b] / 255        m_p[g]: the largest p of the row in group g of 16 keys
//                                           m_d[b]: the largest scale of the chunk's values in the block
//
// so that a key that outweighs all others rounds no more than 15 of them to nothing. It makes the output wrong by
// 2.5e-3 where all keys weigh the same, see docs/tuning.md.
//
// Groups are what a lane's neighbours and the chunk's four vectors have in common, and the order of weights is that
// in which packing four vectors leaves them, so neither needs a shuffle across 128-bit lanes:
//
//      vector v of a chunk   | 16v .. 16v+3 | 16v+4 .. 16v+7 | 16v+8 .. 16v+11 | 16v+12 .. 16v+15 |  keys
//                                group 0        group 1          group 2           group 3
//      weights               | 0..3 16..19 32..35 48..51 | 4..7 20..23 ..       | ..

struct ByteWeights {
  static constexpr int kVectors = kChunkKeys / Vec::kLanes;
  static constexpr int kGroups = Vec::kLanes / 4;

  // Numbers up to 32767 of a chunk's keys, in the order of weights, but in two bytes each.
  struct Steps {
    __m512i halves[2];
  };

  // Probabilities of a row in 32767ths of the largest of their group, which goes to the group's lanes of
  // most[lanes].
  static Steps Share(const float* probabilities, int count, float* most) {
    Vec p[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      p[v] = v * Vec::kLanes < count ? Vec::Load(probabilities + v * Vec::kLanes) : Vec::Set(0.0f);
    }
    Vec largest = MaxOrSecond(MaxOrSecond(p[0], p[1]), MaxOrSecond(p[2], p[3]));
    largest = MaxOrSecond(largest, {_mm512_permute_ps(largest.v, _MM_SHUFFLE(1, 0, 3, 2))});
    largest = MaxOrSecond(largest, {_mm512_permute_ps(largest.v, _MM_SHUFFLE(2, 3, 0, 1))});
    largest.Store(most);
    // Infinite where they are nothing beside the one that is 1: then integers are the least, and weights 0.
    const Vec inverse = Vec::Set(kMostShare) / largest;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) p[v] = p[v] * inverse;
    return Pack(p);
  }

  // Of f16 scales[blocks][kChunkKeys]: no sign, infinity or NaN. As unsigned numbers these come last.
  static bool ArePlain(const std::uint16_t* scales, int blocks) {
    __m512i most = _mm512_setzero_si512();
    for (int i = 0; i < blocks * kChunkKeys; i += 32) most = _mm512_max_epu16(most, At(scales + i));
    return _mm512_cmpge_epu16_mask(most, _mm512_set1_epi16(0x7C00)) == 0;
  }

  // weights[R][kChunkKeys] of R rows for a block, whose plain scales are f16. Returns what a step is for a largest
  // probability of 1.
  template <int R>
  static float Weigh(const Steps* shares, const std::uint16_t* scales, std::uint8_t* weights) {
    const float most = Largest(scales);
    const Vec inverse = Vec::Set(most > 0 ? kMostScale / most : 0.0f);
    Vec steps[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const auto* const at = reinterpret_cast<const __m256i*>(scales + v * Vec::kLanes);
      steps[v] = Vec{_mm512_cvtph_ps(_mm256_loadu_si256(at))} * inverse;
    }
    const Steps scale = Pack(steps);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i low = _mm512_mulhrs_epi16(shares[r].halves[0], scale.halves[0]);
      const __m512i high = _mm512_mulhrs_epi16(shares[r].halves[1], scale.halves[1]);
      _mm512_store_si512(weights + r * kChunkKeys, _mm512_packus_epi16(low, high));
    }
    return most * (0x1p15f / (kMostShare * kMostScale));
  }

 private:
  // A share times a scale, by 2^15 and rounded, is a byte.
  static constexpr float kMostShare = 32767;
  static constexpr float kMostScale = 255;

  static __m512i At(const std::uint16_t* halves) { return _mm512_loadu_si512(halves); }

  static Steps Pack(const Vec* numbers) {
    const auto pack = [&](int v) {
      return _mm512_packs_epi32(_mm512_cvtps_epi32(numbers[v].v),
                                _mm512_cvtps_epi32(numbers[v + 1].v));
    };
    return {{pack(0), pack(2)}};
  }

  // The order of plain f16 numbers is that of their bits.
  static float Largest(const std::uint16_t* scales) {
    const __m512i two = _mm512_max_epu16(At(scales), At(scales + 32));
    const __m256i one =
        _mm256_max_epu16(_mm512_castsi512_si256(two), _mm512_extracti64x4_epi64(two, 1));
    const __m128i half =
        _mm_max_epu16(_mm256_castsi256_si128(one), _mm256_extracti128_si256(one, 1));
    const __m128i least = _mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)));
    return WidenF16(static_cast<std::uint16_t>(~_mm_cvtsi128_si32(least)));
  }

  static_assert(kChunkKeys == 64);
};
