// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Every kernel table of this machine, forced one by one, against float64 on the same rounded
// inputs: all types, dims, row counts around the edges of tiles, runs of every shape.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "kernels/problem.h"

namespace coppice::testing {
namespace {

constexpr double kF32Bound = 4e-6;
constexpr double kTwoPartBound = 2e-5;  // of bf16
constexpr double kBf16Bound = 3e-3;
constexpr double kBf16RowBound = 4e-3;      // of one to eight rows, which average less
constexpr double kRoundedKeysBound = 5e-3;  // of keys and values that are rounded to bf16 too
constexpr double kInt8Nmse = 4e-4;

bool Has(const std::string& kernel, const char* word) {
  return kernel.find(word) != std::string::npos;
}

// Of a kernel, by the arithmetic that it names.
double BoundOf(const std::string& kernel, DType type) {
  if (Has(kernel, "int8")) return std::sqrt(kInt8Nmse);
  if (Has(kernel, "bf16x")) return kTwoPartBound;
  if (!Has(kernel, "bf16")) return kF32Bound;
  if (type != DType::kBF16) return kRoundedKeysBound;
  return Has(kernel, "rows") ? kBf16RowBound : kBf16Bound;
}

bool HasFastArithmetic(const KernelTable& kernels, DType type, int rows) {
  AttendShape shape = {
      .rows = rows, .dim_k = 128, .dim_v = 128, .key_type = type, .value_type = type};
  const std::string_view exact = kernels.kernel(shape);
  shape.fast = true;
  return kernels.kernel(shape) != exact;
}

std::string KernelOf(const KernelTable& kernels, const KernelProblem& problem) {
  return std::string(kernels.kernel({.rows = problem.rows(),
                                     .dim_k = static_cast<int>(problem.keys.dim),
                                     .dim_v = static_cast<int>(problem.values.dim),
                                     .key_type = problem.keys.type,
                                     .value_type = problem.values.type,
                                     .fast = problem.fast}));
}

void ExpectClose(const KernelTable& kernels, const KernelProblem& problem,
                 const std::string& what) {
  const double bound = BoundOf(KernelOf(kernels, problem), problem.keys.type);
  const ReferenceResult want = problem.Want();
  const KernelResult got = Solve(kernels, problem);
  ASSERT_EQ(got.lse.size(), want.lse.size()) << what << ": wrote beyond its scratch";
  EXPECT_LE(RelativeError(got.output.data(), want.output), bound) << what;
  for (std::size_t row = 0; row < want.lse.size(); ++row) {
    if (want.lse[row] == -kInfinity) {
      EXPECT_EQ(got.lse[row], -kInfinity) << what << " row " << row;
    } else {
      EXPECT_NEAR(got.lse[row], want.lse[row],
                  std::max(1e-5, bound) * (1 + std::abs(want.lse[row])))
          << what;
    }
  }
}

class AttendKernel : public ::testing::TestWithParam<std::string> {
 protected:
  const KernelTable& kernels() const { return *FindKernels(GetParam()); }
};

TEST_P(AttendKernel, AllTypesAndDims) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0}) {
    for (const auto& [dim_k, dim_v] :
         {std::pair{64, 64}, {80, 80}, {96, 96}, {128, 128}, {192, 128}, {256, 256}, {16, 48}}) {
      if (type == DType::kQ8_0 && (dim_k % 32 != 0 || dim_v % 32 != 0)) continue;
      for (const int rows : {1, 4, 7, 9, 70}) {
        const KernelProblem problem(type, rows, 333, dim_k, dim_v, 7);
        ExpectClose(kernels(), problem,
                    std::string(NameOf(type)) + " dims " + std::to_string(dim_k) + "/" +
                        std::to_string(dim_v) + " rows " + std::to_string(rows));
      }
    }
  }
}

// What is left behind whole slices of values and whole blocks of registers.
TEST_P(AttendKernel, OddMultiplesOfTheSmallestDim) {
  const int unit = kernels().dim_multiple;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const auto& [units_k, units_v] : {std::pair{1, 1}, {3, 5}, {7, 3}}) {
      for (const int rows : {1, 4, 7, 9, 70}) {
        const KernelProblem problem(type, rows, 101, units_k * unit, units_v * unit, 13);
        ExpectClose(kernels(), problem,
                    std::string(NameOf(type)) + " units " + std::to_string(units_k) + "/" +
                        std::to_string(units_v) + " rows " + std::to_string(rows));
      }
    }
  }
}

