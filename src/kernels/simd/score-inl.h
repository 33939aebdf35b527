// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Scores of candidate blocks, for the search: the products of both kernels without softmax and values.
//
//   candidates --walk--> keys, a tile or chunk at a time --> products --> max over a candidate's keys,
//                        then over the rows of a group
//
// Candidates are scattered in memory. What is scored next is fetched under the products of what is
// scored now (Zen 4, decode of 128 Ki keys, 9/3 heads x 64, the whole of pruned attention: 1.28 ms,
// against 1.75 when each chunk was fetched at once before it was scored).

// Some keys, of neighbouring candidate blocks.
struct CandidateKeys {
  std::int32_t* keys;   // [at most kTileKeys]
  std::int32_t* begin;  // [candidates + 1] their first among the keys
  int count;            // of keys
  int candidates;
  int first;  // the first candidate
};

inline void LayOutKeys(Cutter& cutter, CandidateKeys& some) {
  static_assert(kChunkKeys <= kTileKeys);
  some.keys = cutter.Take<std::int32_t>(kTileKeys);
  some.begin = cutter.Take<std::int32_t>(kTileKeys + 1);
}

// Names the keys of all candidates, some at a time.
class CandidateWalk {
 public:
  explicit CandidateWalk(const ScoreArgs& args) : args_(args) {}

  void Next(int most, CandidateKeys& some) {
    some.count = 0;
    some.candidates = 0;
    some.first = candidate_;
    while (candidate_ < args_.count && some.count < most) {
      const std::int32_t start = args_.starts[candidate_];
      const std::int32_t end = Min(start + args_.block_size, args_.limit);
      const int taken = Min(end - start - offset_, most - some.count);
      some.begin[some.candidates++] = some.count;
      for (int i = 0; i < taken; ++i) some.keys[some.count++] = start + offset_ + i;
      offset_ += taken;
      if (start + offset_ < end) break;
      ++candidate_;
      offset_ = 0;
    }
    some.begin[some.candidates] = some.count;
  }

 private:
  const ScoreArgs& args_;
  int candidate_ = 0;
  int offset_ = 0;
};

// Raises scores[i] to from[i]; no branch to guess wrong.
inline void RaiseScores(const float* from, int count, float* scores) {
  for (int i = 0; i < count; ++i) scores[i] = from[i] > scores[i] ? from[i] : scores[i];
}

// ---- Many rows -----------------------------------------------------------------------------------

// The rows of a group fill whole vectors; idle lanes repeat its first row.
inline int VectorsOfGroup(int rows) { return (rows + Vec::kLanes - 1) / Vec::kLanes; }

template <typename Scores>
struct ScoreScratchLayout {
  typename Scores::Operands operands;
  const float** queries;  // [groups][lanes]
  float* levels;          // [groups][lanes]
  CandidateKeys now;
  CandidateKeys next;
  float* scores;  // [kTileKeys][kPanel]
  float* raised;  // [kTileKeys], of one vector of rows
};

template <typename Scores>
void LayOutScore(Cutter& cutter, int groups, int rows, int dim,
                 ScoreScratchLayout<Scores>& layout) {
  const int lanes = groups * VectorsOfGroup(rows) * Vec::kLanes;
  Scores::LayOut(cutter, lanes, dim, layout.operands);
  layout.queries = cutter.Take<const float*>(lanes);
  layout.levels = cutter.Take<float>(lanes);
  LayOutKeys(cutter, layout.now);
  LayOutKeys(cutter, layout.next);
  layout.scores = cutter.Take<float>(static_cast<std::int64_t>(kTileKeys) * kPanel);
  layout.raised = cutter.Take<float>(kTileKeys + 4);
}

