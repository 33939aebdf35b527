// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// `coppice bench attention`: the command line and the report of bench/attention_bench.h.
#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "attention_bench.h"
#include "commands.h"
#include "common_flags.h"
#include "console.h"
#include "memory.h"
#include "npy.h"
#include "settings_flags.h"

namespace coppice::app {
namespace {

struct BenchOptions {
  SettingsFlags flags;
  std::string phase = "decode";
  std::string method;
  std::int64_t tokens = 16384;
  std::int64_t queries = 0;
  std::int64_t heads = 32;
  std::int64_t kv_heads = 8;
  std::int64_t head_dim = 128;
  std::string kv_type = "f16";
  std::string input = "smooth";
  std::uint64_t seed = 1;
  double seconds = 1;
  std::int64_t rounds = 3;
  int threads = DefaultThreads();
  bool peers = false;
  bool json = false;
};

constexpr std::int64_t kPrefillQueries = 512;
constexpr const char* kHelp =
    R"(One layer's causal attention: the last --queries of --tokens tokens. The default shape is that of
Llama 3 8B: 32 query heads, 8 KV heads, dim 128.

Inputs: random (independent normal numbers: nothing is worth selecting), smooth (keys and queries
walk slowly along the tokens, as real ones do: neighbours score alike) or a .npy file with the keys
of a real model, f32 [tokens, kv_heads, dim], which then sets those three sizes.

Examples:
  coppice bench attention --phase decode --tokens 65536 --threads 1 --peers
  coppice bench attention --phase prefill --tokens 16384 --method dense --kv-type bf16

At least --rounds rounds, and as many as fill --seconds; a round of ours, then one of each peer. In
decode a round of a pruning method is the --refresh steps that share a selection, and the figure is
their mean. Reported: fastest and median round; GFLOP/s of the work that dense attention does, whatever
was skipped; GB/s as if keys and values were read once; the two ceilings of this machine; the error
against our dense kernel (of dense itself and of the peers: against float64). Where peers are slow,
rounds end when all together have taken 20 times --seconds.)";

// Sizes and type from the flags; checked, so that products of them fit.
Result<bench::Shape> ShapeOf(const BenchOptions& options) {
  bench::Shape shape{.tokens = options.tokens,
                     .queries = options.queries,
                     .heads = options.heads,
                     .kv_heads = options.kv_heads,
                     .dim = options.head_dim,
                     .type = ParseKvType(options.kv_type)};
  if (shape.queries == 0) {
    shape.queries = options.phase == "decode" ? 1 : std::min(kPrefillQueries, options.tokens);
  }
  if (options.phase == "decode" && shape.queries != 1) {
    return Status::InvalidArgument("decode has 1 query, not " + std::to_string(shape.queries) +
                                   "; use --phase prefill");
  }
  if (shape.queries > shape.tokens) {
    return Status::InvalidArgument(std::to_string(shape.queries) + " queries do not fit into " +
                                   std::to_string(shape.tokens) + " tokens; use more --tokens");
  }
  if (shape.type == DType::kQ8_0 && shape.dim % kQ8BlockSize != 0) {
    return Status::InvalidArgument("q8_0 rows are made of blocks of 32 elements; head-dim " +
                                   std::to_string(shape.dim) + " is no multiple of that");
  }
  if (shape.heads % shape.kv_heads != 0) {
    return Status::InvalidArgument("heads (" + std::to_string(shape.heads) +
                                   ") must be a multiple of kv-heads (" +
                                   std::to_string(shape.kv_heads) + ")");
  }
  return shape;
}

// Peers are asked later, one by one.
Status CheckMemory(const bench::Shape& shape) {
  double bytes = static_cast<double>(shape.KvBytes());
  bytes += 2.0 * 4 * static_cast<double>(shape.queries * shape.heads * shape.dim);
  const auto available = static_cast<double>(AvailableMemory());
  if (bytes < available) return Status::Ok();
  return Status::ResourceExhausted("this needs " + HumanBytes(bytes) + ", but only " +
                                   HumanBytes(available) +
                                   " of memory are free; use fewer --tokens or --kv-heads");
}

Result<bench::Inputs> MakeInputs(const BenchOptions& options, ThreadPool& pool) {
  Array keys;
  BenchOptions sized = options;
  const bool from_file = options.input != "random" && options.input != "smooth";
  if (from_file) {
    Result<Array> read = ReadNpy(options.input, 3, "--input keys");
    if (!read.ok()) return read.status();
    keys = std::move(read).value();
    sized.tokens = keys.shape[0];
    sized.kv_heads = keys.shape[1];
    sized.head_dim = keys.shape[2];
  }
  const Result<bench::Shape> shape = ShapeOf(sized);
  if (!shape.ok()) return shape.status();
  if (Status status = CheckMemory(shape.value()); !status.ok()) return status;
  if (from_file) return bench::Inputs::FromKeys(shape.value(), keys.data, options.seed, pool);
  const auto kind =
      options.input == "random" ? bench::Inputs::Kind::kRandom : bench::Inputs::Kind::kSmooth;
  return bench::Inputs::Make(shape.value(), kind, options.seed, pool);
}

nlohmann::json PeersJson(const bench::AttentionBenchResult& result) {
  nlohmann::json peers = nlohmann::json::object();
  for (const bench::PeerResult& peer : result.peers) {
    if (!peer.status.ok()) {
      peers[peer.name] = {{"error", peer.status.message()}};
      continue;
    }
    const bench::Timing& timing = peer.timing;
    peers[peer.name] = {{"seconds_min", timing.seconds_min},
                        {"seconds_median", timing.seconds_median},
                        {"seconds_p99", timing.seconds_p99},
                        {"rounds", timing.rounds},
                        {"gflops", result.dense_gflop / timing.seconds_min},
                        {"gbytes_per_s", result.kv_gbytes / timing.seconds_min},
                        {"ratio_min", timing.seconds_min / result.timing.seconds_min},
                        {"ratio_median", timing.seconds_median / result.timing.seconds_median},
                        {"rel_error_vs_dense", peer.rel_error_vs_float64},
                        {"rel_error_vs_float64", peer.rel_error_vs_float64},
                        {"version", peer.version}};
  }
  return peers;
}

std::string ArithmeticOf(const bench::AttentionBenchResult& result) {
  if (result.score_type == result.value_type) return result.score_type;
  return result.score_type + " scores, " + result.value_type + " values";
}

nlohmann::json ReportJson(const BenchOptions& options, const AttentionChoice& choice,
                          const bench::Shape& shape, const bench::AttentionBenchResult& result) {
  nlohmann::json json = {{"phase", options.phase},
                         {"method", choice.settings.method},
                         {"tokens", shape.tokens},
                         {"queries", shape.queries},
                         {"heads", shape.heads},
                         {"kv_heads", shape.kv_heads},
                         {"head_dim", shape.dim},
                         {"kv_type", options.kv_type},
                         {"threads", options.threads},
                         {"input", options.input},
                         {"seed", options.seed},
                         {"settings", ToJson(choice)},
                         {"isa", result.isa},
                         {"kernel", result.kernel},
                         {"arithmetic", ArithmeticOf(result)},
                         {"rounds", result.timing.rounds},
                         {"seconds_min", result.timing.seconds_min},
                         {"seconds_median", result.timing.seconds_median},
                         {"seconds_p99", result.timing.seconds_p99},
                         {"gflops", result.dense_gflop / result.timing.seconds_min},
                         {"gbytes_per_s", result.kv_gbytes / result.timing.seconds_min},
                         {"peak_gflops", result.peak_gflops},
                         {"stream_gbytes_per_s", result.stream_gbytes_per_s},
                         {"selected_fraction", result.selected_fraction},
                         {"select_s", result.select_s},
                         {"attend_s", result.attend_s},
                         {"extra_bytes", result.extra_bytes},
                         {"kv_bytes", shape.KvBytes()},
                         {"rel_error_vs_dense", result.rel_error_vs_dense},
                         {"rel_error_vs_float64", result.rel_error_vs_float64}};
  if (options.peers) json["peers"] = PeersJson(result);
  return json;
}

void PrintReport(const AttentionChoice& choice, const bench::AttentionBenchResult& result) {
  std::vector<std::vector<std::string>> rows = {
      {"", "min ms", "median ms", "GFLOP/s", "GB/s", "error", "time / ours"}};
  const auto add = [&](const std::string& name, const bench::Timing& timing, double error) {
    char error_text[32];
    std::snprintf(error_text, sizeof(error_text), "%.1e", error);
    rows.push_back({name, Fixed(1e3 * timing.seconds_min, 3), Fixed(1e3 * timing.seconds_median, 3),
                    Fixed(result.dense_gflop / timing.seconds_min, 1),
                    Fixed(result.kv_gbytes / timing.seconds_min, 1), error_text,
                    Fixed(timing.seconds_median / result.timing.seconds_median, 2)});
  };
  add(choice.settings.method + " (" + result.isa + ")", result.timing, result.rel_error_vs_dense);
  for (const bench::PeerResult& peer : result.peers) {
    if (peer.status.ok()) {
      add(peer.name, peer.timing, peer.rel_error_vs_float64);
    } else {
      Note(peer.name + ": " + peer.status.message());
    }
  }
  PrintTable(rows, stdout);
  std::printf("this machine: %s GFLOP/s of multiply-adds (%s), %s GB/s of streaming reads\n",
              Fixed(result.peak_gflops, 0).c_str(), ArithmeticOf(result).c_str(),
              Fixed(result.stream_gbytes_per_s, 1).c_str());
  std::printf("keys read: %s %%, search %s ms, attention %s ms (of thread time), scratch %s\n",
              Fixed(100 * result.selected_fraction, 2).c_str(),
              Fixed(1e3 * result.select_s, 3).c_str(), Fixed(1e3 * result.attend_s, 3).c_str(),
              HumanBytes(static_cast<double>(result.extra_bytes)).c_str());
}

Status RunBenchAttention(const BenchOptions& options) {
  const Result<AttentionChoice> choice = options.flags.Resolve(options.method);
  if (!choice.ok()) return choice.status();
  ThreadPool pool(options.threads);
  const Result<bench::Inputs> inputs = MakeInputs(options, pool);
  if (!inputs.ok()) return inputs.status();
  const Result<bench::AttentionBenchResult> result = bench::RunAttentionBench(
      {.settings = choice.value().settings,
       .isa = choice.value().isa,
       .peers = options.peers,
       .seconds = options.seconds,
       .rounds = static_cast<int>(options.rounds),
       .available_bytes = [] { return static_cast<double>(AvailableMemory()); }},
      inputs.value(), pool);
  if (!result.ok()) return result.status();
  if (options.json) {
    PrintJson(ReportJson(options, choice.value(), inputs.value().shape(), result.value()));
  } else {
    PrintReport(choice.value(), result.value());
  }
  return Status::Ok();
}

void AddSize(CLI::App& command, const char* flag, std::int64_t& value, std::int64_t least,
             std::int64_t most, const char* help) {
  command.add_option(flag, value, help)
      ->type_name("N")
      ->check(Between(static_cast<double>(least), static_cast<double>(most)))
      ->capture_default_str();
}

}  // namespace

