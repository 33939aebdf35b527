// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What all kernels over a vector type share: exp2, widening loads, the walk over key runs, masks and
// the cutting of scratch. Included by kernels-inl.h.

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;
constexpr float kLowest = -3.0e38f;  // below every finite score, so that exp2(-inf - max) is 0
constexpr float kMinusInfinity = -__builtin_inff();

// 2^f = 1 + c1 f + .. + c5 f^5 on [-1/2, 1/2]: relative error 9e-8, and 2^0 = 1 exactly (least
// maximum fitted over Chebyshev points). Degree 6 would be 10 times closer, which f32 does not show.
constexpr float kExp2C1 = 6.931470037e-01f;
constexpr float kExp2C2 = 2.402224243e-01f;
constexpr float kExp2C3 = 5.550733581e-02f;
constexpr float kExp2C4 = 9.671512991e-03f;
constexpr float kExp2C5 = 1.326472266e-03f;

inline int Min(int a, int b) { return a < b ? a : b; }
inline int Max(int a, int b) { return a > b ? a : b; }
inline std::size_t RoundToLine(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// (2^f - 1) / f
inline Vec PowerOfTwoSlope(Vec f) {
  Vec p = Vec::Set(kExp2C5);
  p = MulAdd(p, f, Vec::Set(kExp2C4));
  p = MulAdd(p, f, Vec::Set(kExp2C3));
  p = MulAdd(p, f, Vec::Set(kExp2C2));
  return MulAdd(p, f, Vec::Set(kExp2C1));
}

// 2^x for x <= 0; 0 below 2^-126 (no denormals), NaN for NaN.
inline Vec Exp2(Vec x) {
  const Vec n = RoundToInteger(x);
  const Vec f = x - n;
  return ScaleOrZero(MulAdd(PowerOfTwoSlope(f), f, Vec::Set(1.0f)), n, x);
}

// tanh(x) = e / (e + 2) with e = 2^(2 x log2 e) - 1, found without cancellation near 0. Beyond 2^30
// the quotient is 1 in f32.
inline Vec Tanh(Vec x) {
  const Vec limit = Vec::Set(-30.0f);
  const Vec zero = Vec::Set(0.0f);
  const Vec above = MaxOrSecond(limit, x * Vec::Set(2 * kLog2E));
  const Vec y = zero - MaxOrSecond(limit, zero - above);
  const Vec n = RoundToInteger(y);
  const Vec f = y - n;
  const Vec power = ScaleOrZero(Vec::Set(1.0f), n, y);
  const Vec e = MulAdd(power, PowerOfTwoSlope(f) * f, power - Vec::Set(1.0f));
  return e / (e + Vec::Set(2.0f));
}

// ---- Rows to f32 ---------------------------------------------------------------------------------

template <DType kType>
inline Vec LoadAs(const std::byte* row, int i) {
  if constexpr (kType == DType::kF32) return Vec::Load(reinterpret_cast<const float*>(row) + i);
  if constexpr (kType == DType::kQ8_0) {
    const std::byte* block = row + i / kQ8BlockSize * kQ8BlockBytes;
    const float scale = WidenF16(*reinterpret_cast<const std::uint16_t*>(block));
    return Vec::LoadInt8(reinterpret_cast<const std::int8_t*>(block) + 2 + i % kQ8BlockSize) *
           Vec::Set(scale);
  }
  const auto* half = reinterpret_cast<const std::uint16_t*>(row) + i;
  if constexpr (kType == DType::kF16) return Vec::LoadF16(half);
  return Vec::LoadBf16(half);
}

// x, kept from being read from memory again by each instruction that takes it.
inline Vec InRegister(Vec x) {
#if defined(__aarch64__)
  asm("" : "+w"(x.v));
#else
  asm("" : "+v"(x.v));
#endif
  return x;
}

// Calls function.operator()<type>() for a type known at run time.
template <typename Function>
inline auto WithType(DType type, Function function) {
  switch (type) {
    case DType::kF16:
      return function.template operator()<DType::kF16>();
    case DType::kBF16:
      return function.template operator()<DType::kBF16>();
    case DType::kQ8_0:
      return function.template operator()<DType::kQ8_0>();
    case DType::kF32:
      break;
  }
  return function.template operator()<DType::kF32>();
}

template <DType kType>
inline void WidenRow(const std::byte* row, int dim, float* out) {
  for (int i = 0; i < dim; i += Vec::kLanes) LoadAs<kType>(row, i).Store(out + i);
}

// Widens rows[0..count) of `view` into out [count][stride].
inline void WidenRows(const RowsView& view, const std::int32_t* rows, int count, int stride,
                      float* out) {
  WithType(view.type, [&]<DType kType>() {
    for (int j = 0; j < count; ++j) {
      WidenRow<kType>(view.data + rows[j] * view.stride, view.dim,
                      out + static_cast<std::int64_t>(j) * stride);
    }
  });
}

// ---- Rows that will be needed soon ---------------------------------------------------------------

inline void PrefetchRow(const RowsView& view, std::int32_t row) {
  const std::byte* at = view.data + row * view.stride;
  const auto bytes = static_cast<int>(RowBytes(view.type, view.dim));
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
}

// The keys, and values if given, of some rows, fetched evenly over the steps of something else.
class TileAhead {
 public:
  TileAhead(const RowsView* keys, const RowsView* values, const std::int32_t* rows, int count,
            int steps)
      : views_{keys, values},
        rows_(rows),
        count_(count),
        total_(values == nullptr ? count : 2 * count),
        at_a_time_((total_ + steps - 1) / steps) {}

  void Fetch() {
    for (int n = 0; n < at_a_time_ && at_ < total_; ++n, ++at_) {
      const bool key = at_ < count_;
      PrefetchRow(*views_[key ? 0 : 1], rows_[key ? at_ : at_ - count_]);
    }
  }

 private:
  const RowsView* views_[2];
  const std::int32_t* rows_;
  int count_;
  int total_;  // of the keys and then the values
  int at_a_time_;
  int at_ = 0;
};

// ---- A tile of keys, gathered from runs ----------------------------------------------------------

// Walks the keys of a segment that any row may see, in tiles.
class KeyWalk {
 public:
  KeyWalk() = default;
  KeyWalk(const KeySegment& segment, int rows) : segment_(&segment) {
    range_ = segment.visible[0];
    common_ = range_;
    for (int r = 1; r < rows; ++r) {
      const KeyRange row = segment.visible[r];
      range_.begin = Min(range_.begin, row.begin);
      range_.end = Max(range_.end, row.end);
      common_.begin = Max(common_.begin, row.begin);
      common_.end = Min(common_.end, row.end);
    }
  }

  // Fills keys with up to `most` next keys, ascending; returns their number, 0 at the end.
  int Next(int most, std::int32_t* keys) {
    int count = 0;
    while (count < most && run_ < segment_->run_count) {
      const KeyRange run = segment_->runs[run_];
      const int begin = Max(Max(run.begin, range_.begin), next_);
      const int end = Min(run.end, range_.end);
      const int taken = Max(0, Min(end - begin, most - count));
      for (int i = 0; i < taken; ++i) keys[count++] = begin + i;
      next_ = begin + taken;
      if (next_ >= end) ++run_;
    }
    return count;
  }

  // Every row sees all of these ascending keys.
  bool AllVisible(const std::int32_t* keys, int count) const {
    return keys[0] >= common_.begin && keys[count - 1] < common_.end;
  }

 private:
  const KeySegment* segment_ = nullptr;
  KeyRange range_;   // seen by any row
  KeyRange common_;  // seen by all rows
  int run_ = 0;
  std::int32_t next_ = -2147483647;
};

inline float MaskElement(const KeySegment& segment, int row, std::int32_t key) {
  const std::byte* mask = segment.mask_rows[row];
  if (segment.mask_type == DType::kF32) return reinterpret_cast<const float*>(mask)[key];
  const std::uint16_t bits = reinterpret_cast<const std::uint16_t*>(mask)[key];
  if (bits == 0) return 0.0f;
  if (bits == 0xFC00) return kMinusInfinity;
  return segment.mask_type == DType::kF16 ? WidenF16(bits) : WidenBf16(bits);
}

// out[j] = mask of `row` at keys[j], in base 2. Returns whether any is above -inf.
inline bool MaskRow(const KeySegment& segment, int row, const std::int32_t* keys, int count,
                    float* out) {
  bool any = false;
  for (int j = 0; j < count; ++j) {
    out[j] = MaskElement(segment, row, keys[j]) * kLog2E;
    any |= out[j] != kMinusInfinity;
  }
  return any;
}

// ---- Scratch -------------------------------------------------------------------------------------

// Hands out aligned pieces of the scratch; with a null base it only adds up their sizes.
struct Cutter {
  std::byte* base;
  std::size_t used = 0;

  template <typename T>
  T* Take(std::int64_t count) {
    std::byte* piece = base == nullptr ? nullptr : base + used;
    used += RoundToLine(static_cast<std::size_t>(count) * sizeof(T));
    return reinterpret_cast<T*>(piece);
  }
};
