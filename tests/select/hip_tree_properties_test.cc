// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What holds for every tree search, whatever the settings: checked on drawn settings and inputs,
// with every kernel table that runs here.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "select/select_support.h"
#include "select/selector.h"

namespace coppice {
namespace {

using testing::RunSelector;
using testing::Selection;
using testing::SelectProblem;

int Draw(int low, int high, const char* name) { return *rc::gen::inRange(low, high + 1).as(name); }

AttentionSettings DrawSettings() {
  AttentionSettings settings;
  settings.breadth = Draw(1, 9, "breadth");
  settings.probe = Draw(0, 9, "probe");
  settings.balance = Draw(0, 1, "balance") == 1;
  settings.budget = Draw(1, 300, "budget");
  settings.block_k = Draw(1, 64, "block_k");
  settings.query_stride = Draw(1, 9, "query_stride");
  settings.sink = Draw(0, 40, "sink");
  settings.window = Draw(0, 200, "window");
  settings.representative =
      Draw(0, 1, "center") == 1 ? Representative::kCenter : Representative::kFirst;
  return settings;
}

SelectProblem DrawProblem(const AttentionSettings& settings, int dim) {
  SelectProblem problem;
  problem.tokens = Draw(1, 20, "tokens");
  problem.heads = Draw(1, 4, "heads");
  problem.dim = dim;
  const int covered = settings.sink + settings.window + settings.budget;
  problem.visible = std::max(1, covered + Draw(-100, 1500, "visible beyond what is covered"));
  problem.Resize();
  std::uint32_t state = *rc::gen::arbitrary<std::uint32_t>().as("seed") | 1;
  const auto next = [&state] {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31f;
  };
  std::generate(problem.queries.begin(), problem.queries.end(), next);
  std::generate(problem.keys.begin(), problem.keys.end(), next);
  return problem;
}

// The smallest dim that the table takes, and not less than 8.
int SmallDim(const KernelTable& kernels) { return std::max(8, kernels.dim_multiple); }

TEST(HipTreeProperties, TheListIsSortedUniqueSearchedAndWithinTheBudget) {
  for (const KernelTable* kernels : AvailableKernels()) {
    EXPECT_TRUE(rc::check(std::string(kernels->isa), [kernels] {
      const AttentionSettings settings = DrawSettings();
      const SelectProblem problem = DrawProblem(settings, SmallDim(*kernels));
      const std::unique_ptr<Selector> selector = MakeSelector(settings).value();
      const Selection selection = RunSelector(*selector, *kernels, problem);
      RC_ASSERT(selection.in_bounds);

      const int searched = problem.visible - settings.sink - settings.window;
      RC_ASSERT(selection.everything == (searched <= settings.budget));
      if (selection.everything) return;
      const int slots = (settings.budget + settings.block_k - 1) / settings.block_k;
      RC_ASSERT(static_cast<int>(selection.starts.size()) == slots);
      RC_ASSERT(selector->Capacity() == slots);
      std::int32_t previous = settings.sink - settings.block_k;
      for (const std::int32_t start : selection.starts) {
        RC_ASSERT(start >= previous + settings.block_k);
        RC_ASSERT((start - settings.sink) % settings.block_k == 0);
        RC_ASSERT(start < problem.visible - settings.window);
        previous = start;
      }
    }));
  }
}

// The problem's newest query block, or an older one.
SelectProblem BlockOf(const SelectProblem& problem, int first, int last) {
  SelectProblem block = problem;
  block.tokens = last - first;
  block.visible -= problem.tokens - last;
  const auto row = static_cast<std::ptrdiff_t>(problem.heads) * problem.dim;
  block.queries.assign(problem.queries.begin() + first * row, problem.queries.begin() + last * row);
  return block;
}

TEST(HipTreeProperties, ABlockSelectsTheSameAloneAndWithItsNeighbours) {
  for (const KernelTable* kernels : AvailableKernels()) {
    EXPECT_TRUE(rc::check(std::string(kernels->isa), [kernels] {
      AttentionSettings settings = DrawSettings();
      settings.window = Draw(settings.block_k, 200, "window");
      settings.fast = Draw(0, 1, "fast") == 1;
      const auto type =
          *rc::gen::element(DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0).as("type");
      SelectProblem problem = DrawProblem(settings, kQ8BlockSize);
      const int block_q = Draw(1, 16, "block_q");
      problem.tokens = Draw(1, 8 * block_q, "tokens of all blocks");
      problem.visible = std::max(problem.visible, problem.tokens);
      const std::vector<float> drawn = problem.keys;
      problem.Resize();
      for (std::size_t i = 0; i < problem.queries.size(); ++i) {
        problem.queries[i] = drawn[(i * 7 + 3) % drawn.size()];
      }
      const std::unique_ptr<Selector> selector = MakeSelector(settings).value();
      const testing::KeyCache cache(problem, type);
      const std::vector<Selection> together =
          testing::RunTogether(*selector, *kernels, problem, cache.View(), block_q);
      for (int first = 0; first < problem.tokens; first += block_q) {
        const int last = std::min(first + block_q, problem.tokens);
        const Selection alone =
            RunSelector(*selector, *kernels, BlockOf(problem, first, last), cache.View());
        const Selection& shared = together[static_cast<std::size_t>(first / block_q)];
        RC_ASSERT(shared.in_bounds);
        RC_ASSERT(shared.everything == alone.everything);
        RC_ASSERT(shared.starts == alone.starts);
      }
    }));
  }
}

// Scores that fall with the distance from one key are what the search counts on (locality, theorem
// 1): then three branches are enough for the key's own branch never to be cut.
TEST(HipTreeProperties, AKeyWhoseNeighbourhoodIsRaisedIsFound) {
  for (const KernelTable* kernels : AvailableKernels()) {
    EXPECT_TRUE(rc::check(std::string(kernels->isa), [kernels] {
      AttentionSettings settings = DrawSettings();
      settings.budget = std::max(settings.budget, 3 * settings.block_k);
      SelectProblem problem;
      problem.tokens = 2;
      problem.dim = SmallDim(*kernels);
      const int slots = (settings.budget + settings.block_k - 1) / settings.block_k;
      const int blocks = Draw(slots + 1, 12 * slots, "blocks");
      problem.visible = settings.sink + settings.window + blocks * settings.block_k;
      problem.Resize();
      // The last edge may round down, which leaves the newest block out of the search.
      const int branches = std::min(slots * settings.breadth, blocks);
      const int covered = static_cast<int>(static_cast<double>(blocks) / branches * branches);
      const int planted =
          settings.sink + Draw(0, covered * settings.block_k - 1, "planted (searched)");
      for (int j = 0; j < problem.visible; ++j) {
        problem.keys[static_cast<std::size_t>(j) * problem.dim] =
            -static_cast<float>(std::abs(j - planted));
      }
      for (int t = 0; t < problem.tokens; ++t) problem.queries[t * problem.dim] = 1;

      const Selection selection = RunSelector(*MakeSelector(settings).value(), *kernels, problem);
      RC_ASSERT(selection.in_bounds);
      const int block_start = planted - (planted - settings.sink) % settings.block_k;
      RC_ASSERT(std::count(selection.starts.begin(), selection.starts.end(), block_start) == 1);
    }));
  }
}

TEST(HipTreeProperties, KeysOutsideOfTheSearchDoNotMatter) {
  for (const KernelTable* kernels : AvailableKernels()) {
    EXPECT_TRUE(rc::check(std::string(kernels->isa), [kernels] {
      AttentionSettings settings = DrawSettings();
      settings.window += settings.block_k - 1;  // the last block may reach that far
      settings.balance = false;
      SelectProblem problem = DrawProblem(settings, SmallDim(*kernels));
      const std::unique_ptr<Selector> selector = MakeSelector(settings).value();
      const Selection before = RunSelector(*selector, *kernels, problem);
      const int last_searched = problem.visible - settings.window + settings.block_k - 1;
      for (int j = 0; j < problem.visible; ++j) {
        if (j >= settings.sink && j < last_searched) continue;
        std::fill_n(problem.keys.begin() + std::ptrdiff_t{j} * problem.dim, problem.dim, 1e6f);
      }
      const Selection after = RunSelector(*selector, *kernels, problem);
      RC_ASSERT(before.everything == after.everything);
      RC_ASSERT(before.starts == after.starts);
    }));
  }
}

// Every block is a branch, two are kept. Keys are 0 to 6 along the first axis and nothing along the
// second, but for the needle, a searched key that lies along the second.
struct Haystack {
  AttentionSettings settings = DrawSettings();
  SelectProblem problem;
  int needle = 0;

