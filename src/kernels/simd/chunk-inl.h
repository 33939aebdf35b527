// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The keys of a problem in chunks, which few rows take at a time (few_rows-inl.h), and the rows of what comes
// next on their way from memory.

// Keys in a chunk, whose values are read once all their scores are known. Zen 4, f16, 32/8 heads x
// 128, 64 Ki keys: 11.3 GB/s with 8, 12.9 with 16, 13.9 with 32, 13.8 with 64.
constexpr int kChunkKeys = 64;

// A chunk of keys of one segment, and where their rows lie behind the first of a tensor: alike for all KV
// heads.
struct KeyChunk {
  const KeySegment* segment = nullptr;  // null: not to be attended to, only fetched
  bool all_visible = false;
  int count = 0;
  std::int32_t keys[kChunkKeys];         // ascending
  std::int64_t key_offsets[kChunkKeys];  // bytes, padded with the last
  std::int64_t value_offsets[kChunkKeys];
};

// offsets[kChunkKeys] of count rows, padded with the last.
inline void LocateRows(const std::int32_t* rows, int count, std::int64_t stride,
                       std::int64_t* offsets) {
  for (int j = 0; j < count; ++j) {
    std::int64_t offset = rows[j] * stride;
    asm("" : "+r"(offset));  // vector arithmetic would wait behind that of the chunk before
    offsets[j] = offset;
  }
  for (int j = count; j < kChunkKeys; ++j) offsets[j] = count > 0 ? offsets[count - 1] : 0;
}

// Keeps the keys that any row's mask lets through. `uniform`: what is kept is visible to all rows.
inline int DropMasked(const KeySegment& segment, int rows, int count, std::int32_t* keys,
                      bool& uniform) {
  int kept = 0;
  for (int j = 0; j < count; ++j) {
    int seen = 0;
    for (int row = 0; row < rows; ++row) {
      if (MaskElement(segment, row, keys[j]) != kMinusInfinity) ++seen;
    }
    uniform &= seen == 0 || seen == rows;
    if (seen > 0) keys[kept++] = keys[j];
  }
  return kept;
}

// The chunks of all segments, and behind them one of the keys that lie ahead.
class ChunkWalk {
 public:
  explicit ChunkWalk(const AttendArgs& args) : args_(args) {}

  void Next(KeyChunk& chunk) {
    for (; segment_ < args_.segment_count; ++segment_, begun_ = false) {
      const KeySegment& segment = args_.segments[segment_];
      if (!begun_) keys_ = KeyWalk(segment, args_.rows);
      begun_ = true;
      while ((chunk.count = keys_.Next(kChunkKeys, chunk.keys)) > 0) {
        chunk.segment = &segment;
        chunk.all_visible = keys_.AllVisible(chunk.keys, chunk.count);
        if (segment.mask_rows != nullptr) {
          chunk.count = DropMasked(segment, args_.rows, chunk.count, chunk.keys, chunk.all_visible);
        }
        if (chunk.count > 0) return Locate(chunk);
      }
    }
    chunk.segment = nullptr;
    chunk.count = Min(args_.ahead.end - args_.ahead.begin, kChunkKeys);
    for (int j = 0; j < chunk.count; ++j) chunk.keys[j] = args_.ahead.begin + j;
    Locate(chunk);
  }

 private:
  void Locate(KeyChunk& chunk) const {
    LocateRows(chunk.keys, chunk.count, args_.keys.stride, chunk.key_offsets);
    LocateRows(chunk.keys, chunk.count, args_.values.stride, chunk.value_offsets);
  }

  const AttendArgs& args_;
  int segment_ = 0;
  bool begun_ = false;
  KeyWalk keys_;  // of the segment, once begun
};

// Times that a line is asked for, where there is one stream; more for arithmetic that takes less time than
// memory, fewer for lines at an even pace, just as many as are needed.
constexpr int kRequests = 3;
constexpr int kMoreRequests = 4;
constexpr int kEvenRequests = 2;

// Rows of all problems that will be needed soon, fetched into the second-level cache a few lines at a
// time under the arithmetic.
//
//   rows     |  run 0   |  run 1   |  ..       kFetchStreams runs of rows, side by side: a part of the
//   turns     0  4  8 .. 1  5  9 ..  ..        first row of each, in turn, then the next part of them
//
// Streams: presumably a processor's own prefetching goes ahead in each of them, and leaves fewer fetches of
// ours to wait for memory, of which a core has few at a time (Xeon, f16, 64 Ki keys, 32/8 heads x 128: 22.0 ms
// with one stream, 18.5 with two, 17.5 with four or eight; parts of 256 bytes were as fast, of 1,024 2 to
// 6 % slower). Zen 4 is 4 to 21 % slower with two or four, and one stream asks for each line again, 16 and 32
// steps later: a processor drops a fetch while it waits for as many lines as it can (Zen 4 retires them at
// four times the speed of memory), and nothing slows down who asks too fast (Zen 4, 48 Ki keys, twice
// instead of once: bf16 20.9 to 24.9 GB/s; three times: one row to a KV head 2 to 5 % faster at 16 and 64 Ki).
// With four streams a second request is slower (Xeon: 18.9 ms). Arithmetic that is faster than memory asks
// four times: one row to a KV head, and few in bf16 arithmetic.
//
// Not into the first level: the rows of one head lie a power of two apart there, and push each other
// out (Zen 4, 64 Ki keys, 8 KV heads x 128: 7.9 against 15 GB/s).
// Hot loops work on a copy, whose cursor can stay in registers.
class RowsAhead {
 public:
  static constexpr std::int64_t kAgain = 16 * 128;  // bytes between the requests for a line