// The highest products of one vector of rows, above their levels. Returns zero, or NaN where a product is
// no finite number.
template <typename Scores>
Vec RaiseVector(const CandidateKeys& of, const float* products, Vec levels, float* raised) {
  Vec poison = Vec::Set(0.0f);
  for (int first = 0; first < of.candidates; first += 4) {
    Vec most[4];
    for (int c = 0; c < 4; ++c) {
      const int candidate = first + c;
      most[c] = Vec::Set(kMinusInfinity);
      if (candidate >= of.candidates) continue;
      for (int j = of.begin[candidate]; j < of.begin[candidate + 1]; ++j) {
        const Vec product = Vec::Load(products + j * kPanel);
        most[c] = MaxOrSecond(product, most[c]);
        if constexpr (Scores::kMayOverflow) poison = MulAdd(product, Vec::Set(0.0f), poison);
      }
      most[c] = most[c] - levels;
    }
    StoreFourMaxima(most[0], most[1], most[2], most[3], raised + first);
  }
  return poison;
}

// The scores of some candidates for all groups. Returns as RaiseVector.
template <typename Scores>
Vec ScoreTile(const ScoreArgs& args, const ScoreScratchLayout<Scores>& layout) {
  const CandidateKeys& now = layout.now;
  const int vectors_of_group = VectorsOfGroup(args.rows);
  const int lanes = args.groups * vectors_of_group * Vec::kLanes;
  TileAhead ahead(&args.keys, nullptr, layout.next.keys, layout.next.count,
                  PanelsFor(lanes) * Scores::FetchesOfTile(args.keys.dim));
  Scores::TakeKeys(args.keys, now.keys, now.count, layout.operands);
  Vec poison = Vec::Set(0.0f);
  for (int panel = 0; panel < PanelsFor(lanes); ++panel) {
    const int vectors = VectorsOf(lanes, panel);
    Scores::Score(layout.operands, args.keys.dim, panel, vectors, now.count, layout.scores, ahead);
    for (int v = 0; v < vectors; ++v) {
      const int vector = panel * kPanelVectors + v;
      const Vec levels = Vec::Load(layout.levels + vector * Vec::kLanes);
      poison =
          poison + RaiseVector<Scores>(now, layout.scores + v * Vec::kLanes, levels, layout.raised);
      const std::int64_t group = vector / vectors_of_group;
      RaiseScores(layout.raised, now.candidates, args.scores + group * args.count + now.first);
    }
  }
  return poison;
}

// Returns whether all products were finite numbers, where the policy may overflow.
template <typename Scores>
bool ScoreManyRows(const ScoreArgs& args) {
  ScoreScratchLayout<Scores> layout;
  Cutter cutter{args.scratch};
  LayOutScore(cutter, args.groups, args.rows, args.keys.dim, layout);
  const int lanes_of_group = VectorsOfGroup(args.rows) * Vec::kLanes;
  const int lanes = args.groups * lanes_of_group;
  for (int lane = 0; lane < lanes; ++lane) {
    const int in_group = lane % lanes_of_group;
    const int row = lane / lanes_of_group * args.rows + (in_group < args.rows ? in_group : 0);
    layout.queries[lane] = args.queries[row];
    layout.levels[lane] = args.levels == nullptr ? 0.0f : args.levels[row];
  }
  Scores::TakeQueries(layout.queries, lanes, args.keys.dim, 1.0f, layout.operands);
  for (std::int64_t i = 0; i < std::int64_t{args.groups} * args.count; ++i) {
    args.scores[i] = kMinusInfinity;
  }
  Vec poison = Vec::Set(0.0f);
  CandidateWalk walk(args);
  walk.Next(Scores::kKeys, layout.next);
  while (layout.next.count > 0) {
    const CandidateKeys done = layout.now;
    layout.now = layout.next;
    layout.next = done;
    walk.Next(Scores::kKeys, layout.next);
    poison = poison + ScoreTile(args, layout);
  }
  return !AnyDifferent(poison, Vec::Set(0.0f));
}

template <typename Scores>
std::size_t ManyRowsScratch(int groups, int rows, int dim) {
  Cutter cutter{nullptr};
  ScoreScratchLayout<Scores> layout;
  LayOutScore(cutter, groups, rows, dim, layout);
  return cutter.used;
}

// ---- Few rows, in f32 ----------------------------------------------------------------------------

struct CandidateChunk : CandidateKeys {
  std::int64_t* offsets;  // [kChunkKeys], of the keys' rows
};

struct ScoreFewLayout {
  float* queries;  // of TakeRows
  CandidateChunk now;
  CandidateChunk next;
  float* scores;  // [rows][kChunkKeys]
};

