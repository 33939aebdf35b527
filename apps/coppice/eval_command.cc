// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// `coppice eval`: the same task with several kinds of attention and lengths, as a table.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "commands.h"
#include "common_flags.h"
#include "console.h"
#include "eval_task.h"
#include "files.h"
#include "interrupt.h"
#include "model.h"
#include "settings_flags.h"

namespace coppice::app {
namespace {

struct EvalOptions {
  SettingsFlags flags;
  ModelOptions model;
  std::string task;
  std::string text;
  std::vector<int> lengths = {2048, 4096, 8192};
  std::vector<std::string> attention = {"off", "dense", "hip"};
  std::string kv_type = "f16";
  int samples = 4;
  std::uint64_t seed = 1;
  int threads = DefaultThreads();
  bool json = false;
};

struct EvalRow {
  int length = 0;
  std::string attention;  // as written by the user
  AttentionChoice choice;
  double score = 0;
  double keys_read_fraction = 0;
  double prefill_s = 0;  // median over the samples
};

constexpr const char* kHelp = R"(Examples:
  coppice eval passkey -m model.gguf --lengths 2048,8192 --attention off,dense,hip --samples 16
  coppice eval perplexity -m model.gguf --attention dense,hip:budget=256,hip:budget=1024,streaming

passkey: five digits are hidden in a text of exactly that many tokens, at depths spread over the
samples; the answer is restricted to digits, for every attention alike. Score: share of right answers.
perplexity: of the last 1,024 of that many tokens. Score: lower is better.
Settings after a method hold for it alone; those given as flags hold for all.)";

std::string DefaultText() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache != '\0') return std::string(cache) + "/coppice/texts/kjv.txt";
  const char* home = std::getenv("HOME");
  return std::string(home == nullptr ? "" : home) + "/.cache/coppice/texts/kjv.txt";
}

