// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "attention_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>

#include "accuracy.h"
#include "ceilings.h"
#include "coppice/attention.h"
#include "peers/peer.h"

namespace coppice::bench {
namespace {

using Clock = std::chrono::steady_clock;

// A first round longer than this is counted instead of being thrown away as a warm-up.
constexpr double kLongRound = 2.0;
constexpr int kMostRounds = 10000000;  // whose seconds take 80 MB
// Slow peers end the rounds when all together have taken this many times --seconds: pruned decoding
// of a million tokens would otherwise have peers do a hundred rounds of half a second.
constexpr double kMostSecondsOfAll = 20;
// Query tokens that are compared: dense ones cost us 1/16 of 512 queries, float64 ones far more.
constexpr int kDenseTokens = 32;
constexpr std::int64_t kFloat64Products = std::int64_t{1} << 30;
constexpr double kGiB = 1 << 30;
constexpr double kSecondsBetweenProbes = 0.5;  // of ours
constexpr int kLastProbes = 5;                 // short measurements have no others

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Timing Summarise(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  const std::size_t middle = seconds.size() / 2;
  const double median =
      seconds.size() % 2 == 1 ? seconds[middle] : (seconds[middle - 1] + seconds[middle]) / 2;
  const std::size_t most = (seconds.size() * 99 + 99) / 100 - 1;
  return {seconds.front(), median, seconds[most], static_cast<int>(seconds.size())};
}

// Our attention on fixed inputs. A round of pruned decoding is as many steps as share a selection,
// on a cache that grows to all tokens; every other round is one call.
class Ours {
 public:
  Ours(const Inputs& inputs, ThreadPool& pool, Attention attention, int refresh)
      : inputs_(inputs),
        pool_(pool),
        attention_(std::move(attention)),
        workspace_(pool.threads()),
        steps_(static_cast<int>(std::min<std::int64_t>(refresh, inputs.shape().tokens))),
        output_(static_cast<std::size_t>(inputs.shape().queries * inputs.shape().heads *
                                         inputs.shape().dim)) {}

  Status Run() {
    const Shape& shape = inputs_.shape();
    attention_.Reset();
    for (int step = 0; step < steps_; ++step) {
      AttentionInputs arguments{
          .queries = inputs_.queries(),
          .keys = inputs_.keys(),
          .values = inputs_.values(),
          .output = Contiguous(output_.data(), shape.queries, shape.heads, shape.dim)};
      arguments.keys.tokens -= steps_ - 1 - step;
      arguments.values.tokens = arguments.keys.tokens;
      if (Status status = attention_.Plan(arguments, workspace_); !status.ok()) return status;
      pool_.Run(attention_.items(),
                [&](int item, int thread) { attention_.RunItem(item, thread); });
    }
    return Status::Ok();
  }

  int steps() const { return steps_; }
  Attention& attention() { return attention_; }
  const float* output() const { return output_.data(); }
  std::size_t ExtraBytes() const {
    const BlockMask& mask = attention_.mask();
    return workspace_.bytes() + (mask.starts.capacity() + mask.counts.capacity()) * 4;
  }