TEST_P(AttendKernel, RowAndKeyCountsAroundTileEdges) {
  for (const int rows :
       {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 48, 63, 64, 65, 97, 128, 130}) {
    for (const int keys : {1, 2, 3, 31, 32, 33, 95, 96, 97, 200}) {
      const KernelProblem problem(DType::kF16, rows, keys, 64, 64,
                                  static_cast<std::uint32_t>(rows * 1000 + keys));
      ExpectClose(kernels(), problem,
                  "rows " + std::to_string(rows) + " keys " + std::to_string(keys));
    }
  }
}

TEST_P(AttendKernel, RunsOfAnyShapeAndRangesOfEachRow) {
  for (const int rows : {3, 8, 24, 100}) {
    KernelProblem problem(DType::kF16, rows, 900, 64, 64, 11);
    problem.runs = {{0, 5}, {7, 8}, {20, 22}, {64, 128}, {130, 331}, {700, 701}, {702, 900}};
    for (int row = 0; row < rows; ++row) {
      problem.visible[static_cast<std::size_t>(row)] = {row % 3 * 9, 600 + row * 3};
    }
    problem.visible[0] = {50, 60};    // between runs: empty
    problem.visible[1] = {700, 701};  // one key
    ExpectClose(kernels(), problem, "rows " + std::to_string(rows));
  }
}

TEST_P(AttendKernel, MasksAreAdded) {
  for (const int rows : {1, 4, 8, 40}) {
    KernelProblem problem(DType::kF16, rows, 300, 64, 64, 5);
    std::mt19937 random(3);
    for (int row = 0; row < rows; ++row) {
      std::vector<float>& mask = problem.mask.emplace_back(300);
      for (float& bias : mask) {
        const auto choice = random() % 4;
        bias = choice == 0 ? -std::numeric_limits<float>::infinity() : choice == 1 ? -1.5f : 0.0f;
      }
    }
    problem.mask[0].assign(300, -std::numeric_limits<float>::infinity());
    ExpectClose(kernels(), problem, "rows " + std::to_string(rows));
  }
}

TEST_P(AttendKernel, LongContextKeepsItsAccuracy) {
  for (const DType type : {DType::kF16, DType::kBF16, DType::kQ8_0}) {
    for (const int rows : {4, 7, 48}) {
      const std::string what = std::string(NameOf(type)) + ", rows " + std::to_string(rows);
      const KernelProblem flat(type, rows, 16384, 128, 128, 21);
      ExpectClose(kernels(), flat, "flat, " + what);
      const KernelProblem peaked(type, rows, 16384, 128, 128, 21, 6);
      ExpectClose(kernels(), peaked, "peaked, " + what);
    }
  }
}

TEST_P(AttendKernel, SameBitsEveryTime) {
  const KernelProblem problem(DType::kF16, 70, 500, 64, 64, 2);
  const KernelResult first = Solve(kernels(), problem);
  for (int repeat = 0; repeat < 20; ++repeat) {
    const KernelResult again = Solve(kernels(), problem);
    EXPECT_EQ(std::memcmp(again.output.data(), first.output.data(), 4 * first.output.size()), 0);
    EXPECT_EQ(again.lse, first.lse);
  }
}

// What a caller says of the call before and the next one moves memory, and nothing else.
TEST_P(AttendKernel, HintsChangeNoResult) {
  for (const DType type : {DType::kF16, DType::kBF16, DType::kQ8_0}) {
    for (const int rows : {1, 4, 7, 20}) {
      for (const bool fast : {false, true}) {
        KernelProblem problem(type, rows, 400, 64, 64, 17);
        problem.fast = fast;
        problem.runs = {{3, 90}, {120, 250}};
        const KernelResult without = Solve(kernels(), problem);
        problem.fetched = true;
        problem.same_queries = true;
        for (const KeyRange ahead : {KeyRange{}, {250, 400}, {399, 400}, {0, 64}}) {
          problem.ahead = ahead;
          const KernelResult with = Solve(kernels(), problem);
          EXPECT_EQ(with.output, without.output) << NameOf(type) << " from " << ahead.begin;
          EXPECT_EQ(with.lse, without.lse) << NameOf(type) << " from " << ahead.begin;
        }
      }
    }
  }
}

