// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The tree search of HiP attention (arXiv 2406.09827, section 3): find the key blocks that a query
// block needs by scoring one representative of each branch, and never looking at most of the keys.
// Of sink and window it knows where they end the searched range and, balanced, what a row sees there
// (below); of causality nothing more:
// with window >= block_q + block_k - 1 every key that it scores is older than every query of the
// block; with less, early queries are scored with keys that attention hides from them.
//
//   searched: [sink, visible - window), B = ceil(length / b_k) blocks; kept: M = ceil(budget / b_k)
//
//   |sink|.........:.........:.........:.........|window|     M branches of B / M blocks
//        |f...:f...|f...:f...|f...:f...|f...:f...|            each splits: 2 M candidates
//              ^^^^ ^^^^           ^^^^ ^^^^                  the M best stay, and split again:
//              f.f. f.f.           f.f. f.f.                  ceil(log2(B / M)) rounds
//
//   score(branch) = max of q . k - level(q) over the chosen query rows and the keys of the branch's
//                   representative: its first block (f above), or the one in its middle (theorem 1)
//
// The paper's level is zero. Rows of several heads then compete with products of different sizes, and
// a head with long queries decides for all that share the selection. Balanced, a row's level is the
// log-sum-exp of what it sees in sink and window, in units of q . k: branches are compared by how much
// of some row's attention they would take.
//
// With a breadth above 1 the search follows W = breadth * M branches instead, and only its last step
// keeps M: a branch then hides fewer keys behind its representative (B / W blocks), and there are
// fewer rounds. W = M is the paper's search; W >= B scores every block. What the rounds cost can be
// had back by a probe below b_k: they then score that many keys of a representative, and only the last
// step scores whole blocks.
//
// Positions are integers throughout and the branches cover the searched range (but see
// PlantBranches for one rounded edge). Every branch ends as one block: the first sizes are at most
// ceil(B / W), and halving upwards once for each halving of B / W brings that to one.
//
// Ties: the higher score, then the left-most branch. This is a total order, so the selection does
// not depend on the sorting algorithm or the library. A NaN score counts as +inf: the block is read
// and the NaN reaches the output, as with dense attention.
//
// Cost for R query rows of dim d: 2 R b_k d FLOP a candidate, 2 W candidates a round; with the
// first block as representative a left half keeps its parent's score, so W a round after the first.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>

#include "coppice/block_mask.h"
#include "coppice/settings.h"
#include "core/align.h"
#include "select/methods.h"
#include "select/selector.h"

namespace coppice {
namespace {

constexpr std::int32_t kUnscored = -1;

// Blocks [first, first + size) of the searched range.
struct Branch {
  std::int32_t first;
  std::int32_t size;    // at least 1
  std::int32_t scored;  // the block that `score` was computed from, or kUnscored
  float score;
};

struct Scratch {
  const float** rows;    // [rows] query rows that score
  float* levels;         // [rows]
  float** outputs;       // [rows] -> one row that nobody reads
  KeyRange* visible;     // [rows]
  float* ignored;        // [dim]
  Branch* kept;          // [slots] ascending
  Branch* candidates;    // [2 * slots] ascending
  std::int32_t* starts;  // [2 * slots] first tokens of the representatives to score
  std::int32_t* owners;  // [2 * slots] their candidates
  float* scores;         // [2 * slots] their scores
  std::int32_t* ranks;   // [2 * slots]
  std::byte* kernel;
};

// Integers in the order of the scores; -0 ties with +0, and NaN with +inf.
std::int32_t Rank(float score) {
  if (std::isnan(score)) score = std::numeric_limits<float>::infinity();
  const auto bits = std::bit_cast<std::int32_t>(score + 0.0f);
  return bits < 0 ? bits ^ std::numeric_limits<std::int32_t>::max() : bits;
}

// The rank of the `most`-th best, bit by bit: 32 plain counts, for which the compiler finds vector
// instructions, take 6 microseconds for 2,048 ranks where std::nth_element guesses wrong for 14.
std::int32_t LastKeptRank(const std::int32_t* ranks, std::size_t count, std::int32_t most) {
  std::uint32_t last = 0x80000000u;
  for (std::uint32_t bit = 0x80000000u; bit > 0; bit >>= 1) {
    const auto raised = static_cast<std::int32_t>(last + bit);
    std::int32_t above = 0;
    for (std::size_t i = 0; i < count; ++i) above += ranks[i] >= raised ? 1 : 0;
    if (above >= most) last += bit;
  }
  return static_cast<std::int32_t>(last);
}

class HipTree final : public Selector {
 public:
  explicit HipTree(const AttentionSettings& settings)
      : budget_(settings.budget),
        block_k_(settings.block_k),
        query_stride_(settings.query_stride),
        sink_(settings.sink),
        window_(settings.window),
        representative_(settings.representative),
        slots_((settings.budget - 1) / settings.block_k + 1),
        breadth_(settings.breadth),
        probe_(settings.probe == 0 ? settings.block_k : std::min(settings.probe, settings.block_k)),
        balance_(settings.balance),
        fast_(settings.fast) {}

