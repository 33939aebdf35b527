// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Products of many left tiles, of keys or of dims of the values, with one right operand: left tiles take
// turns on the two sides of registers-inl.h, each with its first half of steps beside the second half of
// the tile before. A step is 32 dims, or 32 keys.
//
//   side 0   | tile 0: steps 0 1 | 2 3 | tile 2: 0 1 | 2 3 | ...
//   side 1   |                   | tile 1: 2 3 | 0 1 | tile 3: 2 3 | ...
//
// Numbers are one bf16 or two parts of it; their products are taken one after the other in each step.

// Parts of the left and the right side of a product, and how many products of parts are taken: all but
// low low, or that too.
template <int kLeftParts, int kRightParts, bool kWithLowLow = false>
struct Parts {
  static constexpr int kLeft = kLeftParts;
  static constexpr int kRight = kRightParts;
  static constexpr bool kLowLow = kWithLowLow;
  static constexpr int kProducts = kLeft + kRight - 1 + (kLowLow ? 1 : 0);
};
// Of bf16, or of what is rounded to it; of bf16 beside two parts; of two parts beside two.
using One = Parts<1, 1>;
using Two = Parts<1, 2>;
using Three = Parts<2, 2>;
using Four = Parts<2, 2, true>;

// Left tiles that take turns on the two sides of the registers, and the right operand of both.
struct TileStream {
  const Bf16* left;  // [tiles][parts][steps][16][32]
  std::int64_t left_tile;
  std::int64_t left_part;
  const std::uint32_t* right;  // [parts][steps][16][kPanel]
  std::int64_t right_part;
  int tiles;
  int steps;
};

// Keys, [tiles][parts][steps][16][32], and the queries of a panel, [panels][parts][steps][16][kPanel].
template <typename P>
inline TileStream KeyStream(const Bf16* keys, int tiles, const std::uint32_t* queries, int panel,
                            int steps) {
  const std::int64_t left_part = steps * kTileElements;
  const std::int64_t right_part = steps * kTileRows * kPanel;
  return {.left = keys,
          .left_tile = P::kLeft * left_part,
          .left_part = left_part,
          .right = queries + panel * P::kRight * right_part,
          .right_part = right_part,
          .tiles = tiles,
          .steps = steps};
}

// Adds the products of the parts at a step, those of the side that began earlier first. turn: called once
// the first of them are under way. meanwhile: called 2 NR times.
template <typename P, int NR, int kElder, bool kHasElder, bool kHasYounger, typename Turn,
          typename Meanwhile>
__attribute__((always_inline)) inline void AddProducts(const TileStream& of, const Bf16* elder,
                                                       const Bf16* younger,
                                                       const std::uint32_t* right, Turn&& turn,
                                                       Meanwhile&& meanwhile) {
  constexpr int kOfPart = 2 * NR;
  constexpr int kEvery = P::kProducts;
  const auto none = [] {};
  const auto multiply = [&]<bool kLoadLeft, bool kLoadRight, int kIndex>(
      int left_part, int right_part, auto&& between) __attribute__((always_inline)) {
    MultiplySides<NR, kElder, kHasElder, kHasYounger, kLoadLeft, kLoadRight, kIndex * kOfPart,
                  kEvery>(elder + left_part * of.left_part, younger + left_part * of.left_part,
                          right + right_part * of.right_part, between, meanwhile);
  };
  multiply.template operator()<true, true, 0>(0, 0, turn);
  if constexpr (P::kRight == 2) multiply.template operator()<false, true, 1>(0, 1, none);
  if constexpr (P::kLowLow) multiply.template operator()<true, false, 2>(1, 1, none);
  if constexpr (P::kLeft == 2) {
    multiply.template operator()<!P::kLowLow, P::kRight == 2, P::kProducts - 1>(1, 0, none);
  }
}

// A turn of the stream: the first half of steps of tile `index`, if there is one, beside the second half
// of the tile before, if there is one. turn: called where tile `index` begins, its side's old sums
// complete.
template <typename P, int NR, int kSide, typename Turn, typename Meanwhile>
__attribute__((always_inline)) inline void AddTurn(const TileStream& of, int index, Turn&& turn,
                                                   Meanwhile&& meanwhile) {
  const int half = of.steps / 2;
  const int begin = kSide == 0 ? 0 : half;
  const int end = kSide == 0 ? half : of.steps;
  const Bf16* const younger = of.left + index * of.left_tile;
  const Bf16* const elder = younger - of.left_tile;
  const auto add = [&]<bool kHasElder, bool kHasYounger>() __attribute__((always_inline)) {
    const auto at = [&](int step, auto&& between) __attribute__((always_inline)) {
      AddProducts<P, NR, 1 - kSide, kHasElder, kHasYounger>(
          of, elder + step * kTileElements, younger + step * kTileElements,
          of.right + step * kTileRows * kPanel, between, meanwhile);
    };
    const auto none = [] {};
    if (begin == end) {
      turn();
      return;
    }
    if constexpr (kHasElder) {
      at(begin, turn);
    } else {
      turn();
      at(begin, none);
    }
    for (int step = begin + 1; step < end; ++step) at(step, none);
  };
  if (kSide == 0 && index == 0) {
    add.template operator()<false, true>();
  } else if (index < of.tiles) {
    add.template operator()<true, true>();
  } else {
    add.template operator()<true, false>();
  }
}
