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
//        0 1     left 4 5 (rows: keys, or dims of values)
//        2 3     right 6 7 (columns: query rows)
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

// NL x NR sums.
template <int NL, int NR>
struct TileGrid {
  static void Zero() {
    ZeroTile<0>();
    if constexpr (NR == 2) ZeroTile<1>();
    if constexpr (NL == 2) ZeroTile<2>();
    if constexpr (NL == 2 && NR == 2) ZeroTile<3>();
  }
  // Every row of a sum = these kPanel numbers.
  static void SpreadSums(const float* row) {
    LoadTile<0>(row, 0);
    if constexpr (NR == 2) LoadTile<1>(row + kTileRows, 0);
    if constexpr (NL == 2) LoadTile<2>(row, 0);
    if constexpr (NL == 2 && NR == 2) LoadTile<3>(row + kTileRows, 0);
  }
  // Rows of kPanel numbers.
  static void LoadSums(const float* at) {
    LoadTile<0>(at, kPanelBytes);
    if constexpr (NR == 2) LoadTile<1>(at + kTileRows, kPanelBytes);
    if constexpr (NL == 2) LoadTile<2>(at + kTileRows * kPanel, kPanelBytes);
    if constexpr (NL == 2 && NR == 2) LoadTile<3>(at + kTileRows * kPanel + kTileRows, kPanelBytes);
  }
  static void StoreSums(float* at) {
    StoreTile<0>(at, kPanelBytes);
    if constexpr (NR == 2) StoreTile<1>(at + kTileRows, kPanelBytes);
    if constexpr (NL == 2) StoreTile<2>(at + kTileRows * kPanel, kPanelBytes);
    if constexpr (NL == 2 && NR == 2) {
      StoreTile<3>(at + kTileRows * kPanel + kTileRows, kPanelBytes);
    }
  }
  // Adds left x right to the sums; operands that are not loaded are those of the call before. Loads come as
  // late as they can. meanwhile: called before every kEvery-th product, of which kDone came before.
  template <bool kLoadLeft, bool kLoadRight, int kDone, int kEvery, typename Meanwhile>
  __attribute__((always_inline)) static void Multiply(const Bf16* left, std::int64_t between,
                                                      const std::uint32_t* right,
                                                      Meanwhile&& meanwhile) {
    if constexpr (kDone % kEvery == 0) meanwhile();
    if constexpr (kLoadLeft) LoadTile<4>(left);
    if constexpr (kLoadRight) LoadTile<6>(right, kPanelBytes);
    MultiplyTiles<0, 4, 6>();
    if constexpr (NR == 2) {
      if constexpr ((kDone + 1) % kEvery == 0) meanwhile();
      if constexpr (kLoadRight) LoadTile<7>(right + kTileRows, kPanelBytes);
      MultiplyTiles<1, 4, 7>();
    }
    if constexpr (NL == 2) {
      if constexpr ((kDone + NR) % kEvery == 0) meanwhile();
      if constexpr (kLoadLeft) LoadTile<5>(left + between);
      MultiplyTiles<2, 5, 6>();
    }
    if constexpr (NL == 2 && NR == 2) {
      if constexpr ((kDone + 3) % kEvery == 0) meanwhile();
      MultiplyTiles<3, 5, 7>();
    }
  }
};
