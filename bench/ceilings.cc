// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The probes are compiled for one instruction set each by function attributes, and are called only
// when the kernels of that set run here.
#include "ceilings.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "coppice/huge_pages.h"

namespace coppice::bench {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr int kSteps = 50000;  // of an item: about a millisecond
constexpr int kItemsPerThread = 16;
constexpr int kRounds = 5;
constexpr std::size_t kStreamBytes = std::size_t{512} << 20;
constexpr std::size_t kChunkCount = (std::size_t{4} << 20) / sizeof(float);
constexpr int kChunks = static_cast<int>(kStreamBytes / sizeof(float) / kChunkCount);

// A probe does its work and returns how many floating-point operations it did.
using FmaProbe = double (*)(float seed, float* sink);
// Sums a chunk, so that all of it must be read: from front to back, or its quarters side by side, which
// one machine reads faster and another does not.
using ReadProbe = float (*)(const float* data, std::size_t count, bool quarters);

// Plain code for the baseline instruction set: multiply and add are two instructions there.
double FmaGeneric(float seed, float* sink) {
  constexpr int kLanes = 32;
  float sums[kLanes];
  for (int i = 0; i < kLanes; ++i) sums[i] = seed * static_cast<float>(i);
  for (int step = 0; step < kSteps; ++step) {
    for (int i = 0; i < kLanes; ++i) sums[i] = sums[i] * seed + seed;
  }
  float sum = 0;
  for (const float each : sums) sum += each;
  *sink = sum;
  return 2.0 * kLanes * kSteps;
}

float ReadGeneric(const float* data, std::size_t count, bool quarters) {
  constexpr std::size_t kLanes = 8;
  const std::size_t apart = quarters ? count / 4 : kLanes;
  const std::size_t step = quarters ? kLanes : 4 * kLanes;
  float sums[4 * kLanes] = {};
  for (std::size_t at = 0; at + 4 * kLanes <= count; at += 4 * kLanes, data += step) {
    for (std::size_t i = 0; i < 4; ++i) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        sums[i * kLanes + lane] += data[i * apart + lane];
      }
    }
  }
  float sum = 0;
  for (const float each : sums) sum += each;
  return sum;
}

#if defined(__x86_64__)
// Ten accumulators hide the latency of four cycles at two multiply-adds a cycle.
__attribute__((target("avx2,fma"))) double FmaAvx2(float seed, float* sink) {
  constexpr int kAccumulators = 10;
  const __m256 factor = _mm256_set1_ps(seed);
  __m256 sums[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 10
    for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm256_fmadd_ps(sums[i], factor, factor);
  }
  for (int i = 1; i < kAccumulators; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  *sink = _mm256_cvtss_f32(sums[0]);
  return 2.0 * 8 * kAccumulators * kSteps;
}

__attribute__((target("avx512f"))) double FmaAvx512(float seed, float* sink) {
  constexpr int kAccumulators = 10;
  const __m512 factor = _mm512_set1_ps(seed);
  __m512 sums[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 10
    for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_fmadd_ps(sums[i], factor, factor);
  }
  for (int i = 1; i < kAccumulators; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  *sink = _mm512_cvtss_f32(sums[0]);
  return 2.0 * 16 * kAccumulators * kSteps;
}

__attribute__((target("avx512f,avx512bf16"))) double DotBf16(float seed, float* sink) {
  constexpr int kAccumulators = 10;
  const auto factor = (__m512bh)_mm512_set1_ps(seed);
  __m512 sums[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 10
    for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], factor, factor);
  }
  for (int i = 1; i < kAccumulators; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  *sink = _mm512_cvtss_f32(sums[0]);
  return 2.0 * 32 * kAccumulators * kSteps;
}

__attribute__((target("avx512f,avx512vnni"))) double DotInt8(float seed, float* sink) {
  constexpr int kAccumulators = 10;
  const __m512i factor = _mm512_set1_epi8(static_cast<char>(seed * 2));
  __m512i sums[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_set1_epi32(i);
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 10
    for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], factor, factor);
  }
  for (int i = 1; i < kAccumulators; ++i) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
  std::int32_t lanes[16];
  _mm512_storeu_si512(lanes, sums[0]);
  *sink = static_cast<float>(lanes[0]);
  return 2.0 * 64 * kAccumulators * kSteps;
}

// Two left and two right operands, as the kernels multiply them. Of numbers, as in the other probes: this
// loop of zeros, with which no attention can be computed, runs at a higher clock on a Xeon (2,730 to 2,840
// GFLOP/s against 2,310 to 2,350 with one number, or normally distributed ones).
double TilesBf16(float seed, float* sink) {
  alignas(64) std::uint8_t configuration[64] = {1};
  for (int tile = 0; tile < 8; ++tile) {
    configuration[16 + 2 * tile] = 64;
    configuration[48 + tile] = 16;
  }
  asm volatile("ldtilecfg %0" : : "m"(configuration));
  std::uint32_t bits = 0;
  std::memcpy(&bits, &seed, sizeof bits);
  std::uint32_t numbers[16];  // two bf16 each, in every row of a tile
  for (std::uint32_t& pair : numbers) pair = bits >> 16 | (bits & 0xFFFF0000u);
  constexpr std::int64_t kSameRow = 0;
  asm volatile(
      "tileloadd (%0,%1,1), %%tmm4; tileloadd (%0,%1,1), %%tmm5;"
      "tileloadd (%0,%1,1), %%tmm6; tileloadd (%0,%1,1), %%tmm7"
      :
      : "r"(numbers), "r"(kSameRow)
      : "memory");
  asm volatile("tilezero %tmm0; tilezero %tmm1; tilezero %tmm2; tilezero %tmm3");
  constexpr int kProducts = kSteps / 5;
  for (int step = 0; step < kProducts / 4; ++step) {
    asm volatile("tdpbf16ps %tmm6, %tmm4, %tmm0; tdpbf16ps %tmm7, %tmm4, %tmm1");
    asm volatile("tdpbf16ps %tmm6, %tmm5, %tmm2; tdpbf16ps %tmm7, %tmm5, %tmm3");
  }
  float sum[16];
  asm volatile("tilestored %%tmm0, (%0,%1,1); tilerelease" : : "r"(sum), "r"(kSameRow) : "memory");
  *sink = sum[0];
  return 2.0 * 16 * 16 * 32 * (kProducts / 4 * 4);
}