  int Capacity() const override { return slots_; }

  std::size_t ScratchBytes(const KernelTable& kernels, int tokens, int heads_per_token,
                           int dim) const override {
    ScratchCutter cutter(nullptr);
    const int rows = ScoringRows(tokens, heads_per_token);
    CutScratch(cutter, rows, dim);
    std::size_t kernel = kernels.score_scratch(rows, dim);
    if (balance_) kernel = std::max(kernel, kernels.attend_scratch(LevelShape(rows, dim)));
    return cutter.used() + kernel;
  }

  std::int32_t Select(const KernelTable& kernels, const SelectArgs& args) const override {
    const std::int64_t searched = std::int64_t{args.visible} - window_ - sink_;
    if (searched <= budget_) return BlockMask::kEverything;
    const auto blocks = static_cast<std::int32_t>((searched - 1) / block_k_ + 1);

    ScratchCutter cutter(args.scratch);
    const int rows = ScoringRows(args.tokens, args.heads_per_token);
    const Scratch scratch = CutScratch(cutter, rows, args.keys.dim);
    CollectRows(args, scratch.rows);
    if (balance_) {
      MeasureLevels(kernels, args, rows, scratch);
    } else {
      std::fill_n(scratch.levels, rows, 0.0f);
    }

    const std::int32_t branches = std::min(MostBranches(), blocks);
    PlantBranches(blocks, branches, scratch.kept);
    for (double span = static_cast<double>(blocks) / branches; span > 1; span *= 0.5) {
      const std::size_t count = SplitAll(scratch.kept, branches, scratch.candidates);
      ScoreAll(kernels, args, rows, count, probe_, scratch);
      KeepBest(count, branches, scratch);
    }
    if (branches > slots_) {
      for (std::int32_t i = 0; i < branches; ++i) {
        scratch.candidates[i] = scratch.kept[i];
        if (probe_ != block_k_) scratch.candidates[i].scored = kUnscored;
      }
      const auto count = static_cast<std::size_t>(branches);
      ScoreAll(kernels, args, rows, count, block_k_, scratch);
      KeepBest(count, slots_, scratch);
    }
    for (int i = 0; i < slots_; ++i) args.starts[i] = FirstToken(scratch.kept[i].first);
    return slots_;
  }

 private:
  std::int32_t MostBranches() const {
    return static_cast<std::int32_t>(std::min<std::int64_t>(
        std::int64_t{slots_} * breadth_, std::numeric_limits<std::int32_t>::max() / 2));
  }

