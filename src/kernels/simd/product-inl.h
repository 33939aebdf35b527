// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The product that both halves of a tile are made of: rows of one operand, read element by element
// and spread over the lanes, times a panel of lanes.
//
//   c[r][lanes] (+)= sum over t < depth of a(r, t) * b[t][lanes]
//
// R rows x NV lane vectors are summed in registers: per step of t, NV loads and R spreads feed
// R * NV multiply-adds. A Product says what an element is and how it is multiplied: f32 here; an
// instruction set with dot products packs two or four narrower numbers into an element.

constexpr int kPanel = kPanelVectors * Vec::kLanes;

struct F32Product {
  using Element = float;
  static Vec Load(const float* at) { return Vec::Load(at); }
  static Vec Spread(const float* at) { return Vec::Set(*at); }
  static Vec Add(Vec spread, Vec lanes, Vec sum) { return MulAdd(spread, lanes, sum); }
};

// a(r, t) = kByColumn ? a[t * stride + r] : a[r * stride + t]; b and c have rows of kPanel.
template <typename Product, int NV, int R, bool kByColumn, bool kAccumulate>
inline void MultiplyTile(const typename Product::Element* a, int stride,
                         const typename Product::Element* b, int depth, float* c) {
  Vec sum[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[r][v] = Vec::Set(0.0f);
  }
  for (int t = 0; t < depth; ++t) {
    decltype(Product::Load(b)) lanes[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) lanes[v] = Product::Load(b + t * kPanel + v * Vec::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto one = Product::Spread(kByColumn ? a + t * stride + r : a + r * stride + t);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[r][v] = Product::Add(one, lanes[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* to = c + r * kPanel + v * Vec::kLanes;
      if constexpr (kAccumulate) sum[r][v] = sum[r][v] + Vec::Load(to);
      sum[r][v].Store(to);
    }
  }
}

// Any number of rows: kRegisterRows at a time, the rest in smaller steps. Between the steps the
// rows ahead are fetched.
template <typename Product, int NV, bool kByColumn, bool kAccumulate>
void Multiply(const typename Product::Element* a, int stride, int rows,
              const typename Product::Element* b, int depth, float* c, TileAhead& ahead) {
  int r = 0;
  const auto take = [&]<int R>() {
    for (; r + R <= rows; r += R) {
      MultiplyTile<Product, NV, R, kByColumn, kAccumulate>(kByColumn ? a + r : a + r * stride,
                                                           stride, b, depth, c + r * kPanel);
      ahead.Fetch();
    }
  };
  constexpr int kFull = kRegisterRows[NV];
  take.template operator()<kFull>();
  if constexpr (kFull > 8) take.template operator()<8>();
  if constexpr (kFull > 4) take.template operator()<4>();
  take.template operator()<2>();
  take.template operator()<1>();
}

template <typename Product, bool kByColumn, bool kAccumulate>
void MultiplyPanel(int vectors, const typename Product::Element* a, int stride, int rows,
                   const typename Product::Element* b, int depth, float* c, TileAhead& ahead) {
  const auto multiply = [&]<int NV>() {
    Multiply<Product, NV, kByColumn, kAccumulate>(a, stride, rows, b, depth, c, ahead);
  };
  if (vectors == 1) return multiply.template operator()<1>();
  if constexpr (kPanelVectors > 2) {
    if (vectors == 3) return multiply.template operator()<3>();
    if (vectors == 4) return multiply.template operator()<4>();
  }
  multiply.template operator()<2>();
}