__attribute__((target("avx2"))) float ReadAvx2(const float* data, std::size_t count,
                                               bool quarters) {
  const std::size_t apart = quarters ? count / 4 : 8;
  const std::size_t step = quarters ? 8 : 32;
  __m256 sums[4] = {};
  for (std::size_t at = 0; at + 32 <= count; at += 32, data += step) {
#pragma GCC unroll 4
    for (std::size_t i = 0; i < 4; ++i) {
      sums[i] = _mm256_add_ps(sums[i], _mm256_loadu_ps(data + i * apart));
    }
  }
  const __m256 sum =
      _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
  return _mm256_cvtss_f32(sum);
}

__attribute__((target("avx512f"))) float ReadAvx512(const float* data, std::size_t count,
                                                    bool quarters) {
  const std::size_t apart = quarters ? count / 4 : 16;
  const std::size_t step = quarters ? 16 : 64;
  __m512 sums[4] = {};
  for (std::size_t at = 0; at + 64 <= count; at += 64, data += step) {
#pragma GCC unroll 4
    for (std::size_t i = 0; i < 4; ++i) {
      sums[i] = _mm512_add_ps(sums[i], _mm512_loadu_ps(data + i * apart));
    }
  }
  const __m512 sum =
      _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
  return _mm512_cvtss_f32(sum);
}
#endif

struct Probes {
  FmaProbe fma = FmaGeneric;
  ReadProbe read = ReadGeneric;
  FmaProbe bf16 = nullptr;
  FmaProbe int8 = nullptr;
  FmaProbe tiles = nullptr;
};

Probes ProbesOf([[maybe_unused]] std::string_view isa) {
#if defined(__x86_64__)
  if (isa == "amx") return {FmaAvx512, ReadAvx512, DotBf16, DotInt8, TilesBf16};
  if (isa == "avx512_bf16") return {FmaAvx512, ReadAvx512, DotBf16, DotInt8};
  if (isa == "avx512_vnni") return {FmaAvx512, ReadAvx512, nullptr, DotInt8};
  if (isa == "avx512") return {FmaAvx512, ReadAvx512};
  if (isa == "avx2") return {FmaAvx2, ReadAvx2};
#endif
  return {};
}

}  // namespace

double PeakGflops(std::string_view type, std::string_view isa, ThreadPool& pool) {
  if (const std::size_t times = type.find("x", type.find("bf16")); times != type.npos) {
    return PeakGflops(type.substr(0, times), isa, pool) / (type[times + 1] - '0');
  }
  const Probes probes = ProbesOf(isa);
  const FmaProbe probe = type == "amx_bf16" ? probes.tiles
                         : type == "bf16"   ? probes.bf16
                         : type == "int8"   ? probes.int8
                                            : probes.fma;
  if (probe == nullptr) return 0;
  const int items = kItemsPerThread * pool.threads();
  std::vector<double> flops(static_cast<std::size_t>(items));
  std::vector<float> sinks(static_cast<std::size_t>(items));
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    const auto start = Clock::now();
    pool.Run(items, [&](int item, int) {
      const auto i = static_cast<std::size_t>(item);
      flops[i] = probe(0.5f, &sinks[i]);
    });
    const double seconds = SecondsSince(start);
    double sum = 0;
    for (const double each : flops) sum += each;
    best = std::max(best, sum / seconds * 1e-9);
  }
  return best;
}

StreamProbe::StreamProbe(std::string_view isa, ThreadPool& pool)
    : isa_(isa), pool_(pool), data_(static_cast<float*>(std::aligned_alloc(4096, kStreamBytes))) {
  if (data_ == nullptr) return;
  PreferHugePages(data_.get(), kStreamBytes);
  pool_.Run(kChunks, [&](int item, int) {
    std::fill_n(data_.get() + static_cast<std::size_t>(item) * kChunkCount, kChunkCount, 1.0f);
  });
}

void StreamProbe::Run() {
  if (data_ == nullptr) return;
  const ReadProbe probe = ProbesOf(isa_).read;
  for (const bool quarters : {false, true}) {
    std::atomic<bool> read = true;
    const auto start = Clock::now();
    pool_.Run(kChunks, [&](int item, int) {
      // Using the sums keeps the compiler from leaving the reads out.
      if (probe(data_.get() + static_cast<std::size_t>(item) * kChunkCount, kChunkCount,
                quarters) == 0.0f)
        read = false;
    });
    const double seconds = SecondsSince(start);
    if (read) best_ = std::max(best_, static_cast<double>(kStreamBytes) / seconds * 1e-9);
  }
}

}  // namespace coppice::bench
