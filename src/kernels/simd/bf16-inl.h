// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// bf16 arithmetic for the tile kernel: an element is a pair of bf16 numbers, and one instruction
// (vdpbf16ps) adds both products to an f32 sum, twice the f32 rate where it runs at full speed.
//
//   K.Q^T: pairs are neighbours in a row, so bf16 keys are taken as they are.
//   V^T.P^T: pairs are two keys. Value rows are interleaved once for a tile, and the weights of
//   keys j and j + 1 are packed into row j / 2 of the scores.
//
//      v_j    a b c ..          (a A) (b B) (c C) ..   one row for each two keys
//      v_j+1  A B C ..    ->
//
// Queries, weights and (of other types) values are rounded to bf16: a relative error of 2^-9 each.

struct Bf16Product {
  using Element = std::uint32_t;
  static __m512bh Load(const Element* at) { return (__m512bh)_mm512_loadu_si512(at); }
  static __m512bh Spread(const Element* at) {
    return (__m512bh)_mm512_set1_epi32(static_cast<int>(*at));
  }
  static Vec Add(__m512bh spread, __m512bh lanes, Vec sum) {
    return {_mm512_dpbf16_ps(sum.v, spread, lanes)};
  }
};

// 2^x for x <= 126, and half of the last bit of its bf16 more.
inline __m512 Bf16Power(Vec x) {
  const Vec f = x - Vec{_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
  Vec p = MulAdd(Vec::Set(kBf16Power[3]), f, Vec::Set(kBf16Power[2]));
  p = MulAdd(p, f, Vec::Set(kBf16Power[1]));
  p = MulAdd(p, f, Vec::Set(kBf16Power[0]));
  return _mm512_scalef_ps(p.v, x.v);
}

// 16 elements of a row, rounded to bf16.
template <DType kType>
__m256i LoadRounded(const std::byte* row, int i) {
  if constexpr (kType == DType::kBF16) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 2 * i));
  } else {
    return (__m256i)_mm512_cvtneps_pbh(LoadAs<kType>(row, i).v);
  }
}

struct Bf16Scores {
  static constexpr int kKeys = kTileKeys;
  static constexpr bool kMayOverflow = true;  // f32 rounded to bf16

  struct Operands {
    std::uint32_t* queries;  // [panels][dim / 2][kPanel]
    std::uint32_t* keys;     // [kTileKeys][dim / 2 + kRowPadding]
  };
  static void LayOut(Cutter& cutter, int rows, int dim, Operands& to) {
    to.queries = cutter.Take<std::uint32_t>(static_cast<std::int64_t>(LanesFor(rows)) * dim / 2);
    to.keys =
        cutter.Take<std::uint32_t>(static_cast<std::int64_t>(kTileKeys) * (dim / 2 + kRowPadding));
  }
  static void TakeQueries(const float* const* queries, int rows, int dim, float scale,
                          const Operands& to) {
    for (int lane = 0; lane < LanesFor(rows); ++lane) {
      const float* query = queries[lane < rows ? lane : 0];
      std::uint32_t* out =
          to.queries + static_cast<std::int64_t>(lane / kPanel) * kPanel * dim / 2 + lane % kPanel;
      for (int i = 0; i < dim; i += Vec::kLanes) {
        const __m256i rounded =
            (__m256i)_mm512_cvtneps_pbh((Vec::Load(query + i) * Vec::Set(scale)).v);
        alignas(32) std::uint32_t pairs[Vec::kLanes / 2];
        _mm256_store_si256(reinterpret_cast<__m256i*>(pairs), rounded);
        for (int pair = 0; pair < Vec::kLanes / 2; ++pair) {
          out[static_cast<std::int64_t>(i / 2 + pair) * kPanel] = pairs[pair];
        }
      }
    }
  }
  static void TakeKeys(const RowsView& view, const std::int32_t* keys, int count,
                       const Operands& to) {
    WithType(view.type, [&]<DType kType>() {
      for (int j = 0; j < count; ++j) {
        const std::byte* const row = view.data + keys[j] * view.stride;
        std::uint32_t* const out =
            to.keys + static_cast<std::int64_t>(j) * (view.dim / 2 + kRowPadding);
        for (int i = 0; i < view.dim; i += Vec::kLanes) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i / 2), LoadRounded<kType>(row, i));
        }
      }
    });
  }
  static void Score(const Operands& from, int dim, int panel, int vectors, int count, float* scores,
                    TileAhead& ahead) {
    const std::uint32_t* queries =
        from.queries + static_cast<std::int64_t>(panel) * kPanel * dim / 2;
    MultiplyPanel<Bf16Product, false, false>(vectors, from.keys, dim / 2 + kRowPadding, count,
                                             queries, dim / 2, scores, ahead);
  }
  static constexpr int FetchesOfTile(int /*dim*/) { return kTileKeys / 12; }
};