  // The one function that both measures and lays out; the kernel's scratch comes last.
  Scratch CutScratch(ScratchCutter& cutter, int rows, int dim) const {
    Scratch scratch;
    const auto most = static_cast<std::size_t>(MostBranches());
    scratch.rows = cutter.Take<const float*>(static_cast<std::size_t>(rows));
    scratch.levels = cutter.Take<float>(static_cast<std::size_t>(rows));
    scratch.outputs = cutter.Take<float*>(static_cast<std::size_t>(rows));
    scratch.visible = cutter.Take<KeyRange>(static_cast<std::size_t>(rows));
    scratch.ignored = cutter.Take<float>(static_cast<std::size_t>(dim));
    scratch.kept = cutter.Take<Branch>(most);
    scratch.candidates = cutter.Take<Branch>(2 * most);
    scratch.starts = cutter.Take<std::int32_t>(2 * most);
    scratch.owners = cutter.Take<std::int32_t>(2 * most);
    scratch.scores = cutter.Take<float>(2 * most);
    scratch.ranks = cutter.Take<std::int32_t>(2 * most);
    scratch.kernel = cutter.Take<std::byte>(0);
    return scratch;
  }

  // The last token of every stride scores. A ragged block leaves some over: the paper drops them (and
  // takes the last of all when there is no whole stride); balanced, strides are counted from the end,
  // since the newest token, whose prediction is next, must find what it needs.
  int FirstScoringToken(int tokens) const {
    return balance_ ? (tokens - 1) % query_stride_ : std::min(tokens, query_stride_) - 1;
  }

  int ScoringRows(int tokens, int heads_per_token) const {
    const int scoring = (tokens - 1 - FirstScoringToken(tokens)) / query_stride_ + 1;
    return scoring * heads_per_token;
  }

  void CollectRows(const SelectArgs& args, const float** rows) const {
    for (int t = FirstScoringToken(args.tokens); t < args.tokens; t += query_stride_) {
      const float* const* heads = args.queries + std::ptrdiff_t{t} * args.heads_per_token;
      rows = std::copy_n(heads, args.heads_per_token, rows);
    }
  }

  // Attention whose output nobody reads: the first elements of the keys do for values.
  static AttendShape LevelShape(int rows, int dim) {
    return {.rows = rows, .dim_k = dim, .dim_v = std::min(dim, static_cast<int>(kQ8BlockSize))};
  }

  void MeasureLevels(const KernelTable& kernels, const SelectArgs& args, int rows,
                     const Scratch& scratch) const {
    const KeyRange near[] = {{0, sink_}, {args.visible - window_, args.visible}};
    int row = 0;
    for (int t = FirstScoringToken(args.tokens); t < args.tokens; t += query_stride_) {
      const std::int32_t visible = args.visible - (args.tokens - 1 - t);
      for (int h = 0; h < args.heads_per_token; ++h) scratch.visible[row++] = {0, visible};
    }
    std::fill_n(scratch.outputs, rows, scratch.ignored);
    const KeySegment segment = {.runs = near, .run_count = 2, .visible = scratch.visible};
    RowsView values = args.keys;
    values.dim = LevelShape(rows, args.keys.dim).dim_v;
    const AttendArgs attend = {.rows = rows,
                               .queries = scratch.rows,
                               .keys = args.keys,
                               .values = values,
                               .scale = args.scale,
                               .segments = &segment,
                               .segment_count = 1,
                               .outputs = scratch.outputs,
                               .lses = scratch.levels,
                               .scratch = scratch.kernel};
    kernels.attend(&attend, 1);
    for (int r = 0; r < rows; ++r) {
      const float level = scratch.levels[r] / args.scale;
      scratch.levels[r] = std::isfinite(level) ? level : 0.0f;  // nothing near, or a scale of zero
    }
  }

  std::int32_t FirstToken(std::int32_t block) const { return sink_ + block * block_k_; }

  std::int32_t RepresentativeOf(const Branch& branch) const {
    return representative_ == Representative::kFirst ? branch.first
                                                     : branch.first + branch.size / 2;
  }

