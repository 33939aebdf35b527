// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Inputs that break attention kernels: huge and equal scores, one finite key, nothing visible,
// infinite masks, denormals, NaN, and memory that ends right behind the last row.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "kernels/problem.h"

namespace coppice::testing {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr std::uint16_t kHalfNan = 0x7E00;
constexpr std::uint16_t kHalfInfinity = 0x7C00;

class Hostile : public ::testing::TestWithParam<std::tuple<std::string, int>> {
 protected:
  const KernelTable& kernels() const { return *FindKernels(std::get<0>(GetParam())); }
  int rows() const { return std::get<1>(GetParam()); }
  KernelProblem Make(int keys = 200) const { return {DType::kF32, rows(), keys, 64, 64, 3}; }

  void ExpectClose(const KernelProblem& problem, double share = 1) const {
    const KernelResult got = Solve(kernels(), problem);
    EXPECT_LE(RelativeError(got.output.data(), problem.Want().output),
              share * ExactBound(std::get<0>(GetParam())));
  }
};

// Tensor keeps bytes and values apart; a test that edits values stores them again.
Tensor Again(const Tensor& t) { return {t.type, t.tokens, t.heads, t.dim, t.values}; }

TEST_P(Hostile, HugeScoresPickOneKey) {
  KernelProblem problem = Make();
  // Scores of +-1e4 in f32 are exact to 1e-3 only, which two near keys would show; a winner by far
  // is what must come out right.
  for (int row = 0; row < rows(); ++row) {
    for (int i = 0; i < 64; ++i) {
      problem.queries.values[row * 64 + i] = 1e4f * std::abs(problem.queries.values[row * 64 + i]);
    }
  }
  for (int i = 0; i < 64; ++i) problem.keys.values[77 * 64 + i] = 50;
  problem.queries = Again(problem.queries);
  problem.keys = Again(problem.keys);
  ExpectClose(problem);
}

TEST_P(Hostile, HugeNegativeScores) {
  KernelProblem problem = Make();
  for (float& value : problem.queries.values) value = 3e4f;
  for (float& value : problem.keys.values) value = -40.0f;
  problem.queries = Again(problem.queries);
  problem.keys = Again(problem.keys);
  ExpectClose(problem);
}

// A kernel that scales what it has summed must scale all of it: here every step of the scores leaves
// the keys before it a share of the result. Base 2: 20, 62.9, 63.5, 64.5 and, in the rows that see them, 200.
TEST_P(Hostile, ScoresThatRiseStepByStep) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const bool fast : {false, true}) {
      struct Rise {
        int jump;
        int fall;
        bool steps;  // before the jump
      };
      // At the last keys of a block, in the middle of one, at the last keys of all, and for a while only.
      for (const auto& [jump, fall, steps] :
           {Rise{250, 420, true}, {410, 420, true}, {418, 420, true}, {290, 298, false}}) {
        KernelProblem problem(type, rows(), 420, 64, 64, 3);
        problem.fast = fast;
        problem.scale = std::log(2.0f);
        std::fill(problem.queries.values.begin(), problem.queries.values.end(), 0.0f);
        std::fill(problem.keys.values.begin(), problem.keys.values.end(), 0.0f);
        for (int row = 0; row < rows(); ++row) {
          problem.queries.values[static_cast<std::size_t>(row * 64)] = 0.5f;
          problem.visible[static_cast<std::size_t>(row)] = {0, row % 2 == 0 ? jump : 420};
        }
        for (int key = 0; key < 420; ++key) {
          const float score = key >= jump && key < fall           ? 200
                              : key < 40 || key >= fall || !steps ? 20
                              : key < 270                         ? 62.9f
                              : key < 300                         ? 63.5f
                                                                  : 64.5f;
          problem.keys.values[static_cast<std::size_t>(key * 64)] = 2 * score;
        }
        problem.queries = Again(problem.queries);
        if (fast) {  // which may round keys of any type to bf16
          problem.keys.values =
              Tensor(DType::kBF16, problem.keys.tokens, 1, 64, problem.keys.values).values;
        }
        problem.keys = Again(problem.keys);
        const KernelResult got = Solve(kernels(), problem);
        const ReferenceResult want = problem.Want();
        const double bound = fast ? 4e-3 : 2e-5;
        EXPECT_LE(RelativeError(got.output.data(), want.output), bound)
            << NameOf(type) << fast << jump;
        for (std::size_t row = 0; row < want.lse.size(); ++row) {
          EXPECT_NEAR(got.lse[row], want.lse[row], 1e-3) << NameOf(type) << fast << jump;
        }
      }
    }
  }
}