  RowsAhead() = default;  // nothing to fetch
  RowsAhead(const AttendArgs* args, RowsView AttendArgs::*view, int problems,
            const std::int64_t* offsets, int count)
      : args_(args),
        view_(view),
        problems_(problems),
        offsets_(offsets),
        count_(count),
        run_((count + kFetchStreams - 1) / kFetchStreams),
        bytes_(RowBytes((args->*view).type, (args->*view).dim)) {
    if (Touching()) {
      bytes_ *= problems_;
      problems_ = 1;
    }
    if (kFetchStreams == 1 && Adjoining()) {
      bytes_ *= count;
      count_ = run_ = 1;
    }
    BeginPart();
  }

  // Two lines at a time keep up with the arithmetic; four were no faster (13.0 against 13.3 GB/s).
  template <int kTimes = kRequests>
  __attribute__((always_inline)) void Fetch() {
    if (line_ == nullptr) [[unlikely]]
      return;
#pragma GCC unroll 4
    for (int n = 0; n < (kFetchStreams == 1 ? kTimes : 1); ++n) {
      __builtin_prefetch(line_ - n * kAgain, 0, 2);
      __builtin_prefetch(line_ - n * kAgain + 64, 0, 2);
    }
    line_ += 128;
    if (line_ >= end_) [[unlikely]]
      Turn();
  }

  // The first of so many lines that adjoin, which are up to the caller; or null.
  __attribute__((always_inline)) const std::byte* Take(int lines) {
    if (kFetchStreams > 1 || end_ - line_ < lines * 64) return nullptr;
    line_ += lines * 64;
    return line_ - lines * 64;
  }

  int rows() const { return args_ == nullptr ? 0 : args_->rows; }  // of queries

  // All of them, before there is arithmetic to hide under. With nothing between, loads set the processor's
  // own prefetching going (Zen 4, one stream, f16, 32/8 heads x 128: decoding 16 Ki keys at 18.9 GB/s
  // against 17.1, 4 Ki out of memory 17.4 against 14.7).
  void Load() {
    for (; line_ != nullptr; Turn()) {
      for (; line_ < end_; line_ += 64) {
        static_cast<void>(*reinterpret_cast<const volatile std::uint8_t*>(line_));
      }
    }
  }

 private:
  static constexpr std::int64_t kPart = kFetchStreams == 1 ? 1 << 30 : 512;

  // The rows of a token follow one another, head after head: then they are fetched as one.
  bool Touching() const {
    for (int p = 1; p < problems_; ++p) {
      if ((args_[p].*view_).data != (args_->*view_).data + p * bytes_) return false;
    }
    return true;
  }

  // Nor is anything between the rows, whose offsets ascend: then one stream takes no turns (Zen 4, in turn,
  // with the third request: decoding f16 1 to 2 % faster, 9/3 heads x 64 4 % faster at 2 and 8 Ki keys).
  bool Adjoining() const {
    return count_ > 1 && offsets_[count_ - 1] - offsets_[0] == (count_ - 1) * bytes_;
  }

  // The same part of the next stream's row, or the next part of the rows.
  __attribute__((always_inline)) void Turn() {
    row_ += run_;
    if (row_ >= count_) {
      row_ = first_;
      offset_ += kPart;
      if (offset_ >= bytes_) {
        offset_ = 0;
        if (++problem_ == problems_) {
          problem_ = 0;
          row_ = ++first_;
        }
      }
    }
    BeginPart();
  }

  __attribute__((always_inline)) void BeginPart() {
    if (first_ == run_) {
      line_ = end_ = nullptr;
      return;
    }
    const RowsView& view = args_[problem_].*view_;
    line_ = view.data + offsets_[row_] + offset_;
    end_ = line_ + (bytes_ - offset_ < kPart ? bytes_ - offset_ : kPart);
  }

  const AttendArgs* args_ = nullptr;
  RowsView AttendArgs::*view_ = nullptr;
  int problems_ = 0;
  int problem_ = 0;
  const std::int64_t* offsets_ = nullptr;  // of the rows
  int count_ = 0;
  int run_ = 0;    // rows of a stream
  int first_ = 0;  // the row of the first stream
  int row_ = 0;    // the row at hand
  std::int64_t bytes_ = 0;
  std::int64_t offset_ = 0;  // in the row
  const std::byte* line_ = nullptr;
  const std::byte* end_ = nullptr;
};

// The next few lines of RowsAhead, for a stretch of code that fetches them one by one. Where they adjoin, there is
// nothing to be found out for each.
template <int kLines, int kTimes = kEvenRequests>
class LinesAhead {
 public:
  explicit LinesAhead(RowsAhead& ahead) : ahead_(ahead), first_(ahead.Take(kLines)) {}

  __attribute__((always_inline)) void Fetch(int line) {
    if (first_ != nullptr) {
#pragma GCC unroll 4
      for (int n = 0; n < kTimes; ++n) {
        __builtin_prefetch(first_ + line * 64 - n * RowsAhead::kAgain, 0, 2);
      }
    } else if (line % 2 == 0) {
      ahead_.Fetch();
    }
  }

 private:
  RowsAhead& ahead_;
  const std::byte* first_;
};
