// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What the tile registers are loaded with: queries, keys and values as bf16, in one part or two.
//
//   x = high + low,  high = bf16(x),  low = bf16(x - high): x to 2^-18 of it, and all of an f16. Of the
//   products of two parts, low low is at most 2^-18 of their product. bf16 numbers are one part,
//   whatever the other side is.
//
//   keys     left of K.Q^T:   tiles of 16 keys x 32 dims, rows as they lie in the cache
//   values   left of V^T.P^T: tiles of 16 dims x 32 keys, turned here, once for all query rows
//   queries  right of K.Q^T:  pairs of dims x query rows
//
// Cost for a key of 128 dims and its value, bf16: about 27 ns, a twentieth of what 1,024 query rows
// spend on them (Xeon, 4 Ki keys: 0.45 of 8.9 ms).

// Elements of a tile's row.
constexpr int kTileDepth = 32;
constexpr int kTileElements = kTileRows * kTileDepth;

// Keys in a block. O^T is loaded and stored once for each, which takes a quarter as long as the products
// that it gets of a block. 192, 320 and 384 keys were 2 to 5 % slower.
constexpr int kBlockKeys = 256;
constexpr int kBlockSteps = kBlockKeys / kTileDepth;

inline int DepthSteps(int dim) { return (dim + kTileDepth - 1) / kTileDepth; }

// c[i] = lane j of r[j]: the 16 x 16 matrix r, turned.
__attribute__((always_inline)) inline void Turn(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // r[4 g + i], lane quarter q: column 4 q + i of rows 4 g .. 4 g + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i ab_even = _mm512_shuffle_i32x4(r[i], r[4 + i], _MM_SHUFFLE(2, 0, 2, 0));
    const __m512i ab_odd = _mm512_shuffle_i32x4(r[i], r[4 + i], _MM_SHUFFLE(3, 1, 3, 1));
    const __m512i cd_even = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], _MM_SHUFFLE(2, 0, 2, 0));
    const __m512i cd_odd = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], _MM_SHUFFLE(3, 1, 3, 1));
    t[i] = _mm512_shuffle_i32x4(ab_even, cd_even, _MM_SHUFFLE(2, 0, 2, 0));
    t[4 + i] = _mm512_shuffle_i32x4(ab_odd, cd_odd, _MM_SHUFFLE(2, 0, 2, 0));
    t[8 + i] = _mm512_shuffle_i32x4(ab_even, cd_even, _MM_SHUFFLE(3, 1, 3, 1));
    t[12 + i] = _mm512_shuffle_i32x4(ab_odd, cd_odd, _MM_SHUFFLE(3, 1, 3, 1));
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

inline __m512i Bits(Vec x) { return _mm512_castps_si512(x.v); }
inline Vec FromBits(__m512i x) { return {_mm512_castsi512_ps(x)}; }

// 32 numbers in order, rounded to bf16.
inline __m512i RoundToBf16(Vec first, Vec second) {
  return (__m512i)_mm512_cvtne2ps_pbh(second.v, first.v);
}
// The bf16 nearest to each number, as f32. Of numbers half way between two, the larger.
inline Vec NearestBf16(Vec x) {
  const __m512i half = _mm512_set1_epi32(0x8000);  // of the last bit that stays
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
  return FromBits(_mm512_and_si512(_mm512_add_epi32(Bits(x), half), upper));
}

// 32 numbers in kParts parts, the second `apart` elements behind the first.
template <int kParts>
inline void StoreParts(Vec first, Vec second, Bf16* out, std::int64_t apart) {
  if constexpr (kParts == 1) {
    _mm512_storeu_si512(out, RoundToBf16(first, second));
  } else {
    const Vec high[] = {NearestBf16(first), NearestBf16(second)};
    _mm512_storeu_si512(out, RoundToBf16(high[0], high[1]));
    _mm512_storeu_si512(out + apart, RoundToBf16(first - high[0], second - high[1]));
  }
}

// A row of any type as parts, zeros behind `dim` up to whole tile rows: element i of a part at
// out[i / 32 * step + i % 32].
template <int kParts, DType kType>
inline void RowParts(const std::byte* row, int dim, std::int64_t step, std::int64_t apart,
                     Bf16* out) {
  for (int i = 0; i < dim; i += kTileDepth, out += step) {
    const bool whole = i + kTileDepth <= dim;
    if constexpr (kType == DType::kBF16 && kParts == 1) {
      const __mmask32 keep = whole ? 0xFFFFFFFFu : 0xFFFFu;
      _mm512_storeu_si512(out, _mm512_maskz_loadu_epi16(keep, row + 2 * i));
    } else {
      const Vec second = whole ? LoadAs<kType>(row, i + Vec::kLanes) : Vec::Set(0.0f);
      StoreParts<kParts>(LoadAs<kType>(row, i), second, out, apart);
    }
  }
}

