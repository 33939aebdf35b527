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
// Neighbouring query blocks may be searched together, round by round: what any of them asks for is read
// once and scored for the rows of all. That changes what is read, not what is selected (but see amx/ for
// products that are not finite).
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
#include <span>

#include "coppice/block_mask.h"
#include "coppice/settings.h"
#include "core/align.h"
#include "select/methods.h"
#include "select/selector.h"

namespace coppice {
namespace {

constexpr std::int32_t kUnscored = -1;
constexpr std::uint64_t kPlantStep = 256;  // tokens, at most: two groups of eight query blocks
// Query blocks that it pays to search together, at least, where each scores every key block. Zen 4, 8/2 heads x
// 128, 4 and 8 Ki tokens, the search alone: bf16 with `--fast` 15 and 15 to 19 % faster than one by one, two 8
// to 11, eight as four; f16 in f32 7 to 9 and 5 to 11.
constexpr int kSharingAll = 4;

// Blocks [first, first + size) of the searched range.
struct Branch {
  std::int32_t first;
  std::int32_t size;    // at least 1
  std::int32_t scored;  // the block that `score` was computed from, or kUnscored
  float score;
};

// The search of one query block.
struct Search {
  Branch* kept;           // [slots] ascending
  Branch* candidates;     // [2 * slots] ascending
  std::int32_t* owners;   // [2 * slots] the candidates that are scored now
  std::int32_t* places;   // [2 * slots] where their scores are found
  double span;            // blocks of a branch, on average; above 1 while branches split
  std::int32_t branches;  // that are kept
  std::int32_t count;     // of candidates
  std::int32_t asked;     // of owners
};

struct Scratch {
  Search* searches;        // [query blocks]
  const float** rows;      // [query blocks][rows] query rows that score
  float* levels;           // [query blocks][rows]
  float** outputs;         // [rows] -> one row that nobody reads
  KeyRange* visible;       // [rows]
  float* ignored;          // [dim]
  std::int32_t* starts;    // [representatives + 1] first tokens of those to score
  float* scores;           // [query blocks][representatives]
  std::int32_t* ranks;     // [2 * slots]
  std::int32_t* place_of;  // [key blocks] see ScoreAll; several query blocks only
  std::byte* kernel;
};

// Integers in the order of the scores; -0 ties with +0, and NaN with +inf.
std::int32_t Rank(float score) {
  if (std::isnan(score)) score = std::numeric_limits<float>::infinity();
  const auto bits = std::bit_cast<std::int32_t>(score + 0.0f);
  return bits < 0 ? bits ^ std::numeric_limits<std::int32_t>::max() : bits;
}

// The `most` best are those with higher ranks and, where these are fewer, the left-most with this one. Found
// bit by bit of what the ranks differ in: plain counts, for which the compiler finds vector instructions,
// take 3 microseconds for 2,048 ranks where std::nth_element guesses wrong for 14.
std::int32_t LastKeptRank(const std::int32_t* ranks, std::size_t count, std::int32_t most) {
  constexpr std::uint32_t kSign = 0x80000000u;  // flipped, the order is that of unsigned numbers
  std::uint32_t differ = 0;
  for (std::size_t i = 0; i < count; ++i) differ |= static_cast<std::uint32_t>(ranks[i] ^ ranks[0]);
  if (differ == 0) return ranks[0];
  const std::uint32_t highest = std::bit_floor(differ);
  std::uint32_t last = (static_cast<std::uint32_t>(ranks[0]) ^ kSign) & ~(highest | (highest - 1));
  for (std::uint32_t bit = highest; bit > 0; bit >>= 1) {
    const auto below = static_cast<std::int32_t>(((last | bit) - 1) ^ kSign);
    std::int32_t above = 0;
    for (std::size_t i = 0; i < count; ++i) above += ranks[i] > below ? 1 : 0;
    if (above == most) return below;
    if (above > most) last |= bit;
  }
  return static_cast<std::int32_t>(last ^ kSign);
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

  // With fewer rows a kernel's time is that of its products. With a window below a block, what lies behind a
  // block's last visible key would be scored for the others.
  int BlocksTogether(const KernelTable& kernels, const SelectShape& shape) const override {
    const bool many = ScoringRows(shape.tokens, shape.heads_per_token) > kernels.few_rows;
    if (!many || window_ < block_k_) return 1;
    const bool all = BlocksOf(std::int64_t{shape.keys} - window_ - sink_) <= MostBranches();
    return all ? std::max(kernels.search_groups, kSharingAll) : kernels.search_groups;
  }

  std::size_t ScratchBytes(const KernelTable& kernels, const SelectShape& shape) const override {
    ScratchCutter cutter(nullptr);
    CutScratch(cutter, shape);
    const int rows = ScoringRows(shape.tokens, shape.heads_per_token);
    std::size_t kernel = kernels.score_scratch(shape.blocks, rows, shape.dim);
    if (balance_) {
      kernel =
          std::max(kernel, kernels.attend_scratch(LevelShape(rows, shape.key_type, shape.dim)));
    }
    return cutter.used() + kernel;
  }

  std::int32_t Select(const KernelTable& kernels, const SelectArgs& args) const override {
    std::int32_t count = 0;
    SelectTogether(kernels, {&args, 1}, &count);
    return count;
  }

  void SelectTogether(const KernelTable& kernels, std::span<const SelectArgs> blocks,
                      std::int32_t* counts) const override {
    std::byte* const scratch = blocks[0].scratch;
    while (!blocks.empty()) {
      std::size_t together = 1;
      if (Searched(blocks[0]) <= budget_) {
        counts[0] = BlockMask::kEverything;
      } else {
        while (together < blocks.size() && blocks[together].tokens == blocks[0].tokens) ++together;
        SearchTogether(kernels, blocks.first(together), scratch, counts);
      }
      blocks = blocks.subspan(together);
      counts += together;
    }
  }

 private:
  std::int64_t Searched(const SelectArgs& args) const {
    return std::int64_t{args.visible} - window_ - sink_;
  }

  std::int32_t BlocksOf(std::int64_t tokens) const {
    return static_cast<std::int32_t>((tokens - 1) / block_k_ + 1);
  }

  void SearchTogether(const KernelTable& kernels, std::span<const SelectArgs> blocks,
                      std::byte* memory, std::int32_t* counts) const {
    const SelectArgs& last = blocks.back();
    ScratchCutter cutter(memory);
    const Scratch scratch = CutScratch(cutter, {.blocks = static_cast<int>(blocks.size()),
                                                .tokens = last.tokens,
                                                .heads_per_token = last.heads_per_token,
                                                .keys = last.visible,
                                                .key_type = last.keys.type,
                                                .dim = last.keys.dim});
    const std::span<Search> searches(scratch.searches, blocks.size());
    const int rows = ScoringRows(last.tokens, last.heads_per_token);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const std::size_t first_row = i * static_cast<std::size_t>(rows);
      CollectRows(blocks[i], scratch.rows + first_row);
      if (balance_) {
        MeasureLevels(kernels, blocks[i], rows, first_row, scratch);
      } else {
        std::fill_n(scratch.levels + first_row, rows, 0.0f);
      }
      PlantBranches(Searched(blocks[i]), searches[i]);
    }
    // Four bytes for each key block, once for a group. Looking at starts[place] instead of clearing them was no
    // faster (128 Ki tokens).
    if (blocks.size() > 1) std::fill_n(scratch.place_of, BlocksOf(last.visible), -1);
    std::int32_t places = 0;  // given away so far
    for (bool going = true; going;) {
      going = false;
      for (Search& search : searches) {
        search.count = 0;
        if (search.span <= 1) continue;
        SplitAll(search);
        going = true;
      }
      places += ScoreAll(kernels, last, probe_, places, searches, scratch);
      for (Search& search : searches) {
        if (search.count == 0) continue;
        KeepBest(search.branches, scratch.ranks, search);
        search.span *= 0.5;
      }
    }
    for (Search& search : searches) {
      search.count = search.branches > slots_ ? search.branches : 0;
      for (std::int32_t i = 0; i < search.count; ++i) {
        search.candidates[i] = search.kept[i];
        if (probe_ != block_k_) search.candidates[i].scored = kUnscored;
      }
    }
    ScoreAll(kernels, last, block_k_, places, searches, scratch);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      Search& search = searches[i];
      if (search.count > 0) KeepBest(slots_, scratch.ranks, search);
      for (std::int32_t b = 0; b < search.branches; ++b) {
        blocks[i].starts[b] = FirstToken(search.kept[b].first);
      }
      counts[i] = search.branches;
    }
  }