 private:
  const Inputs& inputs_;
  ThreadPool& pool_;
  Attention attention_;
  Workspace workspace_;
  int steps_;
  std::vector<float> output_;
};

Result<Ours> MakeOurs(const AttentionBenchOptions& options, const Inputs& inputs,
                      ThreadPool& pool) {
  Result<Attention> attention = Attention::Create(options.settings, options.isa);
  if (!attention.ok()) return attention.status();
  const bool reuses = inputs.shape().queries == 1 && options.settings.method != "dense";
  return Ours(inputs, pool, std::move(attention).value(), reuses ? options.settings.refresh : 1);
}

struct LivePeer {
  std::unique_ptr<Peer> peer;
  std::vector<double> seconds;
  Status status;
};

Status PreparePeer(const AttentionBenchOptions& options, const PeerProblem& problem, Peer& peer) {
  if (options.available_bytes) {
    const double needed = peer.BytesNeeded(problem);
    const double available = options.available_bytes();
    if (needed > available) {
      char text[96];
      std::snprintf(text, sizeof(text), "needs %.1f GiB, but only %.1f GiB of memory are free",
                    needed / kGiB, available / kGiB);
      return Status::ResourceExhausted(std::string(text) + "; use fewer --tokens");
    }
  }
  return peer.Prepare(problem);
}

std::vector<LivePeer> PreparePeers(const AttentionBenchOptions& options, const Inputs& inputs,
                                   int threads) {
  const PeerProblem problem = {inputs.queries(), inputs.keys(), inputs.values(), threads};
  std::vector<LivePeer> peers;
  for (std::unique_ptr<Peer>& peer : MakePeers()) {
    Status status = PreparePeer(options, problem, *peer);
    peers.push_back({std::move(peer), {}, std::move(status)});
  }
  return peers;
}

// One call of each peer that works, in turn. Returns the seconds of all.
double RunPeers(std::vector<LivePeer>& peers, bool warm_up) {
  double total = 0;
  for (LivePeer& live : peers) {
    if (!live.status.ok()) continue;
    const Result<double> seconds = live.peer->Run();
    if (!seconds.ok()) {
      live.status = seconds.status();
      continue;
    }
    if (!warm_up) live.seconds.push_back(seconds.value());
    total += seconds.value();
  }
  return total;
}

// Alternating rounds, ours first, and meanwhile the stream. Returns the seconds of ours, one entry for each
// round.
Result<std::vector<double>> Measure(const AttentionBenchOptions& options, Ours& ours,
                                    std::vector<LivePeer>& peers, StreamProbe& stream) {
  std::vector<double> seconds;
  double next_probe = kSecondsBetweenProbes;
  double total = 0;
  double total_of_all = 0;
  for (int round = 0; round < kMostRounds; ++round) {
    const auto start = Clock::now();
    if (Status status = ours.Run(); !status.ok()) return status;
    const double own = SecondsSince(start);
    const bool warm_up = round == 0 && own < kLongRound;
    if (!warm_up) {
      seconds.push_back(own / ours.steps());
    } else {
      ours.attention().ClearStats();
    }
    const double of_peers = RunPeers(peers, warm_up);
    if (warm_up) continue;
    total += own;
    total_of_all += own + of_peers;
    if (total >= next_probe) {
      stream.Run();
      next_probe = total + kSecondsBetweenProbes;
    }
    const bool long_enough =
        total >= options.seconds || total_of_all >= kMostSecondsOfAll * options.seconds;
    if (static_cast<int>(seconds.size()) >= options.rounds && long_enough) break;
  }
  return seconds;
}

// "tile int8 bf16"; the scalar twin's f64 is held against the f32 rate.
void FillKernel(std::string_view kernel, AttentionBenchResult& result) {
  const std::size_t scores = kernel.find(' ') + 1;
  const std::size_t values = kernel.find(' ', scores) + 1;
  result.kernel = kernel;
  result.score_type = kernel.substr(scores, values - 1 - scores);
  result.value_type = kernel.substr(values);
}

// Half of the work at the peak of each product.
double PeakOf(const AttentionBenchResult& of, ThreadPool& pool) {
  return 2 / (1 / PeakGflops(of.score_type, of.isa, pool) +
              1 / PeakGflops(of.value_type, of.isa, pool));
}

void FillSizes(const Shape& shape, AttentionBenchResult& result) {
  const auto queries = static_cast<double>(shape.queries);
  const double visible = queries * static_cast<double>(shape.tokens) - queries * (queries - 1) / 2;
  result.dense_gflop = 4.0 * static_cast<double>(shape.heads * shape.dim) * visible * 1e-9;
  result.kv_gbytes = static_cast<double>(shape.KvBytes()) * 1e-9;
}

Status FillErrors(const AttentionBenchOptions& options, const Inputs& inputs, ThreadPool& pool,
                  Ours& ours, std::vector<LivePeer>& peers, AttentionBenchResult& result) {
  const Shape& shape = inputs.shape();
  const std::int64_t of_a_token = shape.tokens * shape.heads * shape.dim;
  const auto most = static_cast<int>(std::clamp<std::int64_t>(kFloat64Products / of_a_token, 1, 8));
  const Reference float64 = Float64Reference(inputs, most, pool);
  result.rel_error_vs_float64 = RelativeError(ours.output(), inputs, float64);
  result.rel_error_vs_dense = result.rel_error_vs_float64;
  if (options.settings.method != "dense") {
    const Result<Reference> dense = DenseReference(inputs, kDenseTokens, options.isa, pool);
    if (!dense.ok()) return dense.status();
    result.rel_error_vs_dense = RelativeError(ours.output(), inputs, dense.value());
  }
  for (LivePeer& live : peers) {
    PeerResult peer{live.peer->name(), live.status};
    if (live.status.ok()) {
      peer.version = live.peer->version();
      peer.timing = Summarise(live.seconds);
      peer.rel_error_vs_float64 = RelativeError(live.peer->output(), inputs, float64);
    }
    result.peers.push_back(std::move(peer));
  }
  return Status::Ok();
}

}  // namespace

Result<AttentionBenchResult> RunAttentionBench(const AttentionBenchOptions& options,
                                               const Inputs& inputs, ThreadPool& pool) {
  Result<Ours> ours = MakeOurs(options, inputs, pool);
  if (!ours.ok()) return ours.status();
  StreamProbe stream(ours->attention().isa(), pool);  // before peers ask what memory is free
  std::vector<LivePeer> peers;
  if (options.peers) peers = PreparePeers(options, inputs, pool.threads());
  const Result<std::vector<double>> seconds = Measure(options, *ours, peers, stream);
  if (!seconds.ok()) return seconds.status();

  AttentionBenchResult result;
  result.isa = ours->attention().isa();
  FillKernel(ours->attention().kernel(), result);
  result.timing = Summarise(seconds.value());
  FillSizes(inputs.shape(), result);
  const AttentionStats stats = ours->attention().stats();
  const double calls = static_cast<double>(seconds.value().size()) * ours->steps();
  result.selected_fraction =
      static_cast<double>(stats.keys_read) / static_cast<double>(stats.keys_visible);
  result.select_s = stats.select_s / calls;
  result.attend_s = stats.attend_s / calls;
  result.extra_bytes = ours->ExtraBytes();
  // Errors take seconds between the two: a processor that was shared in one may be ours in the other.
  const double peak_before = PeakOf(result, pool);
  Status status = FillErrors(options, inputs, pool, *ours, peers, result);
  if (!status.ok()) return status;
  peers.clear();
  result.peak_gflops = std::max(peak_before, PeakOf(result, pool));
  for (int i = 0; i < kLastProbes; ++i) stream.Run();
  result.stream_gbytes_per_s = stream.best();
  return result;
}

}  // namespace coppice::bench