TEST_P(Hostile, AllScoresEqualGiveTheMean) {
  KernelProblem problem = Make();
  for (float& value : problem.keys.values) value = 0.5f;
  problem.keys = Again(problem.keys);
  ExpectClose(problem);
}

TEST_P(Hostile, OneFiniteKey) {
  KernelProblem problem = Make();
  for (int row = 0; row < rows(); ++row) {
    problem.mask.emplace_back(200, -kInf);
    problem.mask.back()[static_cast<std::size_t>(row * 7 % 200)] = 0;
  }
  ExpectClose(problem, 0.25);
}

TEST_P(Hostile, NothingVisibleGivesZeroAndMinusInfinity) {
  KernelProblem problem = Make();
  for (KeyRange& range : problem.visible) range = {5, 5};
  const KernelResult got = Solve(kernels(), problem);
  ASSERT_FALSE(got.lse.empty());
  for (const float value : got.output) EXPECT_EQ(value, 0.0f);
  for (const float lse : got.lse) EXPECT_EQ(lse, -kInf);
}

TEST_P(Hostile, DenormalsAndTinyWeights) {
  KernelProblem problem = Make();
  for (float& value : problem.values.values) value *= 1e-40f;
  problem.values = Again(problem.values);
  // Denormal outputs have few bits; compare with their spacing.
  const KernelResult got = Solve(kernels(), problem);
  const ReferenceResult want = problem.Want();
  for (std::size_t i = 0; i < want.output.size(); ++i) {
    EXPECT_NEAR(got.output[i], want.output[i], 1e-43);
  }
}

TEST_P(Hostile, NanInAQueryStaysInItsRow) {
  KernelProblem problem = Make();
  const ReferenceResult want = problem.Want();
  problem.queries.values[5] = kNan;  // row 0
  problem.queries = Again(problem.queries);
  const KernelResult got = Solve(kernels(), problem);
  for (int i = 0; i < 64; ++i) EXPECT_TRUE(std::isnan(got.output[static_cast<std::size_t>(i)]));
  EXPECT_TRUE(std::isnan(got.lse[0]));
  for (std::size_t i = 64; i < got.output.size(); ++i) {
    EXPECT_NEAR(got.output[i], want.output[i], 1e-5);
  }
}

// What a row does not see must not reach it, whatever it is.
TEST_P(Hostile, PoisonBehindTheVisibleRangeIsNotSeen) {
  for (const float poison : {kNan, kInf, -kInf}) {
    KernelProblem problem = Make();
    for (int row = 0; row < rows(); ++row) {
      problem.visible[static_cast<std::size_t>(row)] = {0, row % 2 == 0 ? 150 : 200};
    }
    const ReferenceResult want = problem.Want();
    for (int i = 0; i < 64; ++i) {
      problem.keys.values[static_cast<std::size_t>(160 * 64 + i)] = poison;
      problem.values.values[static_cast<std::size_t>(160 * 64 + i)] = poison;
    }
    problem.keys = Again(problem.keys);
    problem.values = Again(problem.values);
    const KernelResult got = Solve(kernels(), problem);
    for (int row = 0; row < rows(); ++row) {
      const auto at = static_cast<std::size_t>(row * 64);
      if (row % 2 == 0) {
        for (std::size_t i = 0; i < 64; ++i) {
          EXPECT_NEAR(got.output[at + i], want.output[at + i], 1e-5) << poison;
        }
      } else if (std::isnan(poison)) {
        EXPECT_TRUE(std::isnan(got.output[at])) << row;
      }
    }
  }
}