// No key of these is seen, and what lies ahead must not take their place.
TEST_P(AttendKernel, KeysAheadAreNotAttendedTo) {
  for (const int rows : {1, 7, 20}) {
    KernelProblem problem(DType::kF16, rows, 200, 64, 64, 19);
    problem.runs = {};
    problem.ahead = {10, 200};
    const KernelResult got = Solve(kernels(), problem);
    EXPECT_EQ(got.lse, std::vector<float>(static_cast<std::size_t>(rows), -kInfinity));
    EXPECT_EQ(got.output, std::vector<float>(static_cast<std::size_t>(rows) * 64, 0.0f));
  }
}

// Fast arithmetic: what each type may lose, by the kernel that it gets.
void ExpectFastWithinBounds(const KernelTable& kernels, DType type, int rows, int keys, int dim_k,
                            int dim_v) {
  KernelProblem problem(type, rows, keys, dim_k, dim_v, 7);
  problem.fast = true;
  const std::string kernel = KernelOf(kernels, problem);
  const KernelResult got = Solve(kernels, problem);
  ASSERT_FALSE(got.lse.empty()) << kernel << ": wrote beyond its scratch";
  const double error = RelativeError(got.output.data(), problem.Want().output);
  const double bound = BoundOf(kernel, type);
  EXPECT_LE(error, bound) << kernel << ", dims " << dim_k << "/" << dim_v << ", rows " << rows
                          << ", keys " << keys;
}

TEST_P(AttendKernel, FastArithmeticStaysWithinItsBounds) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0}) {
    for (const auto& [dim_k, dim_v] : {std::pair{64, 64}, {96, 96}, {192, 128}, {256, 256}}) {
      for (const int rows : {1, 4, 9, 17, 33, 70}) {
        for (const int keys : {1, 2, 95, 97, 333}) {
          ExpectFastWithinBounds(kernels(), type, rows, keys, dim_k, dim_v);
        }
      }
    }
  }
}

// Kernels of few rows take four or eight at a time and slices of 64 and 32 elements.
TEST_P(AttendKernel, FastArithmeticOfFewRowsStaysWithinItsBounds) {
  for (const int rows : {1, 2, 3, 4, 5, 6, 7, 8}) {
    for (const int keys : {1, 2, 95}) {
      ExpectFastWithinBounds(kernels(), DType::kF16, rows, keys, 80, 112);
      ExpectFastWithinBounds(kernels(), DType::kBF16, rows, keys, 80, 112);
      ExpectFastWithinBounds(kernels(), DType::kQ8_0, rows, keys, 96, 160);
    }
  }
}

TEST_P(AttendKernel, FastArithmeticHidesWhatARowDoesNotSee) {
  for (const DType type : {DType::kBF16, DType::kQ8_0}) {
    for (const int rows : {6, 40}) {
      KernelProblem problem(type, rows, 900, 64, 64, 11);
      problem.fast = true;
      problem.runs = {{0, 5}, {7, 8}, {20, 22}, {64, 128}, {130, 331}, {700, 701}, {702, 900}};
      for (int row = 0; row < rows; ++row) {
        problem.visible[static_cast<std::size_t>(row)] = {row % 3 * 9, 600 + row * 3};
      }
      problem.visible[0] = {50, 60};    // between runs: empty
      problem.visible[1] = {700, 701};  // one key
      const KernelResult got = Solve(kernels(), problem);
      EXPECT_LE(RelativeError(got.output.data(), problem.Want().output), 2e-2) << NameOf(type);
      EXPECT_EQ(got.lse[0], -std::numeric_limits<float>::infinity());
    }
  }
}

// An error of a score is a relative one of its weight, so peaked attention suffers more; the sums
// themselves must not lose anything over many chunks. Exact kernels have LongContextKeepsItsAccuracy.
TEST_P(AttendKernel, FastArithmeticKeepsItsAccuracyOverLongContexts) {
  int kernels_tested = 0;
  for (const DType type : {DType::kBF16, DType::kQ8_0}) {
    for (const int rows : {4, 7, 48}) {
      if (!HasFastArithmetic(kernels(), type, rows)) continue;
      ++kernels_tested;
      for (const auto& [sharpness, bound] : {std::pair{1.0f, 8e-3}, {4.0f, 3e-2}}) {
        KernelProblem problem(type, rows, 16384, 128, 128, 21, sharpness);
        problem.fast = true;
        const KernelResult got = Solve(kernels(), problem);
        EXPECT_LE(RelativeError(got.output.data(), problem.Want().output), bound)
            << NameOf(type) << ", rows " << rows << ", sharpness " << sharpness;
      }
    }
  }
  if (kernels_tested == 0) GTEST_SKIP() << "no kernel is faster than the exact ones";
}

