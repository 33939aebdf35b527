// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// `coppice select` and `coppice attend`: one layer's selection, or its whole attention, on arrays
// from files; for research and for checks from outside.
#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "commands.h"
#include "common_flags.h"
#include "console.h"
#include "coppice/attention.h"
#include "core/rows.h"
#include "npy.h"
#include "settings_flags.h"

namespace coppice::app {
namespace {

struct ArrayOptions {
  SettingsFlags flags;
  std::string method;
  std::string queries, keys, values, out, lse;
  std::string kv_type = "f32";
  int threads = DefaultThreads();
  bool json = false;
};

constexpr const char* kSelectHelp =
    R"(Arrays are .npy files of f32: queries [tokens, heads, dim], not scaled, and keys
[tokens, kv_heads, dim]; the last query sits on the last key.

Example:
  coppice select --method hip --queries q.npy --keys k.npy --budget 256 --json

JSON: selected[head][query_block] lists the first tokens of the selected key blocks, ascending;
head is a KV head when shared_by_group is true. Sink and window are read too, and are not listed.)";

constexpr const char* kAttendHelp =
    R"(Arrays are .npy files of f32: queries [tokens, heads, dim], not scaled, keys and values
[tokens, kv_heads, dim]; attention is causal, the last query sitting on the last key.

Example:
  coppice attend --method dense --queries q.npy --keys k.npy --values v.npy --out o.npy)";

TensorView ViewOf(const Array& array) {
  return Contiguous(array.data.data(), DType::kF32, array.shape[0], array.shape[1], array.shape[2]);
}

// Keys or values in the type that they are to be stored in; `storage` holds what is not f32. Blocks
// of q8_0 that do not fit into a row are refused later, with the other shapes.
TensorView Stored(const Array& array, DType type, std::vector<std::byte>& storage) {
  if (type == DType::kF32) return ViewOf(array);
  const TensorView view = Contiguous(nullptr, type, array.shape[0], array.shape[1], array.shape[2]);
  storage.resize(static_cast<std::size_t>(view.tokens * view.token_stride) + 1);
  const std::int64_t whole =
      type == DType::kQ8_0 ? view.dim / kQ8BlockSize * kQ8BlockSize : view.dim;
  for (std::int64_t row = 0; row < view.tokens * view.heads; ++row) {
    StoreRow(array.data.data() + row * view.dim, type, whole,
             storage.data() + row * view.head_stride);
  }
  return Contiguous(storage.data(), type, view.tokens, view.heads, view.dim);
}

// Where the budget covers everything, the mask says so instead of listing; the list is all blocks
// between sink and window.
std::vector<std::int32_t> RowStarts(const BlockMask& mask, int head, int block,
                                    std::int64_t visible, const AttentionSettings& settings) {
  if (!mask.Everything(head, block)) {
    const auto row = mask.Row(head, block);
    return {row.begin(), row.end()};
  }
  std::vector<std::int32_t> starts;
  for (std::int64_t at = settings.sink; at < visible - settings.window; at += mask.block_size) {
    starts.push_back(static_cast<std::int32_t>(at));
  }
  return starts;
}

nlohmann::json Selected(const BlockMask& mask, std::int64_t queries, std::int64_t keys,
                        const AttentionSettings& settings) {
  nlohmann::json heads = nlohmann::json::array();
  for (int head = 0; head < mask.heads; ++head) {
    nlohmann::json rows = nlohmann::json::array();
    for (int block = 0; block < mask.query_blocks; ++block) {
      const std::int64_t last =
          std::min((std::int64_t{block} + 1) * mask.query_block_size, queries);
      rows.push_back(RowStarts(mask, head, block, keys - queries + last, settings));
    }
    heads.push_back(std::move(rows));
  }
  return heads;
}

Status RunSelect(const ArrayOptions& options) {
  const Result<AttentionChoice> choice = options.flags.Resolve(options.method);
  if (!choice.ok()) return choice.status();
  if (choice.value().settings.method == "dense") {
    return Status::InvalidArgument("method 'dense' selects nothing; choose a pruning method");
  }
  const Result<Array> queries = ReadNpy(options.queries, 3, "queries");
  if (!queries.ok()) return queries.status();
  const Result<Array> keys = ReadNpy(options.keys, 3, "keys");
  if (!keys.ok()) return keys.status();
  std::vector<std::byte> key_storage;
  const TensorView key_view = Stored(keys.value(), ParseKvType(options.kv_type), key_storage);
  ThreadPool pool(options.threads);
  const AttentionSettings& settings = choice.value().settings;
  const Result<BlockMask> mask =
      Select(ViewOf(queries.value()), key_view, settings, pool, choice.value().isa);
  if (!mask.ok()) return mask.status();
  const std::int64_t query_tokens = queries.value().shape[0];
  const std::int64_t key_tokens = keys.value().shape[0];
  nlohmann::json selected = Selected(mask.value(), query_tokens, key_tokens, settings);
  if (options.json) {
    PrintJson({{"method", settings.method},
               {"block_size", mask.value().block_size},
               {"query_block_size", mask.value().query_block_size},
               {"shared_by_group", mask.value().shared_by_group},
               {"settings", ToJson(choice.value())},
               {"selected", std::move(selected)}});
    return Status::Ok();
  }
  std::size_t head = 0;
  for (const auto& rows : selected) {
    std::size_t block = 0;
    for (const auto& row : rows) {
      std::printf("head %zu, query block %zu: %zu blocks: %s\n", head, block++, row.size(),
                  row.dump().c_str());
    }
    ++head;
  }
  return Status::Ok();
}