  Haystack(int tokens, int heads, int dim) {
    settings.budget = 2 * settings.block_k;
    settings.breadth = 4096;
    settings.window = Draw(tokens, 200, "window");
    problem.tokens = tokens;
    problem.heads = heads;
    problem.dim = dim;
    const int blocks = Draw(4, 40, "blocks");
    problem.visible = settings.sink + settings.window + blocks * settings.block_k;
    problem.Resize();
    for (int j = 0; j < problem.visible; ++j) Key(j)[0] = static_cast<float>(j % 7);
    needle = settings.sink + Draw(0, blocks * settings.block_k - 1, "needle (searched)");
    Key(needle)[0] = -1;
    Key(needle)[1] = 10;
  }

  float* Key(int j) { return problem.keys.data() + std::ptrdiff_t{j} * problem.dim; }
  float* Newest() { return Key(problem.visible - 1); }

  bool Found(const KernelTable& kernels) const {
    const Selection selection = RunSelector(*MakeSelector(settings).value(), kernels, problem);
    RC_ASSERT(selection.in_bounds);
    return std::any_of(selection.starts.begin(), selection.starts.end(), [&](int start) {
      return start <= needle && needle < start + settings.block_k;
    });
  }
};

// Two heads share a selection. The first has long queries, of no use: every key of the search is less
// to it than what it sees nearby. The second attends to one far key alone.
TEST(HipTreeProperties, BalancedALoudHeadDoesNotHideWhatAQuietOneNeeds) {
  for (const KernelTable* kernels : AvailableKernels()) {
    EXPECT_TRUE(rc::check(std::string(kernels->isa), [kernels] {
      Haystack stack(/*tokens=*/1, /*heads=*/2, SmallDim(*kernels));
      stack.problem.queries[0] = 1000;
      stack.problem.queries[stack.problem.dim + 1] = 30;
      stack.Newest()[0] = 100;
      stack.settings.balance = true;
      RC_ASSERT(stack.Found(*kernels));
      stack.settings.balance = false;
      if (stack.settings.block_k == 1) RC_ASSERT(!stack.Found(*kernels));
    }));
  }
}

// Two tokens share a selection. The first attends to one far key; the key of the second would be far
// more to it, but is newer than it, and so no measure of what it needs.
TEST(HipTreeProperties, BalancedATokenIsMeasuredByWhatItSeesAlone) {
  for (const KernelTable* kernels : AvailableKernels()) {
    EXPECT_TRUE(rc::check(std::string(kernels->isa), [kernels] {
      Haystack stack(/*tokens=*/2, /*heads=*/1, SmallDim(*kernels));
      stack.problem.queries[1] = 30;
      stack.problem.queries[stack.problem.dim] = 1000;
      stack.Newest()[0] = 7;
      stack.Newest()[1] = 1000;
      stack.settings.query_stride = 1;
      stack.settings.balance = true;
      RC_ASSERT(stack.Found(*kernels));
    }));
  }
}

}  // namespace
}  // namespace coppice
