// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Scores of candidate blocks, for the search: the products of both kernels without softmax and values.
//
//   candidates --walk--> keys, a tile or chunk at a time --> products --> max over rows --> max over a
//                        candidate's keys
//
// Candidates are scattered in memory. What is scored next is fetched under the products of what is
// scored now (Zen 4, decode of 128 Ki keys, 9/3 heads x 64, the whole of pruned attention: 1.28 ms,
// against 1.75 when each chunk was fetched at once before it was scored).

// Keys of candidate blocks.
struct CandidateKeys {
  std::int32_t* keys;       // [at most kTileKeys]
  std::int32_t* candidate;  // whose key it is
  int count;
};

// Names the keys of all candidates, some at a time.
class CandidateWalk {
 public:
  explicit CandidateWalk(const ScoreArgs& args) : args_(args) {}

  void Next(int most, CandidateKeys& some) {
    some.count = 0;
    for (; candidate_ < args_.count; ++candidate_, offset_ = 0) {
      const std::int32_t start = args_.starts[candidate_];
      const std::int32_t end = Min(start + args_.block_size, args_.limit);
      for (; start + offset_ < end; ++offset_) {
        if (some.count == most) return;
        some.keys[some.count] = start + offset_;
        some.candidate[some.count++] = candidate_;
      }
    }
  }

 private:
  const ScoreArgs& args_;
  int candidate_ = 0;
  int offset_ = 0;
};

template <typename Scores>
struct ScoreScratchLayout {
  typename Scores::Operands operands;
  float* queries;  // few rows: [rows][dim]
  float* levels;   // [lanes]; idle lanes repeat the first row, as in the operands
  CandidateKeys now;
  CandidateKeys next;
  float* scores;  // [kTileKeys][kPanel], or [rows][kChunkKeys]
};

template <typename Scores>
void LayOutScore(Cutter& cutter, int rows, int dim, ScoreScratchLayout<Scores>& layout) {
  Scores::LayOut(cutter, rows, dim, layout.operands);
  layout.queries = cutter.Take<float>(static_cast<std::int64_t>(kMaxFewRows) * dim);
  layout.levels = cutter.Take<float>(LanesFor(rows));
  for (CandidateKeys* some : {&layout.now, &layout.next}) {
    some->keys = cutter.Take<std::int32_t>(kTileKeys);
    some->candidate = cutter.Take<std::int32_t>(kTileKeys);
  }
  layout.scores = cutter.Take<float>(static_cast<std::int64_t>(kTileKeys) * kPanel);
}

// Raises the scores of candidates by some of their keys; all rows, many of them. Returns zero, or NaN
// where a product is no finite number.
template <typename Scores>
Vec ScoreTile(const ScoreArgs& args, const ScoreScratchLayout<Scores>& layout) {
  const auto& [keys, candidate, count] = layout.now;
  const int panels = PanelsFor(args.rows);
  TileAhead ahead(&args.keys, nullptr, layout.next.keys, layout.next.count,
                  panels * Scores::FetchesOfTile(args.keys.dim));
  Scores::TakeKeys(args.keys, keys, count, layout.operands);
  Vec poison = Vec::Set(0.0f);
  for (int panel = 0; panel < panels; ++panel) {
    const int vectors = VectorsOf(args.rows, panel);
    const float* levels = layout.levels + panel * kPanel;
    Scores::Score(layout.operands, args.keys.dim, panel, vectors, count, layout.scores, ahead);
    for (int j = 0; j < count;) {
      float& score = args.scores[candidate[j]];
      Vec most = Vec::Set(score);
      for (const int same = candidate[j]; j < count && candidate[j] == same; ++j) {
        for (int v = 0; v < vectors; ++v) {
          const Vec product = Vec::Load(layout.scores + j * kPanel + v * Vec::kLanes);
          most = MaxOrSecond(product - Vec::Load(levels + v * Vec::kLanes), most);
          if constexpr (Scores::kMayOverflow) poison = MulAdd(product, Vec::Set(0.0f), poison);
        }
      }
      score = MaxLanes(most);
    }
  }
  return poison;
}

// The same for few rows, in f32.
template <typename Scores>
void ScoreFew(const ScoreArgs& args, const ScoreScratchLayout<Scores>& layout) {
  const auto& [keys, candidate, count] = layout.now;
  const AttendArgs rows = {.keys = args.keys};
  RowsAhead ahead(&rows, &AttendArgs::keys, 1, layout.next.keys, layout.next.count);
  ScoreRows(layout.queries, args.rows, args.keys, keys, count, ahead, layout.scores);
  for (int j = 0; j < count; j += Vec::kLanes) {
    Vec most = Vec::Set(kMinusInfinity);
    for (int row = 0; row < args.rows; ++row) {
      const Vec product = Vec::Load(layout.scores + row * kChunkKeys + j);
      most = MaxOrSecond(product - Vec::Set(layout.levels[row]), most);
    }
    most.Store(layout.scores + j);
  }
  for (int j = 0; j < count; ++j) {
    float& score = args.scores[candidate[j]];
    score = layout.scores[j] > score ? layout.scores[j] : score;  // no branch to guess wrong
  }
}

// Returns whether all products were finite numbers, where the policy may overflow.
template <typename Scores>
bool ScoreCandidates(const ScoreArgs& args) {
  const bool few = args.rows <= kMaxFewRows;
  const int most = few ? kChunkKeys : Scores::kKeys;
  ScoreScratchLayout<Scores> layout;
  Cutter cutter{args.scratch};
  LayOutScore(cutter, args.rows, args.keys.dim, layout);
  for (int lane = 0; lane < LanesFor(args.rows); ++lane) {
    const int row = lane < args.rows ? lane : 0;
    layout.levels[lane] = args.levels == nullptr ? 0.0f : args.levels[row];
  }
  if (few) {
    for (int row = 0; row < args.rows; ++row) {
      for (int i = 0; i < args.keys.dim; ++i) {
        layout.queries[row * args.keys.dim + i] = args.queries[row][i];
      }
    }
  } else {
    Scores::TakeQueries(args.queries, args.rows, args.keys.dim, 1.0f, layout.operands);
  }
  for (int candidate = 0; candidate < args.count; ++candidate) {
    args.scores[candidate] = kMinusInfinity;
  }
  Vec poison = Vec::Set(0.0f);
  CandidateWalk walk(args);
  walk.Next(most, layout.next);
  while (layout.next.count > 0) {
    const CandidateKeys done = layout.now;
    layout.now = layout.next;
    layout.next = done;
    walk.Next(most, layout.next);
    if (few) {
      ScoreFew(args, layout);
    } else {
      poison = poison + ScoreTile(args, layout);
    }
  }
  return !AnyDifferent(poison, Vec::Set(0.0f));
}

template <typename Scores>
std::size_t ScoreScratchOf(int rows, int dim) {
  Cutter cutter{nullptr};
  ScoreScratchLayout<Scores> layout;
  LayOutScore(cutter, rows, dim, layout);
  return cutter.used;
}

void ScoreBlocks(const ScoreArgs& args) { ScoreCandidates<F32Scores>(args); }
std::size_t ScoreScratch(int rows, int dim) { return ScoreScratchOf<F32Scores>(rows, dim); }