struct Bf16Values {
  struct Operands {
    std::uint32_t* values;  // [kTileKeys / 2][dim + kRowPadding]
  };
  static void LayOut(Cutter& cutter, int dim, Operands& to) {
    to.values =
        cutter.Take<std::uint32_t>(static_cast<std::int64_t>(kTileKeys) / 2 * (dim + kRowPadding));
  }
  static bool TakeValues(const RowsView& view, const std::int32_t* keys, int count,
                         const Operands& to) {
    return WithType(view.type,
                    [&]<DType kType>() { return TakeValuesOf<kType>(view, keys, count, to); });
  }
  static void PutWeights(float* scores, int j, int lane, Vec first, Vec second, Vec* sums) {
    const __m512i pairs = JoinUpperHalves(_mm512_set1_epi32(static_cast<int>(kUpperHalves)),
                                          _mm512_castps_si512(Bf16Power(first)),
                                          _mm512_castps_si512(Bf16Power(second)));
    _mm512_storeu_si512(scores + j / 2 * kPanel + lane, pairs);
    const auto ones = (__m512bh)_mm512_set1_epi32(static_cast<int>(kBf16Ones));
    sums[0].v = _mm512_dpbf16_ps(sums[0].v, (__m512bh)pairs, ones);
  }
  static float Weight(const float* scores, int j, int lane) {
    std::uint32_t pair = 0;
    __builtin_memcpy(&pair, scores + j / 2 * kPanel + lane, 4);
    return WidenBf16(static_cast<std::uint16_t>(j % 2 == 0 ? pair : pair >> 16));
  }
  static void Add(const Operands& from, int dim, int vectors, int count, const float* scores,
                  float* outputs, TileAhead& ahead) {
    MultiplyPanel<Bf16Product, true, true>(vectors, from.values, dim + kRowPadding, dim,
                                           reinterpret_cast<const std::uint32_t*>(scores),
                                           (count + 1) / 2, outputs, ahead);
  }

 private:
  template <DType kType>
  static bool TakeValuesOf(const RowsView& view, const std::int32_t* keys, int count,
                           const Operands& to) {
    const __m256i exponent = _mm256_set1_epi16(0x7F80);
    __mmask16 infinite = 0;
    for (int j = 0; j < count; j += 2) {
      const std::byte* first = view.data + keys[j] * view.stride;
      // A missing last row repeats the one before; its weights are zero.
      const std::byte* second = view.data + keys[Min(j + 1, count - 1)] * view.stride;
      std::uint32_t* out = to.values + static_cast<std::int64_t>(j / 2) * (view.dim + kRowPadding);
      for (int i = 0; i < view.dim; i += Vec::kLanes) {
        const __m256i low = LoadRounded<kType>(first, i);
        const __m256i high = LoadRounded<kType>(second, i);
        infinite |= _mm256_cmpeq_epi16_mask(_mm256_and_si256(low, exponent), exponent) |
                    _mm256_cmpeq_epi16_mask(_mm256_and_si256(high, exponent), exponent);
        const __m512i pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                              _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
        _mm512_storeu_si512(out + i, pairs);
      }
    }
    return infinite == 0;
  }
};
