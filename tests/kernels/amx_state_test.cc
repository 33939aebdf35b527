// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The AMX kernels leave a thread as they found it: its tile configuration, which a host may have made
// once for all its own work, and how it treats subnormal numbers.
#include <gtest/gtest.h>

#include <array>

#include "kernels/problem.h"
#if defined(__x86_64__)
#include <xmmintrin.h>

namespace coppice::testing {
namespace {

struct alignas(64) Configuration {
  std::array<std::uint8_t, 64> bytes{};
};

Configuration Current() {
  Configuration now;
  asm volatile("sttilecfg %0" : "=m"(now));
  return now;
}

void Attend(const KernelTable& kernels) {
  for (const bool fast : {false, true}) {
    KernelProblem problem(DType::kBF16, 40, 300, 64, 64, 3);
    problem.fast = fast;
    const KernelResult got = Solve(kernels, problem);
    EXPECT_LE(RelativeError(got.output.data(), problem.Want().output), 4e-3);
  }
}

void UseTiles(const KernelTable& kernels) {
  Attend(kernels);
  const Tensor queries = RandomTensor(DType::kF32, 1, 12, 64, 1);
  const Tensor keys = RandomTensor(DType::kF16, 64, 1, 64, 2);
  EXPECT_GT(Score(kernels, queries, nullptr, keys, {8}, 1)[0], 0);
}

class AmxState : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kernels_ == nullptr) GTEST_SKIP() << "no AMX here";
  }
  const KernelTable* kernels_ = FindKernels("amx");
};

TEST_F(AmxState, NothingIsLeftWhereNothingWas) {
  asm volatile("tilerelease");
  UseTiles(*kernels_);
  EXPECT_EQ(Current().bytes, Configuration().bytes);
}

TEST_F(AmxState, ConfigurationOfTheHostComesBack) {
  Configuration host;
  host.bytes[0] = 1;  // palette
  for (std::size_t tile = 0; tile < 8; ++tile) {
    host.bytes[16 + 2 * tile] = static_cast<std::uint8_t>(4 * (tile + 1));  // bytes of a row
    host.bytes[48 + tile] = static_cast<std::uint8_t>(tile + 1);            // rows
  }
  asm volatile("ldtilecfg %0" : : "m"(host));
  UseTiles(*kernels_);
  EXPECT_EQ(Current().bytes, host.bytes);
  asm volatile("tilerelease");
}

TEST_F(AmxState, SubnormalsAreTreatedAsBefore) {
  const unsigned before = _mm_getcsr();
  UseTiles(*kernels_);
  constexpr unsigned kExceptions = 0x3F;  // sticky flags of what happened
  EXPECT_EQ(_mm_getcsr() & ~kExceptions, before & ~kExceptions);
}

}  // namespace
}  // namespace coppice::testing
#endif
