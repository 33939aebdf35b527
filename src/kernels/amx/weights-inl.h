// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Softmax between the two products, one or two tiles of kTileRows keys at a time, lane-wise: a lane is a
// query row.
//
//   scores  [key][kPanel]     ->  weights [key / 2][kPanel], two bf16 in an element, in one part or two
//
// Weights are relative to a reference, an integer. No maximum is kept: f32 and bf16 hold weights far
// from 1 as well as those near it. So the reference of a lane stays zero unless the first scores that it
// sees are far from that, and moves only where a sum of weights grows too large, by powers of two, which
// are exact in bf16 too.
//
// 2^x = 2^floor(x) p(x - floor(x)), the fraction and the scaling one instruction each.
// Two keys at a time are done between the products of other tiles. A product blocks one of the two vector
// ports, so only part of it is hidden (Xeon, two pairs of vectors to a product: 14 and 16 cycles alone, 26
// together at best).

// Rows whose outputs add up to less than this may hold numbers that were flushed to zero.
constexpr float kSmallestOutput = 0x1p-100f;

// Where a lane's sum of weights passes this, its reference moves.
constexpr float kLargestTotal = 0x1p64f;
// How far from zero the largest score (base 2) of the first tile that a lane sees may be, for its
// reference to stay zero: then nothing is added to its scores.
constexpr float kNearZero = 32;

// What a weight is made with, held in registers: loaded by assembly, since the compiler would make them
// anew wherever they are used, on the one of two vector ports that the products block.
template <int kParts>
struct WeightConstants {
  // 2^f on [0, 1): with two parts a relative error of 2.6e-6 (least maximum, by linear programming), beside 2^-17
  // of theirs.
  static constexpr float kPower[2][5] = {
      {kBf16Power[0], kBf16Power[1], kBf16Power[2], kBf16Power[3]},
      {1.000002593e+00f, 6.930038342e-01f, 2.414427578e-01f, 5.201145948e-02f, 1.353416837e-02f}};
  static constexpr std::uint32_t kHalf = 0x8000;  // of the last bit of a bf16 in the upper half

  // Neither an array nor set by assembly where they are: the compiler would keep them in memory.
  Vec power0 = Spread(kPower[kParts - 1][0]);
  Vec power1 = Spread(kPower[kParts - 1][1]);
  Vec power2 = Spread(kPower[kParts - 1][2]);
  Vec power3 = Spread(kPower[kParts - 1][3]);
  Vec power4 = Spread(kPower[kParts - 1][4]);
  __m512i half = Bits(Spread(kHalf));
  __m512i upper = Bits(Spread(kUpperHalves));
  __m512i ones = Bits(Spread(kBf16Ones));

 private:
  template <typename T>
  __attribute__((always_inline)) static Vec Spread(const T& number) {
    __m512 all;
    asm("vbroadcastss %1, %0" : "=v"(all) : "m"(number));
    return {all};
  }
};