struct AttendArrays {
  Array queries, keys, values;
};

Status ReadArrays(const ArrayOptions& options, AttendArrays& arrays) {
  const auto read = [](const std::string& path, const char* what, Array& array) {
    Result<Array> result = ReadNpy(path, 3, what);
    if (result.ok()) array = std::move(result).value();
    return result.status();
  };
  if (Status status = read(options.queries, "queries", arrays.queries); !status.ok()) return status;
  if (Status status = read(options.keys, "keys", arrays.keys); !status.ok()) return status;
  return read(options.values, "values", arrays.values);
}

Status RunAttend(const ArrayOptions& options) {
  const Result<AttentionChoice> choice = options.flags.Resolve(options.method);
  if (!choice.ok()) return choice.status();
  AttendArrays arrays;
  if (Status status = ReadArrays(options, arrays); !status.ok()) return status;
  const DType type = ParseKvType(options.kv_type);
  std::vector<std::byte> key_storage;
  std::vector<std::byte> value_storage;
  const std::vector<std::int64_t>& shape = arrays.queries.shape;
  const std::int64_t dim_v = arrays.values.shape[2];
  std::vector<float> output(static_cast<std::size_t>(shape[0] * shape[1] * dim_v));
  std::vector<float> lse(static_cast<std::size_t>(shape[0] * shape[1]));
  const AttentionInputs inputs{.queries = ViewOf(arrays.queries),
                               .keys = Stored(arrays.keys, type, key_storage),
                               .values = Stored(arrays.values, type, value_storage),
                               .output = Contiguous(output.data(), shape[0], shape[1], dim_v),
                               .lse = lse.data()};
  ThreadPool pool(options.threads);
  AttentionStats stats;
  const auto start = std::chrono::steady_clock::now();
  Status status = Attend(inputs, choice.value().settings, pool, &stats, choice.value().isa);
  if (!status.ok()) return status;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const std::int64_t out_shape[] = {shape[0], shape[1], dim_v};
  status = WriteNpy(options.out, out_shape, output);
  if (status.ok() && !options.lse.empty()) {
    status = WriteNpy(options.lse, std::span(out_shape).first(2), lse);
  }
  if (!status.ok()) return status;
  const double fraction = stats.keys_visible == 0 ? 1.0
                                                  : static_cast<double>(stats.keys_read) /
                                                        static_cast<double>(stats.keys_visible);
  if (options.json) {
    PrintJson({{"attention", ToJson(choice.value())},
               {"kv_type", options.kv_type},
               {"seconds", seconds},
               {"keys_read_fraction", fraction},
               {"out", options.out},
               {"lse", options.lse.empty() ? nlohmann::json() : nlohmann::json(options.lse)}});
  } else {
    std::fprintf(stderr, "%s: %s rows in %s s, %s %% of the keys read\n", options.out.c_str(),
                 WithCommas(shape[0] * shape[1]).c_str(), Fixed(seconds, 3).c_str(),
                 Fixed(100 * fraction, 1).c_str());
  }
  return Status::Ok();
}

std::shared_ptr<ArrayOptions> AddCommon(CLI::App& command) {
  auto options = std::make_shared<ArrayOptions>();
  command.add_option("--method", options->method, KnownMethods(/*allow_off=*/false))
      ->type_name("METHOD")
      ->default_str(AttentionSettings().method);
  command.add_option("--queries", options->queries, "f32 [tokens, heads, dim]")
      ->type_name("Q.npy")
      ->required();
  command.add_option("--keys", options->keys, "f32 [tokens, kv_heads, dim]")
      ->type_name("K.npy")
      ->required();
  AddKvType(command, options->kv_type);
  AddThreads(command, options->threads);
  command.add_flag("--json", options->json, "print one JSON object");
  // These two are for comparing with other implementations of the paper.
  options->flags.AddTo(command, /*allow_off=*/false, PaperSearch());
  return options;
}

}  // namespace

void AddSelectCommand(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("select", "Show which key blocks a method picks");
  command->footer(kSelectHelp);
  auto options = AddCommon(*command);
  command->callback([options, &action] { action = [options] { return RunSelect(*options); }; });
}

void AddAttendCommand(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("attend", "Run one layer's attention on arrays");
  command->footer(kAttendHelp);
  auto options = AddCommon(*command);
  command->add_option("--values", options->values, "f32 [tokens, kv_heads, dim]")
      ->type_name("V.npy")
      ->required();
  command->add_option("--out", options->out, "where the output goes, f32 [tokens, heads, dim]")
      ->type_name("O.npy")
      ->required();
  command->add_option("--lse", options->lse, "where the log-sum-exp goes, f32 [tokens, heads]")
      ->type_name("L.npy");
  command->callback([options, &action] { action = [options] { return RunAttend(*options); }; });
}

}  // namespace coppice::app