void ReadToTheEdge(const KernelTable& kernels, int rows, DType type, int dim) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  constexpr int kKeys = 37;
  const std::int64_t row_bytes = RowBytes(type, dim);
  const auto bytes = static_cast<std::size_t>(kKeys * row_bytes);
  const std::size_t pages = (bytes + page - 1) / page;
  auto* memory = static_cast<std::byte*>(mmap(nullptr, (pages + 1) * page, PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  ASSERT_EQ(mprotect(memory + pages * page, page, PROT_NONE), 0);
  const KernelProblem problem(type, rows, kKeys, dim, dim, 9);
  std::byte* at = memory + pages * page - bytes;
  std::memcpy(at, problem.keys.bytes.data(), bytes);

  std::vector<const float*> queries;
  std::vector<float> output(static_cast<std::size_t>(rows * dim)), lses(output.size());
  std::vector<float*> outputs;
  for (int row = 0; row < rows; ++row) {
    queries.push_back(problem.queries.values.data() + row * dim);
    outputs.push_back(output.data() + row * dim);
  }
  const KeySegment segment = {
      .runs = problem.runs.data(), .run_count = 1, .visible = problem.visible.data()};
  AlignedBytes scratch = AllocateAligned(kernels.attend_scratch({.rows = rows,
                                                                 .dim_k = dim,
                                                                 .dim_v = dim,
                                                                 .key_type = type,
                                                                 .value_type = type,
                                                                 .fast = true}));
  const AttendArgs args = {.rows = rows,
                           .queries = queries.data(),
                           .keys = {at, row_bytes, type, dim},
                           .values = {at, row_bytes, type, dim},
                           .scale = problem.scale,
                           .fast = true,
                           .segments = &segment,
                           .segment_count = 1,
                           .outputs = outputs.data(),
                           .lses = lses.data(),
                           .scratch = scratch.get()};
  kernels.attend(&args, 1);  // a fault ends the test
  EXPECT_TRUE(std::isfinite(output[0]));
  munmap(memory, (pages + 1) * page);
}

// A scale that is no number poisons the rows that see it, and no other; integers cannot hold it.
struct PoisonedScale {  // of key or value 160
  std::uint16_t bits;
  bool in_keys;
  bool hidden;  // from every second row
};

void ExpectShown(const KernelTable& kernels, int rows, PoisonedScale poison) {
  KernelProblem problem(DType::kQ8_0, rows, 200, 64, 64, 3);
  problem.fast = true;
  const auto hidden = [&](int row) { return poison.hidden && row % 2 == 0; };
  for (int row = 0; row < rows; ++row) {
    problem.visible[static_cast<std::size_t>(row)] = {0, hidden(row) ? 150 : 200};
  }
  const ReferenceResult want = problem.Want();
  Tensor& poisoned = poison.in_keys ? problem.keys : problem.values;
  auto* const block = poisoned.bytes.data() + 160 * RowBytes(DType::kQ8_0, 64);
  std::memcpy(block, &poison.bits, 2);
  const KernelResult got = Solve(kernels, problem);
  for (int row = 0; row < rows; ++row) {
    const float* const output = got.output.data() + row * 64;
    if (hidden(row)) {
      EXPECT_LE(RelativeError(
                    output, {want.output.begin() + row * 64, want.output.begin() + row * 64 + 64}),
                3e-2);
    } else if (!poison.in_keys) {
      for (int i = 0; i < 32; ++i) {
        const auto value = static_cast<std::int8_t>(block[2 + i]);
        EXPECT_FALSE(std::isfinite(output[i])) << row << ' ' << i;
        EXPECT_TRUE(std::isnan(output[i]) || std::signbit(output[i]) == (value < 0)) << row;
      }
    } else if (poison.bits == kHalfNan) {
      EXPECT_FALSE(std::isfinite(output[0])) << row;
    }
  }
}

TEST_P(Hostile, FastArithmeticShowsAScaleThatIsNoNumber) {
  for (const std::uint16_t bits : {kHalfNan, kHalfInfinity}) {
    for (const bool in_keys : {true, false}) {
      for (const bool hidden : {true, false}) {
        ExpectShown(kernels(), rows(), {.bits = bits, .in_keys = in_keys, .hidden = hidden});
      }
    }
  }
}

// Pairs of keys are summed at once: the last of an odd number must not meet its own infinity again.
TEST_P(Hostile, FastArithmeticKeepsTheInfinityOfALastValue) {
  KernelProblem problem(DType::kBF16, rows(), 71, 64, 64, 3);
  problem.fast = true;
  const std::uint16_t infinity = 0x7F80;
  std::memcpy(problem.values.bytes.data() + 70 * RowBytes(DType::kBF16, 64), &infinity, 2);
  const KernelResult got = Solve(kernels(), problem);
  for (int row = 0; row < rows(); ++row) {
    const float* output = got.output.data() + row * 64;
    EXPECT_EQ(output[0], kInf) << row;
    EXPECT_TRUE(std::all_of(output + 1, output + 64, [](float x) { return std::isfinite(x); }));
  }
}

// f16 numbers that are taken for bf16 with the bits of an f16: those have no infinity, no NaN and nothing
// below 2^-14.
TEST_P(Hostile, FastArithmeticShowsInfinitiesOfF16) {
  for (const std::uint16_t bits : {kHalfNan, kHalfInfinity, std::uint16_t{0xFC00}}) {
    for (const int key : {0, 70, 150}) {
      for (const int dim : {0, 63}) {
        KernelProblem problem(DType::kF16, rows(), 151, 64, 64, 3);
        problem.fast = true;
        KernelProblem poisoned_keys = problem;
        const auto at = static_cast<std::size_t>(key * 64 + dim) * 2;
        std::memcpy(problem.values.bytes.data() + at, &bits, 2);
        const KernelResult got = Solve(kernels(), problem);
        for (int row = 0; row < rows(); ++row) {
          for (int i = 0; i < 64; ++i) {
            EXPECT_EQ(std::isfinite(got.output[static_cast<std::size_t>(row * 64 + i)]), i != dim)
                << bits << " key " << key << " row " << row << " element " << i;
          }
        }
        if (bits != kHalfNan) continue;
        std::memcpy(poisoned_keys.keys.bytes.data() + at, &bits, 2);
        for (const float output : Solve(kernels(), poisoned_keys).output) {
          EXPECT_FALSE(std::isfinite(output)) << "key " << key;
        }
      }
    }
  }
}

TEST_P(Hostile, FastArithmeticHoldsNumbersOfAllSizes) {
  for (const DType type : {DType::kF16, DType::kBF16}) {
    for (const auto& [queries, keys, values] : {std::array{1.0f, 1.0f, 1.0f},
                                                {1.0f, 1.0f, 3e-6f},
                                                {1.0f, 1.0f, 1e4f},
                                                {1e3f, 1e-3f, 1.0f},
                                                {1e5f, 1e-5f, 1.0f},
                                                {1e7f, 1e-7f, 1.0f},
                                                {1e-4f, 1e4f, 1.0f},
                                                {1.0f, 1.0f, 0.0f}}) {
      KernelProblem problem(type, rows(), 200, 64, 64, 3);
      problem.fast = true;
      for (float& x : problem.queries.values) x *= queries;
      for (float& x : problem.keys.values) x *= keys;
      for (float& x : problem.values.values) x *= values;
      problem.queries = Again(problem.queries);
      problem.keys = Again(problem.keys);
      problem.values = Again(problem.values);
      const ReferenceResult want = problem.Want();
      const KernelResult got = Solve(kernels(), problem);
      EXPECT_LE(RelativeError(got.output.data(), want.output), 1e-2)
          << NameOf(type) << ' ' << queries << ' ' << keys << ' ' << values;
    }
  }
}

TEST_P(Hostile, FastArithmeticHoldsLargeQueries) {
  for (const float large : {1e4f, 1e6f, 1e30f}) {
    KernelProblem problem(DType::kF16, rows(), 200, 64, 64, 3);
    problem.fast = true;
    for (int row = 0; row < rows(); ++row) problem.queries.values[row * 64] = large;
    for (int key = 0; key < 200; ++key) problem.keys.values[key * 64] = 0.0f;
    problem.queries = Again(problem.queries);
    problem.keys = Again(problem.keys);
    const KernelResult got = Solve(kernels(), problem);
    EXPECT_LE(RelativeError(got.output.data(), problem.Want().output), 1e-2) << large;
  }
}

TEST_P(Hostile, FastArithmeticTakesScalesOfZero) {
  KernelProblem problem(DType::kQ8_0, rows(), 70, 64, 64, 3);
  problem.fast = true;
  std::fill(problem.values.bytes.begin(), problem.values.bytes.end(), std::byte{0});
  const KernelResult got = Solve(kernels(), problem);
  for (const float output : got.output) EXPECT_EQ(output, 0.0f);
}

TEST_P(Hostile, FastArithmeticTakesNegativeScales) {
  KernelProblem problem(DType::kQ8_0, rows(), 300, 64, 64, 3);
  problem.fast = true;
  const KernelResult before = Solve(kernels(), problem);
  for (std::int64_t block = 70 * 2; block < 150 * 2; block += 3) {
    NegateQ8Block(problem.keys, block);
    NegateQ8Block(problem.values, block);
  }
  const KernelResult got = Solve(kernels(), problem);
  EXPECT_LE(RelativeError(got.output.data(), problem.Want().output), 1e-2);
  EXPECT_EQ(got.lse, before.lse);
}

// The last key row ends where an unreadable page begins.
TEST_P(Hostile, ReadsNothingBehindTheLastRow) {
  for (const DType type : {DType::kF16, DType::kBF16, DType::kQ8_0}) {
    for (const int dim : {64, 80}) {
      if (type == DType::kQ8_0 && dim % kQ8BlockSize != 0) continue;
      ReadToTheEdge(kernels(), rows(), type, dim);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, Hostile,
                         ::testing::Combine(::testing::ValuesIn(AvailableIsas()),
                                            ::testing::Values(4, 7, 40)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_rows" +
                                  std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace coppice::testing