// 2^x for x <= 126; with one part, half of the last bit of its bf16 more.
template <int kParts>
inline Vec Power(const WeightConstants<kParts>& constants, Vec x) {
  const Vec f = {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
  Vec p = constants.power3;
  if constexpr (kParts == 2) p = MulAdd(constants.power4, f, p);
  p = MulAdd(p, f, constants.power2);
  p = MulAdd(p, f, constants.power1);
  p = MulAdd(p, f, constants.power0);
  return {_mm512_scalef_ps(p.v, x.v)};
}

// The weights 2^a and 2^b of two neighbouring keys, to out, the second part `apart` elements behind the
// first. Returns what they add to the total.
template <int kParts>
inline Vec StoreWeights(const WeightConstants<kParts>& constants, Vec a, Vec b, Vec total,
                        std::uint32_t* out, std::int64_t apart) {
  a = Power(constants, a);
  b = Power(constants, b);
  if constexpr (kParts == 1) {
    const __m512i pair = JoinUpperHalves(constants.upper, Bits(a), Bits(b));
    _mm512_storeu_si512(out, pair);
    return {_mm512_dpbf16_ps(total.v, (__m512bh)pair, (__m512bh)constants.ones)};
  } else {
    const auto round = [&](Vec x) { return _mm512_add_epi32(Bits(x), constants.half); };
    const __m512i high[] = {round(a), round(b)};
    _mm512_storeu_si512(out, JoinUpperHalves(constants.upper, high[0], high[1]));
    const Vec low[] = {a - FromBits(_mm512_and_si512(high[0], constants.upper)),
                       b - FromBits(_mm512_and_si512(high[1], constants.upper))};
    _mm512_storeu_si512(out + apart,
                        JoinUpperHalves(constants.upper, round(low[0]), round(low[1])));
    return total + (a + b);
  }
}

// Tiles whose scores are there, becoming weights two keys at a time.
template <int kPartCount, int kVectors>
class TileWeights {
 public:
  static constexpr int kParts = kPartCount;

  TileWeights() = default;  // nothing to do
  // scores: [keys][kPanel]; start, total: [kPanel] of this panel; from_zero: nothing is added to scores;
  // apart: elements from a part of the weights to the next
  TileWeights(const float* scores, int keys, const float* start, bool from_zero, const float* total,
              std::uint32_t* weights, std::int64_t apart)
      : scores_(scores),
        end_(scores + keys * kPanel),
        weights_(weights),
        apart_(apart),
        start_(start),
        from_zero_(from_zero) {
    for (int v = 0; v < kVectors; ++v) sums_[v] = Vec::Load(total + v * Vec::kLanes);
  }

  __attribute__((always_inline)) void Advance(const WeightConstants<kParts>& constants) {
    if (scores_ != end_) Unit(constants);
  }
  __attribute__((always_inline)) void Finish(const WeightConstants<kParts>& constants) {
    while (scores_ != end_) Unit(constants);
  }
  // Of a vector's lanes, with the weights made so far.
  Vec total(int vector) const { return sums_[vector]; }

 private:
  __attribute__((always_inline)) void Unit(const WeightConstants<kParts>& constants) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const int lane = v * Vec::kLanes;
      Vec a = Vec::Load(scores_ + lane);
      Vec b = Vec::Load(scores_ + kPanel + lane);
      if (!from_zero_) [[unlikely]] {
        a = a + Vec::Load(start_ + lane);
        b = b + Vec::Load(start_ + lane);
      }
      asm("" : "+v"(a.v), "+v"(b.v));  // loaded once, although used twice
      sums_[v] = StoreWeights(constants, a, b, sums_[v], weights_ + lane, apart_);
    }
    scores_ += 2 * kPanel;
    weights_ += kPanel;
  }

  const float* scores_ = nullptr;
  const float* end_ = nullptr;
  std::uint32_t* weights_ = nullptr;
  std::int64_t apart_ = 0;
  const float* start_ = nullptr;
  bool from_zero_ = true;
  Vec sums_[kVectors];
};

inline Vec LargestScore(const float* scores, int keys) {
  Vec most[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) most[j] = Vec::Load(scores + j * kPanel);
  for (int j = 4; j < keys; j += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      most[i] = MaxOrSecond(Vec::Load(scores + (j + i) * kPanel), most[i]);
    }
  }
  return MaxOrSecond(MaxOrSecond(most[0], most[1]), MaxOrSecond(most[2], most[3]));
}

// rows of kPanel lanes: one lane vector of each times factor.
inline void ScaleRows(float* at, int rows, Vec factor) {
  for (int i = 0; i < rows; ++i) (Vec::Load(at + i * kPanel) * factor).Store(at + i * kPanel);
}
inline void ScaleWeights(std::uint32_t* at, int rows, Vec factor) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
  for (int i = 0; i < rows; ++i) {
    const __m512i both = _mm512_loadu_si512(at + i * kPanel);
    const Vec low = FromBits(_mm512_slli_epi32(both, 16)) * factor;
    const Vec high = FromBits(_mm512_and_si512(both, upper)) * factor;
    _mm512_storeu_si512(at + i * kPanel, JoinUpperHalves(upper, Bits(low), Bits(high)));
  }
}