// Scores add next to no error here, so this is what rounding weights costs.
TEST_P(AttendKernel, FastArithmeticOfFlatAttentionIsBetterThanBf16) {
  for (const int rows : {1, 4, 8}) {
    KernelProblem problem(DType::kQ8_0, rows, 1000, 128, 128, 3, 0.05f);
    problem.fast = true;
    const KernelResult got = Solve(kernels(), problem);
    EXPECT_LE(RelativeError(got.output.data(), problem.Want().output), 4e-3) << rows;
  }
}

// Several KV heads in one call give what each gives alone, also where the first row sees only some of the keys.
void ExpectTogetherAsApart(const KernelTable& kernels, DType type, bool fast, int rows) {
  constexpr int kProblems = 19;  // more than one pass of the few-rows kernel takes
  constexpr int kKeys = 237;     // four chunks of it
  std::vector<KernelProblem> problems;
  for (int p = 0; p < kProblems; ++p) {
    problems.emplace_back(type, rows, kKeys, 64, 64, static_cast<std::uint32_t>(p + 50));
    problems[p].fast = fast;
    problems[p].visible[0].begin = 70;
  }
  if (type == DType::kQ8_0) NegateQ8Block(problems[3].values, 200 * 2);  // computed in another way
  std::vector<std::vector<const float*>> queries(kProblems);
  std::vector<std::vector<float*>> outputs(kProblems);
  std::vector<std::vector<float>> output(kProblems), lses(kProblems);
  std::vector<AttendArgs> args(kProblems);
  AlignedBytes scratch = AllocateAligned(kernels.attend_scratch({.rows = rows,
                                                                 .problems = kProblems,
                                                                 .dim_k = 64,
                                                                 .dim_v = 64,
                                                                 .key_type = type,
                                                                 .value_type = type,
                                                                 .fast = fast}));
  const KeySegment segment = {
      .runs = problems[0].runs.data(), .run_count = 1, .visible = problems[0].visible.data()};
  const auto row_bytes = static_cast<std::int64_t>(RowBytes(type, 64));
  for (int p = 0; p < kProblems; ++p) {
    output[p].resize(static_cast<std::size_t>(rows) * 64);
    lses[p].resize(static_cast<std::size_t>(rows));
    for (int row = 0; row < rows; ++row) {
      queries[p].push_back(problems[p].queries.values.data() + row * 64);
      outputs[p].push_back(output[p].data() + row * 64);
    }
    args[p] = {.rows = rows,
               .queries = queries[p].data(),
               .keys = {problems[p].keys.bytes.data(), row_bytes, type, 64},
               .values = {problems[p].values.bytes.data(), row_bytes, type, 64},
               .scale = problems[p].scale,
               .fast = fast,
               .segments = &segment,
               .segment_count = 1,
               .outputs = outputs[p].data(),
               .lses = lses[p].data(),
               .scratch = scratch.get()};
  }
  kernels.attend(args.data(), kProblems);
  for (int p = 0; p < kProblems; ++p) {
    const KernelResult alone = Solve(kernels, problems[p]);
    EXPECT_EQ(output[p], alone.output) << NameOf(type) << ", rows " << rows << ", problem " << p;
    EXPECT_EQ(lses[p], alone.lse) << NameOf(type) << ", rows " << rows << ", problem " << p;
  }
}

TEST_P(AttendKernel, ProblemsTogetherEqualProblemsApart) {
  for (const DType type : {DType::kF16, DType::kBF16, DType::kQ8_0}) {
    for (const bool fast : {false, true}) {
      for (const int rows : {4, 20}) ExpectTogetherAsApart(kernels(), type, fast, rows);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, AttendKernel, ::testing::ValuesIn(AvailableIsas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace coppice::testing