  std::int32_t MostBranches() const {
    return static_cast<std::int32_t>(std::min<std::int64_t>(
        std::int64_t{slots_} * breadth_, std::numeric_limits<std::int32_t>::max() / 2));
  }

  // The one function that both measures and lays out; the kernel's scratch comes last.
  Scratch CutScratch(ScratchCutter& cutter, const SelectShape& shape) const {
    Scratch scratch;
    const auto blocks = static_cast<std::size_t>(shape.blocks);
    const auto rows = static_cast<std::size_t>(ScoringRows(shape.tokens, shape.heads_per_token));
    const auto key_blocks = static_cast<std::size_t>(BlocksOf(shape.keys));
    const std::size_t most = std::min(static_cast<std::size_t>(MostBranches()), key_blocks);
    const std::size_t representatives = std::min(blocks * 2 * most, std::max(2 * most, key_blocks));
    scratch.searches = cutter.Take<Search>(blocks);
    for (std::size_t i = 0; i < blocks; ++i) {
      Search search{};
      search.kept = cutter.Take<Branch>(most);
      search.candidates = cutter.Take<Branch>(2 * most);
      search.owners = cutter.Take<std::int32_t>(2 * most);
      search.places = cutter.Take<std::int32_t>(2 * most);
      if (scratch.searches != nullptr) scratch.searches[i] = search;
    }
    scratch.rows = cutter.Take<const float*>(blocks * rows);
    scratch.levels = cutter.Take<float>(blocks * rows);
    scratch.outputs = cutter.Take<float*>(rows);
    scratch.visible = cutter.Take<KeyRange>(rows);
    scratch.ignored = cutter.Take<float>(static_cast<std::size_t>(shape.dim));
    scratch.starts = cutter.Take<std::int32_t>(representatives + 1);
    scratch.scores = cutter.Take<float>(blocks * representatives);
    scratch.ranks = cutter.Take<std::int32_t>(2 * most);
    scratch.place_of = cutter.Take<std::int32_t>(shape.blocks == 1 ? 0 : key_blocks);
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
  AttendShape LevelShape(int rows, DType type, int dim) const {
    return {.rows = rows,
            .dim_k = dim,
            .dim_v = std::min(dim, static_cast<int>(kQ8BlockSize)),
            .key_type = type,
            .value_type = type,
            .fast = fast_};
  }

  void MeasureLevels(const KernelTable& kernels, const SelectArgs& args, int rows,
                     std::size_t first_row, const Scratch& scratch) const {
    const KeyRange near[] = {{0, sink_}, {args.visible - window_, args.visible}};
    int row = 0;
    for (int t = FirstScoringToken(args.tokens); t < args.tokens; t += query_stride_) {
      const std::int32_t visible = args.visible - (args.tokens - 1 - t);
      for (int h = 0; h < args.heads_per_token; ++h) scratch.visible[row++] = {0, visible};
    }
    std::fill_n(scratch.outputs, rows, scratch.ignored);
    const KeySegment segment = {.runs = near, .run_count = 2, .visible = scratch.visible};
    RowsView values = args.keys;
    values.dim = LevelShape(rows, args.keys.type, args.keys.dim).dim_v;
    const AttendArgs attend = {.rows = rows,
                               .queries = scratch.rows + first_row,
                               .keys = args.keys,
                               .values = values,
                               .scale = args.scale,
                               .fast = fast_,
                               .segments = &segment,
                               .segment_count = 1,
                               .outputs = scratch.outputs,
                               .lses = scratch.levels + first_row,
                               .scratch = scratch.kernel};
    kernels.attend(&attend, 1);
    for (float& level : std::span(scratch.levels + first_row, static_cast<std::size_t>(rows))) {
      level /= args.scale;
      if (!std::isfinite(level)) level = 0.0f;  // nothing near, or a scale of zero
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
  //
  // Wider than the paper's search, B is that of a range that grows in steps (of up to kPlantStep tokens,
  // and a 64th of what is searched), of which only what is there is kept: neighbouring query blocks then
  // score the same representatives.
  void PlantBranches(std::int64_t searched, Search& search) const {
    const std::int32_t blocks = BlocksOf(searched);
    std::int32_t planted = blocks;
    if (breadth_ > 1 && blocks > MostBranches()) {
      const std::int64_t step = std::min(
          kPlantStep,
          std::bit_floor(static_cast<std::uint64_t>(std::max<std::int64_t>(searched / 64, 1))));
      const std::int64_t always = std::int64_t{sink_} + window_;
      planted = BlocksOf((searched + always + step - 1) / step * step - always);
    }
    const std::int32_t most = std::min(MostBranches(), planted);
    search.span = static_cast<double>(planted) / most;
    search.branches = 0;
    std::int32_t edge = 0;
    while (edge < blocks && search.branches < most) {
      const auto next =
          std::min(blocks, static_cast<std::int32_t>(search.span * (search.branches + 1)));
      search.kept[search.branches++] = {edge, next - edge, kUnscored, 0.0f};
      edge = next;
    }
  }

  // Left halves get floor(size / 2) blocks. A branch of one block has no left half and stays whole.
  static void SplitAll(Search& search) {
    Branch* child = search.candidates;
    for (std::int32_t i = 0; i < search.branches; ++i) {
      Branch left = search.kept[i];
      Branch right = search.kept[i];
      left.size /= 2;
      right.first += left.size;
      right.size -= left.size;
      *child = left;
      child += left.size > 0 ? 1 : 0;
      *child++ = right;
    }
    search.count = static_cast<std::int32_t>(child - search.candidates);
  }

  // One kernel call for all whose representative is not the one that scored their parent, by `keys`
  // keys of it: its first ones, or those in its middle. Query blocks that ask for the same representative
  // share it: place_of[its block] - given is its place among the starts if that is not negative. Returns
  // the number of starts.
  std::int32_t ScoreAll(const KernelTable& kernels, const SelectArgs& last, std::int32_t keys,
                        std::int32_t given, std::span<Search> searches,
                        const Scratch& scratch) const {
    const std::int32_t skipped =
        representative_ == Representative::kFirst ? 0 : (block_k_ - keys) / 2;
    const bool alone = searches.size() == 1;
    std::int32_t count = 0;
    for (Search& search : searches) {
      std::int32_t asked = 0;
      for (std::int32_t i = 0, end = search.count; i < end; ++i) {
        Branch& candidate = search.candidates[i];
        const std::int32_t block = RepresentativeOf(candidate);
        if (candidate.scored == block) continue;
        candidate.scored = block;
        scratch.starts[count] = std::min(FirstToken(block) + skipped, last.visible - 1);
        std::int32_t place = alone ? -1 : scratch.place_of[block] - given;
        const std::int32_t fresh = place < 0 ? 1 : 0;
        place += fresh * (count - place);  // no branch to guess wrong
        count += fresh;
        if (!alone) scratch.place_of[block] = place + given;
        search.owners[asked] = i;
        search.places[asked++] = place;
      }
      search.asked = asked;
    }
    if (count == 0) return 0;
    ScoreArgs score;
    score.groups = static_cast<int>(searches.size());
    score.rows = ScoringRows(last.tokens, last.heads_per_token);
    score.queries = scratch.rows;
    score.levels = scratch.levels;
    score.keys = last.keys;
    score.starts = scratch.starts;
    score.count = count;
    score.block_size = keys;
    score.limit = last.visible;
    score.fast = fast_;
    score.scores = scratch.scores;
    score.scratch = scratch.kernel;
    kernels.score_blocks(score);
    const float* scores = scratch.scores;
    for (const Search& search : searches) {
      for (std::int32_t i = 0; i < search.asked; ++i) {
        search.candidates[search.owners[i]].score = scores[search.places[i]];
      }
      scores += count;
    }
    return count;
  }

  // Keeps the `most` best candidates, in ascending order of position.
  static void KeepBest(std::int32_t most, std::int32_t* ranks, Search& search) {
    const auto count = static_cast<std::size_t>(search.count);
    for (std::size_t i = 0; i < count; ++i) ranks[i] = Rank(search.candidates[i].score);
    const std::int32_t last = LastKeptRank(ranks, count, most);
    std::int32_t better = 0;
    for (std::size_t i = 0; i < count; ++i) better += ranks[i] > last ? 1 : 0;
    std::int32_t ties = most - better;  // the left-most of those that rank last
    std::int32_t kept = 0;
    for (std::size_t i = 0; i < count && kept < most; ++i) {
      search.kept[kept] = search.candidates[i];
      const bool tie = ranks[i] == last && ties > 0;
      ties -= tie ? 1 : 0;
      kept += ranks[i] > last || tie ? 1 : 0;
    }
    search.branches = kept;
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