void AddBenchCommand(CLI::App& app, Action& action) {
  CLI::App* bench = app.add_subcommand("bench", "Measure speed on this machine");
  bench->require_subcommand(1);
  CLI::App* command = bench->add_subcommand("attention", "One layer's attention, beside its peers");
  command->footer(kHelp);
  auto options = std::make_shared<BenchOptions>();
  command->add_option("--phase", options->phase, "decode: 1 query; prefill: many")
      ->type_name("prefill|decode")
      ->check(OneOf({"prefill", "decode"}))
      ->capture_default_str();
  command->add_option("--method", options->method, KnownMethods(/*allow_off=*/false))
      ->type_name("METHOD")
      ->default_str(AttentionSettings().method);
  AddSize(*command, "--tokens", options->tokens, 1, 1 << 28, "keys and values");
  AddSize(*command, "--queries", options->queries, 0, 1 << 20,
          "query tokens at the end; 0: 1 in decode, 512 in prefill");
  AddSize(*command, "--heads", options->heads, 1, 4096, "query heads");
  AddSize(*command, "--kv-heads", options->kv_heads, 1, 4096, "KV heads");
  AddSize(*command, "--head-dim", options->head_dim, 1, 4096, "numbers in a head's row");
  AddKvType(*command, options->kv_type);
  command->add_option("--input", options->input, "what the data looks like")
      ->type_name("random|smooth|FILE.npy")
      ->capture_default_str();
  command->add_option("--seed", options->seed, "of the data")
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--seconds", options->seconds, "measure at least that long")
      ->type_name("S")
      ->check(Between(0, 3600))
      ->capture_default_str();
  AddSize(*command, "--rounds", options->rounds, 1, 2000, "and at least that often");
  AddThreads(*command, options->threads);
  command->add_flag("--peers", options->peers, "measure ggml, PyTorch and ONNX Runtime too");
  command->add_flag("--json", options->json, "print one JSON object");
  options->flags.AddTo(*command, /*allow_off=*/false);
  command->callback(
      [options, &action] { action = [options] { return RunBenchAttention(*options); }; });
}

}  // namespace coppice::app
