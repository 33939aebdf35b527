// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Scores of candidate blocks with AMX, after the plan of simd/score-inl.h: queries and keys in two parts
// of bf16 (bf16 keys in one), with all products of the parts but low low. A score is within 2^-16 of sum
// |q_i k_i|, so the search picks what it picks in f32, but for near ties.
//
// Cost for a key of 128 dims and 16 rows in each of four groups (Xeon, one thread, keys of f16 in the
// second level, one part): 26 ns, of which 12 are the products, 9 packing and 6 raising scores. With one group
// packing is 11 of 17. Tried and slower: packing the next keys between products (33 to 39 ns), raising one
// panel's scores after the next one's products (31; presumably its stores wait behind those of tiles), sides
// by turns as in stream-inl.h (27, and 30 with 64 or 96 keys at a time).

template <typename Products>
struct AmxScores {
  static constexpr bool kMayOverflow = true;
  static constexpr int kKeys = 2 * kTileRows;  // at a time; their parts stay in the first level

  struct Operands {
    std::uint32_t* queries;  // [panels][parts][steps][16 dim pairs][kPanel]
    Bf16* keys;              // [kKeys / 16][parts][steps][16][32]
  };

  static void LayOut(Cutter& cutter, int rows, int dim, Operands& to) {
    const std::int64_t depth = DepthSteps(dim) * kTileDepth;
    to.queries = cutter.Take<std::uint32_t>(LanesFor(rows) * Products::kRight * depth / 2);
    to.keys = cutter.Take<Bf16>(kKeys * Products::kLeft * depth);
  }
  static void TakeQueries(const float* const* queries, int rows, int dim, float scale,
                          const Operands& to) {
    PackQueryTiles<Products::kRight>(queries, rows, dim, scale, to.queries);
  }
  static void TakeKeys(const RowsView& view, const std::int32_t* keys, int count,
                       const Operands& to) {
    PackKeys<Products::kLeft>(view, keys, count, to.keys);
  }
  static void Score(const Operands& from, int dim, int panel, int vectors, int /*count*/,
                    float* scores, TileAhead& ahead) {
    vectors == 1 ? ScorePanel<1>(from, DepthSteps(dim), panel, scores, ahead)
                 : ScorePanel<2>(from, DepthSteps(dim), panel, scores, ahead);
  }
  static int FetchesOfTile(int dim) { return 4 * DepthSteps(dim); }

 private:
  // Of kKeys keys: what lies behind the last one scores something that nobody reads.
  template <int NR>
  static void ScorePanel(const Operands& from, int steps, int panel, float* scores,
                         TileAhead& ahead) {
    using First = TileSums<0, NR>;
    using Second = TileSums<1, NR>;
    const TileStream keys = KeyStream<Products>(from.keys, 2, from.queries, panel, steps);
    First::Zero();
    Second::Zero();
    for (int step = 0; step < steps; ++step) {
      const Bf16* const left = keys.left + step * kTileElements;
      AddProducts<Products, NR, 0, true, true>(
          keys, left, left + keys.left_tile, keys.right + step * kTileRows * kPanel,
          [] {}, [&]() __attribute__((always_inline)) { ahead.Fetch(); });
    }
    First::Store(scores);
    Second::Store(scores + kTileRows * kPanel);
  }
};

// Numbers that bf16 cannot hold are left to f32.
void ScoreBlocksAmx(const ScoreArgs& args) {
  if (args.rows > kMaxFewRows) {
    const TileState state;
    const bool finite = args.fast                        ? ScoreManyRows<AmxScores<One>>(args)
                        : args.keys.type == DType::kBF16 ? ScoreManyRows<AmxScores<Two>>(args)
                                                         : ScoreManyRows<AmxScores<Three>>(args);
    if (finite) return;
  }
  ScoreBlocks(args);
}