inline void LayOutScoreFew(Cutter& cutter, int dim, ScoreFewLayout& layout) {
  layout.queries = cutter.Take<float>(static_cast<std::int64_t>(kMaxFewRows) * dim);
  LayOutKeys(cutter, layout.now);
  LayOutKeys(cutter, layout.next);
  layout.now.offsets = cutter.Take<std::int64_t>(kChunkKeys);
  layout.next.offsets = cutter.Take<std::int64_t>(kChunkKeys);
  layout.scores = cutter.Take<float>(static_cast<std::int64_t>(kMaxFewRows) * kChunkKeys);
}

inline void ScoreChunk(const ScoreArgs& args, const float* levels, const ScoreFewLayout& layout,
                       float* scores) {
  const CandidateChunk& now = layout.now;
  const AttendArgs rows = {.keys = args.keys};
  RowsAhead ahead(&rows, &AttendArgs::keys, 1, layout.next.offsets, layout.next.count);
  ScoreRows(layout.queries, args.rows, args.keys, now.offsets, now.count, ahead, layout.scores);
  for (int j = 0; j < now.count; j += Vec::kLanes) {
    Vec most = Vec::Set(kMinusInfinity);
    for (int row = 0; row < args.rows; ++row) {
      const Vec level = Vec::Set(levels == nullptr ? 0.0f : levels[row]);
      most = MaxOrSecond(Vec::Load(layout.scores + row * kChunkKeys + j) - level, most);
    }
    most.Store(layout.scores + j);
  }
  for (int c = 0; c < now.candidates; ++c) {
    float* const score = scores + now.first + c;
    for (int j = now.begin[c]; j < now.begin[c + 1]; ++j) RaiseScores(layout.scores + j, 1, score);
  }
}

void ScoreFewRows(const ScoreArgs& args) {
  ScoreFewLayout layout;
  Cutter cutter{args.scratch};
  LayOutScoreFew(cutter, args.keys.dim, layout);
  for (int group = 0; group < args.groups; ++group) {
    const float* const* queries = args.queries + group * args.rows;
    const float* levels = args.levels == nullptr ? nullptr : args.levels + group * args.rows;
    float* const scores = args.scores + std::int64_t{group} * args.count;
    TakeRows(queries, args.rows, args.keys.dim, Vec::Set(1.0f), layout.queries);
    for (int i = 0; i < args.count; ++i) scores[i] = kMinusInfinity;
    CandidateWalk walk(args);
    const auto take = [&] {
      walk.Next(kChunkKeys, layout.next);
      LocateRows(layout.next.keys, layout.next.count, args.keys.stride, layout.next.offsets);
    };
    take();
    while (layout.next.count > 0) {
      const CandidateChunk done = layout.now;
      layout.now = layout.next;
      layout.next = done;
      take();
      ScoreChunk(args, levels, layout, scores);
    }
  }
}

void ScoreBlocks(const ScoreArgs& args) {
  if (args.rows <= kMaxFewRows) {
    ScoreFewRows(args);
  } else {
    ScoreManyRows<F32Scores>(args);
  }
}
std::size_t ScoreScratch(int groups, int rows, int dim) {
  Cutter few{nullptr};
  ScoreFewLayout layout;
  LayOutScoreFew(few, dim, layout);
  return rows <= kMaxFewRows ? few.used : ManyRowsScratch<F32Scores>(groups, rows, dim);
}

// Many rows in narrower arithmetic; numbers that it cannot hold are left to f32.
template <typename Scores>
void ScoreBlocksIn(const ScoreArgs& args) {
  if (args.rows <= kMaxFewRows || !ScoreManyRows<Scores>(args)) ScoreBlocks(args);
}
template <typename Scores>
std::size_t ScoreScratchIn(int groups, int rows, int dim) {
  const std::size_t f32 = ScoreScratch(groups, rows, dim);
  if (rows <= kMaxFewRows) return f32;
  const std::size_t narrow = ManyRowsScratch<Scores>(groups, rows, dim);
  return narrow > f32 ? narrow : f32;
}