// out [panels][kParts][steps][16 dim pairs][kPanel], times scale; idle lanes repeat the first row.
template <int kParts>
void PackQueryTiles(const float* const* queries, int rows, int dim, float scale,
                    std::uint32_t* out) {
  const int steps = DepthSteps(dim);
  const Vec factor = Vec::Set(scale);
  for (int lane = 0; lane < LanesFor(rows); lane += kTileRows) {
    std::uint32_t* panel =
        out + static_cast<std::int64_t>(lane / kPanel) * kParts * steps * kTileRows * kPanel +
        lane % kPanel;
    for (int step = 0; step < steps; ++step) {
      alignas(64) Bf16 parts[kParts][kTileRows][kTileDepth];
      for (int r = 0; r < kTileRows; ++r) {
        const float* query = queries[lane + r < rows ? lane + r : 0] + step * kTileDepth;
        const Vec second = step * kTileDepth + Vec::kLanes < dim
                               ? Vec::Load(query + Vec::kLanes) * factor
                               : Vec::Set(0.0f);
        StoreParts<kParts>(Vec::Load(query) * factor, second, parts[0][r], kTileElements);
      }
      for (int part = 0; part < kParts; ++part) {
        __m512i pairs[16];
        for (int r = 0; r < 16; ++r) pairs[r] = _mm512_load_si512(parts[part][r]);
        Turn(pairs);
        for (int pair = 0; pair < 16; ++pair) {
          _mm512_storeu_si512(panel + ((part * steps + step) * kTileRows + pair) * kPanel,
                              pairs[pair]);
        }
      }
    }
  }
}

// Eight columns of 32 rows of bf16, turned: row i of out = the i-th column. Rows of out are those of a
// tile.
inline void TurnEight(const Bf16* rows, std::int64_t stride, Bf16* out) {
  __m512i x[8];  // lane quarter q: row 8 q + i
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const auto eight = [&](int row) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + row * stride));
    };
    x[i] = _mm512_castsi128_si512(eight(i));
    x[i] = _mm512_inserti32x4(x[i], eight(8 + i), 1);
    x[i] = _mm512_inserti32x4(x[i], eight(16 + i), 2);
    x[i] = _mm512_inserti32x4(x[i], eight(24 + i), 3);
  }
  __m512i twos[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    twos[i] = _mm512_unpacklo_epi16(x[i], x[i + 1]);
    twos[i + 1] = _mm512_unpackhi_epi16(x[i], x[i + 1]);
  }
  __m512i fours[8];
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    fours[i] = _mm512_unpacklo_epi32(twos[i], twos[i + 2]);
    fours[i + 1] = _mm512_unpackhi_epi32(twos[i], twos[i + 2]);
    fours[i + 2] = _mm512_unpacklo_epi32(twos[i + 1], twos[i + 3]);
    fours[i + 3] = _mm512_unpackhi_epi32(twos[i + 1], twos[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(out + 2 * i * kTileDepth, _mm512_unpacklo_epi64(fours[i], fours[4 + i]));
    _mm512_storeu_si512(out + (2 * i + 1) * kTileDepth,
                        _mm512_unpackhi_epi64(fours[i], fours[4 + i]));
  }
}

// out [count / 16][kParts][steps][16 keys][32 dims]; count is a multiple of 16.
template <int kParts>
void PackKeys(const RowsView& view, const std::int32_t* keys, int count, Bf16* out) {
  const std::int64_t part = static_cast<std::int64_t>(DepthSteps(view.dim)) * kTileElements;
  WithType(view.type, [&]<DType kType>() {
    for (int j = 0; j < count; ++j) {
      RowParts<kParts, kType>(view.data + keys[j] * view.stride, view.dim, kTileElements, part,
                              out + j / kTileRows * kParts * part + j % kTileRows * kTileDepth);
    }
  });
}

// out [dim / 16][kParts][kBlockSteps][16 dims][32 keys]; count is a multiple of 32. rows: room for 32 rows
// as parts.
template <int kParts>
void PackValues(const RowsView& view, const std::int32_t* keys, int count, Bf16* rows, Bf16* out) {
  const std::int64_t stride = static_cast<std::int64_t>(DepthSteps(view.dim)) * kTileDepth;
  const std::int64_t part = kTileDepth * stride;
  for (int first = 0; first < count; first += kTileDepth) {
    WithType(view.type, [&]<DType kType>() {
      for (int j = 0; j < kTileDepth; ++j) {
        RowParts<kParts, kType>(view.data + keys[first + j] * view.stride, view.dim, kTileDepth,
                                part, rows + j * stride);
      }
    });
    for (int i = 0; i < view.dim; i += 8) {
      for (int p = 0; p < kParts; ++p) {
        const std::int64_t tile = (i / kTileRows * kParts + p) * kBlockSteps + first / kTileDepth;
        TurnEight(rows + p * part + i, stride,
                  out + tile * kTileElements + i % kTileRows * kTileDepth);
      }
    }
  }
}
