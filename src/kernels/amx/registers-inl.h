// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The tile registers of AMX: their configuration, loads, stores and products. Inline assembly, since
// the compilers' intrinsics do not say which memory a tile load reads or a configuration is.
//
//   Eight registers of 16 rows x 64 bytes. One product adds to 16 x 16 sums in f32
//
//      c[m][n] += sum over p < 16: a[m][2 p] b[p][2 n] + a[m][2 p + 1] b[p][2 n + 1]      (bf16)
//
//   in 16 cycles: 1,024 FLOP a cycle, 16 times what two f32 FMA ports do. A load takes 8 cycles, so up
//   to four sums are kept in registers, of two left and two right operands: as many loads as products.
//
//        side 0   sums 0 1     left 4   (rows: keys, or dims of values)
//        side 1   sums 2 3     left 5
//        both                  right 6 7   (columns: query rows)
//
// The two sides begin new sums by turns, half of their products apart, so that stores and loads of one
// side's sums run under the products of the other: a store waits up to 52 cycles for the product before
// it, and the 64 micro-operations of four waiting ones fill the processor's queue of stores, behind which
// nothing starts (products with four stores after each 32: 7.7 ns each, with two: 6.98, with none: 6.98).
//
// Subnormal operands count as zero, and so do subnormal sums.

// Configures the registers for as long as it lives, then gives back what the thread had: a host may
// configure its own once for a thread and rely on it. Subnormal results of AVX-512 are flushed to
// zero too: making one takes 80 ns, and weights of keys that do not matter are such.
class TileState {
 public:
  TileState() : control_(_mm_getcsr()) {
    _mm_setcsr(control_ | kFlushToZero);
    asm volatile("sttilecfg %0" : "=m"(host_));
    Config ours;
    ours.palette = 1;
    for (int i = 0; i < kRegisters; ++i) {
      ours.row_bytes[i] = kTileRowBytes;
      ours.rows[i] = kTileRows;
    }
    asm volatile("ldtilecfg %0" : : "m"(ours));
  }
  ~TileState() {
    if (host_.palette == 0) {
      asm volatile("tilerelease");
    } else {
      asm volatile("ldtilecfg %0" : : "m"(host_));
    }
    _mm_setcsr(control_);
  }
  TileState(const TileState&) = delete;
  TileState& operator=(const TileState&) = delete;

 private:
  static constexpr unsigned kFlushToZero = 0x8000;
  static constexpr int kRegisters = 8;
  struct alignas(64) Config {
    std::uint8_t palette = 0;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  };

  unsigned control_;
  Config host_;
};

template <int kTile>
inline void LoadTile(const void* at, std::int64_t stride = kTileRowBytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(at), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void StoreTile(void* at, std::int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(at), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void ZeroTile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kSum, int kLeft, int kRight>
inline void MultiplyTiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kLeft), "i"(kRight));
}

// Of what streams from the second level and is not read again soon, so that it leaves the first level to
// sums, weights and queries (products of both kinds with their stores and loads: 68 against 75 us).
template <int kTile>
inline void StreamTile(const void* at) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2"
               :
               : "r"(at), "r"(std::int64_t{kTileRowBytes}), "i"(kTile)
               : "memory");
}

// The sums of a side: 16 rows of the left operand x NR times 16 query rows.
template <int kSide, int NR>
struct TileSums {
  static constexpr int kFirst = 2 * kSide;
  static constexpr int kLeft = 4 + kSide;
  static constexpr int kRight = 6;

  static void Zero() {
    ZeroTile<kFirst>();
    if constexpr (NR == 2) ZeroTile<kFirst + 1>();
  }
  // Rows of kPanel numbers.
  static void Load(const float* at) {
    LoadTile<kFirst>(at, kPanelBytes);
    if constexpr (NR == 2) LoadTile<kFirst + 1>(at + kTileRows, kPanelBytes);
  }
  static void Store(float* at) {
    StoreTile<kFirst>(at, kPanelBytes);
    if constexpr (NR == 2) StoreTile<kFirst + 1>(at + kTileRows, kPanelBytes);
  }
};

// Adds left x right to the sums of side kElder, then to those of the other, of those that are there;
// operands that are not loaded are those of the call before. Loads come as late as they can. between:
// called between the sides. meanwhile: called before every kEvery-th product, of which kDone came before.
template <int NR, int kElder, bool kHasElder, bool kHasYounger, bool kLoadLeft, bool kLoadRight,
          int kDone, int kEvery, typename Between, typename Meanwhile>
__attribute__((always_inline)) inline void MultiplySides(const Bf16* elder, const Bf16* younger,
                                                         const std::uint32_t* right,
                                                         Between&& between, Meanwhile&& meanwhile) {
  using Elder = TileSums<kElder, NR>;
  using Younger = TileSums<1 - kElder, NR>;
  if constexpr (kDone % kEvery == 0) meanwhile();
  if constexpr (kHasElder && kLoadLeft) StreamTile<Elder::kLeft>(elder);
  if constexpr (kLoadRight) LoadTile<Elder::kRight>(right, kPanelBytes);
  if constexpr (kHasElder) MultiplyTiles<Elder::kFirst, Elder::kLeft, Elder::kRight>();
  if constexpr (NR == 2) {
    if constexpr ((kDone + 1) % kEvery == 0) meanwhile();
    if constexpr (kLoadRight) LoadTile<Elder::kRight + 1>(right + kTileRows, kPanelBytes);
    if constexpr (kHasElder) MultiplyTiles<Elder::kFirst + 1, Elder::kLeft, Elder::kRight + 1>();
  }
  between();
  if constexpr ((kDone + NR) % kEvery == 0) meanwhile();
  if constexpr (kHasYounger) {
    if constexpr (kLoadLeft) StreamTile<Younger::kLeft>(younger);
    MultiplyTiles<Younger::kFirst, Younger::kLeft, Elder::kRight>();
  }
  if constexpr (NR == 2) {
    if constexpr ((kDone + 3) % kEvery == 0) meanwhile();
    if constexpr (kHasYounger) {
      MultiplyTiles<Younger::kFirst + 1, Younger::kLeft, Elder::kRight + 1>();
    }
  }
}