Result<TextSource> ReadSource(const EvalOptions& options) {
  const bool given = !options.text.empty();
  Result<std::string> text = ReadText(given ? options.text : DefaultText());
  if (!text.ok()) {
    return Status(text.status().code(),
                  text.status().message() +
                      (given ? "" : ", make it with tools/setup text, or give a --text"));
  }
  return TextSource(std::move(text).value());
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

Status RunRow(const EvalOptions& options, const Model& model, EvalTask& task, EvalRow& row) {
  Result<Context> context = Context::Create(model, row.choice,
                                            {.tokens = row.length + task.extra_tokens(),
                                             .outputs = task.outputs(),
                                             .threads = options.threads,
                                             .kv_type = options.kv_type});
  if (!context.ok()) return context.status();
  std::vector<double> values;
  std::vector<double> seconds;
  for (int sample = 0; sample < options.samples; ++sample) {
    context->Clear();
    const Result<SampleResult> result =
        task.Run(*context, {row.length, sample, options.samples, options.seed});
    if (!result.ok()) return result.status();
    values.push_back(result.value().value);
    seconds.push_back(result.value().prefill_s);
    std::fprintf(stderr, "%s %d, %s: sample %d of %d, score so far %s\n", task.name(), row.length,
                 row.attention.c_str(), sample + 1, options.samples,
                 Fixed(task.Score(values), 3).c_str());
  }
  row.score = task.Score(values);
  row.prefill_s = Median(seconds);
  const LlamaStats stats = context->stats();
  row.keys_read_fraction = KeysReadFraction(stats);
  for (const auto& [reason, count] : stats.fallback_reasons) {
    Note(row.attention + " fell back " + std::to_string(count) + " times: " + reason);
  }
  return Status::Ok();
}

void PrintRows(const EvalOptions& options, const EvalTask& task, const std::vector<EvalRow>& rows) {
  std::vector<std::vector<std::string>> table = {
      {"attention", "tokens", task.name(), "keys read %", "prefill s"}};
  for (const EvalRow& row : rows) {
    table.push_back({row.attention, WithCommas(row.length), Fixed(row.score, 3),
                     Fixed(100 * row.keys_read_fraction, 1), Fixed(row.prefill_s, 2)});
  }
  PrintTable(table, stdout);
  std::printf("%d samples each", options.samples);
  if (!task.answer().empty()) std::printf("; answers can only be %s", task.answer().c_str());
  std::printf("\n");
}

void PrintRowsJson(const EvalOptions& options, const EvalTask& task,
                   const std::vector<EvalRow>& rows) {
  nlohmann::json results = nlohmann::json::array();
  for (const EvalRow& row : rows) {
    results.push_back({{"task", task.name()},
                       {"length", row.length},
                       {"attention", row.attention},
                       {"settings", ToJson(row.choice)},
                       {"samples", options.samples},
                       {"score", row.score},
                       {"keys_read_fraction", row.keys_read_fraction},
                       {"prefill_s", row.prefill_s}});
  }
  nlohmann::json json = {{"task", task.name()},        {"model", options.model.path},
                         {"seed", options.seed},       {"threads", options.threads},
                         {"kv_type", options.kv_type}, {"results", std::move(results)}};
  if (!task.answer().empty()) json["answer"] = task.answer();
  PrintJson(json);
}

Result<std::vector<EvalRow>> PlanRows(const EvalOptions& options) {
  std::vector<EvalRow> rows;
  for (const int length : options.lengths) {
    for (const std::string& attention : options.attention) {
      Result<AttentionChoice> choice = options.flags.Resolve(attention);
      if (!choice.ok()) return choice.status();
      EvalRow row;
      row.length = length;
      row.attention = attention;
      row.choice = std::move(choice).value();
      rows.push_back(std::move(row));
    }
  }
  return rows;
}

Status RunEval(const EvalOptions& options) {
  Result<std::vector<EvalRow>> rows = PlanRows(options);
  if (!rows.ok()) return rows.status();
  const Result<TextSource> text = ReadSource(options);
  if (!text.ok()) return text.status();
  const Result<Model> model = Model::Load(options.model);
  if (!model.ok()) return model.status();
  for (const int length : options.lengths) {
    if (length <= model.value().trained_tokens()) continue;
    Note("the model was trained for " + WithCommas(model.value().trained_tokens()) +
         " tokens, fewer than " + WithCommas(length));
  }
  const std::unique_ptr<EvalTask> task =
      options.task == "passkey" ? MakePasskey(model.value(), text.value())
                                : MakePerplexity(model.value(), text.value(), options.threads);
  const InterruptScope interrupts;
  for (EvalRow& row : *rows) {
    if (Status status = RunRow(options, model.value(), *task, row); !status.ok()) return status;
  }
  if (options.json) {
    PrintRowsJson(options, *task, *rows);
  } else {
    PrintRows(options, *task, *rows);
  }
  return Status::Ok();
}

void AddTask(CLI::App& eval, const std::string& name, const std::string& help, Action& action) {
  CLI::App* command = eval.add_subcommand(name, help);
  command->footer(kHelp);
  auto options = std::make_shared<EvalOptions>();
  options->task = name;
  command->add_option("-m,--model", options->model.path, "the model")
      ->type_name("MODEL.gguf")
      ->required();
  command->add_option("--text", options->text, "a long UTF-8 text")
      ->type_name("FILE")
      ->default_str("the text that tools/setup made");
  command->add_option("--lengths", options->lengths, "tokens of the prompts")
      ->type_name("N,N,...")
      ->delimiter(',')
      ->check(Between(1, 1 << 28))
      ->capture_default_str();
  command->add_option("--attention", options->attention, KnownMethods(/*allow_off=*/true))
      ->type_name("METHOD[:key=value],...")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--samples", options->samples, "prompts for each length and attention")
      ->type_name("N")
      ->check(Between(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "of keys and places")
      ->type_name("N")
      ->capture_default_str();
  AddThreads(*command, options->threads);
  AddKvType(*command, options->kv_type);
  command->add_flag("--check-tensors", options->model.check_tensors,
                    "look at all weights first; models up to 1 GiB always are");
  command->add_flag("--verbose", options->model.verbose, "show llama.cpp's log");
  command->add_flag("--json", options->json, "print one JSON object");
  options->flags.AddTo(*command, /*allow_off=*/true);
  command->callback([options, &action] { action = [options] { return RunEval(*options); }; });
}

}  // namespace

Result<Tokens> TextSource::TokensFrom(const Model& model, std::size_t offset, int count) const {
  const auto wanted = static_cast<std::size_t>(count);
  const std::size_t newline = text_.find('\n', std::min(offset, text_.size() - 1));
  std::size_t at = newline == std::string::npos || newline + 1 >= text_.size() ? 0 : newline + 1;
  Tokens tokens;
  // A token of prose has three to five bytes.
  std::size_t bytes = wanted * 5 + 256;
  while (tokens.size() < wanted) {
    // Cut at a line's end, so that no character is torn.
    std::size_t end = std::min(text_.size(), at + bytes);
    if (end < text_.size()) end = std::min(text_.size(), text_.find('\n', end));
    const Result<Tokens> more = Tokenize(model, text_.substr(at, end - at), /*special=*/false);
    if (!more.ok()) return more;
    if (more.value().empty()) {
      return Status::InvalidArgument("the text has no tokens for this model; give another --text");
    }
    tokens.insert(tokens.end(), more.value().begin(), more.value().end());
    at = end >= text_.size() ? 0 : end;
  }
  tokens.resize(wanted);
  return tokens;
}

void AddEvalCommand(CLI::App& app, Action& action) {
  CLI::App* eval = app.add_subcommand("eval", "Measure what a model still finds in long texts");
  eval->require_subcommand(1);
  AddTask(*eval, "passkey", "Find a number hidden in a long text", action);
  AddTask(*eval, "perplexity", "Predict the last 1,024 tokens of a long text", action);
}

}  // namespace coppice::app