  // Edge j lies at trunc(B / W * j), in doubles and in this order of operations, so that everybody
  // gets the same edges. Rounding may put the last edge at B - 1, as with 61 blocks in 7 branches:
  // then the newest searched block is never a candidate.
  void PlantBranches(std::int32_t blocks, std::int32_t count, Branch* branches) const {
    const double span = static_cast<double>(blocks) / count;
    std::int32_t edge = 0;
    for (int j = 0; j < count; ++j) {
      const auto next = static_cast<std::int32_t>(span * (j + 1));
      branches[j] = {edge, next - edge, kUnscored, 0.0f};
      edge = next;
    }
  }

  // Left halves get floor(size / 2) blocks. A branch of one block has no left half and stays whole.
  std::size_t SplitAll(const Branch* parents, std::int32_t count, Branch* children) const {
    Branch* child = children;
    for (std::int32_t i = 0; i < count; ++i) {
      Branch left = parents[i];
      Branch right = parents[i];
      left.size /= 2;
      right.first += left.size;
      right.size -= left.size;
      if (left.size > 0) *child++ = left;
      *child++ = right;
    }
    return static_cast<std::size_t>(child - children);
  }

  // One kernel call for all whose representative is not the one that scored their parent, by `keys`
  // keys of it: its first ones, or those in its middle.
  void ScoreAll(const KernelTable& kernels, const SelectArgs& args, int rows, std::size_t count,
                std::int32_t keys, const Scratch& scratch) const {
    const std::int32_t skipped =
        representative_ == Representative::kFirst ? 0 : (block_k_ - keys) / 2;
    int asked = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const std::int32_t block = RepresentativeOf(scratch.candidates[i]);
      if (scratch.candidates[i].scored == block) continue;
      scratch.candidates[i].scored = block;
      scratch.starts[asked] = std::min(FirstToken(block) + skipped, args.visible - 1);
      scratch.owners[asked] = static_cast<std::int32_t>(i);
      ++asked;
    }
    ScoreArgs score;
    score.rows = rows;
    score.queries = scratch.rows;
    score.levels = scratch.levels;
    score.keys = args.keys;
    score.starts = scratch.starts;
    score.count = asked;
    score.block_size = keys;
    score.limit = args.visible;
    score.fast = fast_;
    score.scores = scratch.scores;
    score.scratch = scratch.kernel;
    kernels.score_blocks(score);
    for (int i = 0; i < asked; ++i) {
      scratch.candidates[scratch.owners[i]].score = scratch.scores[i];
    }
  }

  // The `most` best candidates, in ascending order of position.
  void KeepBest(std::size_t count, std::int32_t most, const Scratch& scratch) const {
    for (std::size_t i = 0; i < count; ++i) scratch.ranks[i] = Rank(scratch.candidates[i].score);
    const std::int32_t last = LastKeptRank(scratch.ranks, count, most);
    std::int32_t better = 0;
    for (std::size_t i = 0; i < count; ++i) better += scratch.ranks[i] > last ? 1 : 0;
    std::int32_t ties = most - better;  // the left-most of those that rank last
    std::int32_t kept = 0;
    for (std::size_t i = 0; i < count && kept < most; ++i) {
      scratch.kept[kept] = scratch.candidates[i];
      const bool tie = scratch.ranks[i] == last && ties > 0;
      ties -= tie ? 1 : 0;
      kept += scratch.ranks[i] > last || tie ? 1 : 0;
    }
  }

  std::int64_t budget_;  // tokens, as are block_k_, sink_ and window_
  std::int32_t block_k_;
  int query_stride_;
  std::int32_t sink_;
  std::int32_t window_;
  Representative representative_;
  int slots_;           // M: blocks that are kept
  int breadth_;         // W / M
  std::int32_t probe_;  // keys of a representative that are scored
  bool balance_;
  bool fast_;
};

}  // namespace

std::unique_ptr<Selector> MakeHipTree(const AttentionSettings& settings) {
  return std::make_unique<HipTree>(settings);
}

}  // namespace coppice
