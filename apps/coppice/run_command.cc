// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// `coppice run`: a question about a long document, answered by a GGUF model.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "answer.h"
#include "commands.h"
#include "common_flags.h"
#include "console.h"
#include "context.h"
#include "files.h"
#include "interrupt.h"
#include "memory.h"
#include "model.h"
#include "prefill.h"
#include "prompt.h"
#include "settings_flags.h"

namespace coppice::app {
namespace {

struct RunOptions {
  SettingsFlags flags;
  ModelOptions model;
  std::string file;
  std::string prompt;
  std::string attention;
  std::string answer = "free";
  std::string kv_type = "f16";
  int tokens = 128;
  int context = 0;
  int threads = DefaultThreads();
  std::uint64_t seed = 1;
  float temperature = 0;
  bool raw = false;
  bool json = false;
};

constexpr int kMostContext = 1 << 28;
constexpr const char* kHelp = R"(Examples:
  coppice run -m model.gguf -f book.txt -p "Who is the narrator?"
  man bash | coppice run -m model.gguf -f - -p "How do I list the jobs?" --budget 1024
  coppice run -m model.gguf -p "Name three trees." -n 64 --attention dense
  coppice run -m model.gguf -f book.txt -p "The pass key is" --raw --answer digits --json

The document and the question go to the model in one message, in its own chat format when it has one.
--attention: off is llama.cpp's own attention; dense is ours, reading every key; the others read what
they select. Settings can be written at a method: --attention hip:budget=256:block_k=16.
Ctrl-C stops a computation cleanly (exit status 130); a second one kills.)";

struct RunResult {
  std::string text;
  int prompt_tokens = 0;
  int generated_tokens = 0;
  double prefill_s = 0;
  double decode_s = 0;
  std::size_t kv_bytes = 0;
  LlamaStats stats;
};

Result<int> ContextTokens(const RunOptions& options, const Model& model, int prompt_tokens) {
  const int needed = prompt_tokens + options.tokens;
  const std::string need = "the prompt has " + WithCommas(prompt_tokens) +
                           " tokens and -n asks for " + WithCommas(options.tokens) +
                           " more, together " + WithCommas(needed);
  if (options.context > 0) {
    if (needed <= options.context) return options.context;
    return Status::ResourceExhausted(need + ", but --ctx is " + WithCommas(options.context) +
                                     "; raise --ctx, lower -n, or cut the document");
  }
  if (needed <= model.trained_tokens()) return needed;
  return Status::ResourceExhausted(
      need + ", but the model was trained for " + WithCommas(model.trained_tokens()) +
      "; cut the document, or pass --ctx " + std::to_string(needed) + " to go beyond");
}

Result<Tokens> ReadPrompt(const RunOptions& options, const Model& model) {
  std::string document;
  if (!options.file.empty()) {
    Result<std::string> text = ReadText(options.file);
    if (!text.ok()) return text.status();
    document = std::move(text).value();
  }
  if (const std::size_t bad = FirstBadUtf8(options.prompt); bad != std::string::npos) {
    return Status::InvalidArgument("the prompt is not UTF-8 text: bad byte at offset " +
                                   std::to_string(bad) + "; type it in a UTF-8 terminal");
  }
  Result<Tokens> tokens = BuildPrompt(model, document, options.prompt, options.raw);
  if (tokens.ok() && tokens->empty()) {
    return Status::InvalidArgument("the prompt has no tokens; give -p a question");
  }
  return tokens;
}

// Answers token by token, printing as it goes unless the answer is for JSON.
Status Generate(const RunOptions& options, const Model& model, Context& context,
                RunResult& result) {
  const bool number = options.answer == "digits";
  Chooser chooser(model, number ? Alphabet::kNumber : Alphabet::kFree, options.temperature,
                  options.seed);
  const auto start = std::chrono::steady_clock::now();
  while (result.generated_tokens < options.tokens) {
    const Result<llama_token> token =
        chooser.Choose(context.Logits(0), result.generated_tokens == 0);
    if (!token.ok()) return token.status();
    if (llama_vocab_is_eog(model.vocab(), token.value())) break;
    std::string piece = Piece(model, token.value());
    if (number && !piece.empty() && piece[0] == ' ') piece.erase(0, 1);
    result.text += piece;
    ++result.generated_tokens;
    if (!options.json) {
      std::fwrite(piece.data(), 1, piece.size(), stdout);
      std::fflush(stdout);
    }
    if (result.generated_tokens == options.tokens) break;
    Status status = context.Decode({&token.value(), 1}, /*outputs=*/1);
    if (!status.ok()) return status;
  }
  result.decode_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!options.json) std::fputs("\n", stdout);
  return Status::Ok();
}

nlohmann::json ReportJson(const RunOptions& options, const AttentionChoice& choice,
                          const RunResult& result) {
  const auto ours = [&](double seconds) {
    return choice.off ? nlohmann::json() : nlohmann::json(seconds);
  };
  return {{"text", result.text},
          {"prompt_tokens", result.prompt_tokens},
          {"prefill_s", result.prefill_s},
          {"decode_s", result.decode_s},
          {"generated_tokens", result.generated_tokens},
          {"attention_prefill_s", ours(result.stats.prefill.seconds)},
          {"attention_decode_s", ours(result.stats.decode.seconds)},
          {"keys_read_fraction", KeysReadFraction(result.stats)},
          {"peak_rss_bytes", PeakResidentBytes()},
          {"kv_bytes", result.kv_bytes},
          {"kv_type", options.kv_type},
          {"threads", options.threads},
          {"attention", ToJson(choice)},
          {"dense_fallbacks", result.stats.dense_fallbacks},
          {"dense_fallback_reasons", result.stats.fallback_reasons}};
}

void PrintReport(const RunOptions& options, const AttentionChoice& choice,
                 const RunResult& result) {
  const auto share = [&](double part, double whole) {
    return choice.off || whole <= 0 ? std::string("not known")
                                    : Fixed(100 * part / whole, 0) + " %";
  };
  // The first token comes from the prefill.
  const int steps = std::max(result.generated_tokens - 1, 0);
  const std::string rate = steps > 0 ? Fixed(steps / result.decode_s, 1) + " tokens/s" : "-";
  const std::vector<std::vector<std::string>> rows = {
      {"attention: " + choice.settings.method, "prefill", "decode"},
      {"tokens", WithCommas(result.prompt_tokens), WithCommas(result.generated_tokens)},
      {"seconds", Fixed(result.prefill_s, 2), Fixed(result.decode_s, 2)},
      {"rate", Fixed(result.prompt_tokens / result.prefill_s, 0) + " tokens/s", rate},
      {"share of attention", share(result.stats.prefill.seconds, result.prefill_s),
       share(result.stats.decode.seconds, result.decode_s)}};
  std::fputs("\n", stderr);
  PrintTable(rows, stderr);
  std::fprintf(stderr, "keys read: %s %%   KV cache: %s (%s)   peak memory: %s\n",
               Fixed(100 * KeysReadFraction(result.stats), 1).c_str(),
               HumanBytes(static_cast<double>(result.kv_bytes)).c_str(), options.kv_type.c_str(),
               HumanBytes(static_cast<double>(PeakResidentBytes())).c_str());
  for (const auto& [reason, count] : result.stats.fallback_reasons) {
    std::fprintf(stderr, "fell back %s times: %s\n",
                 WithCommas(static_cast<std::int64_t>(count)).c_str(), reason.c_str());
  }
}

Status Run(const RunOptions& options) {
  if (options.file.empty() && options.prompt.empty()) {
    return Status::InvalidArgument("nothing to do; give a document with -f, a question with -p");
  }
  const Result<AttentionChoice> choice = options.flags.Resolve(options.attention);
  if (!choice.ok()) return choice.status();
  const Result<Model> model = Model::Load(options.model);
  if (!model.ok()) return model.status();
  const Result<Tokens> prompt = ReadPrompt(options, model.value());
  if (!prompt.ok()) return prompt.status();
  RunResult result;
  result.prompt_tokens = static_cast<int>(prompt.value().size());
  const Result<int> size = ContextTokens(options, model.value(), result.prompt_tokens);
  if (!size.ok()) return size.status();

  const InterruptScope interrupts;
  Result<Context> context = Context::Create(
      model.value(), choice.value(),
      {.tokens = size.value(), .threads = options.threads, .kv_type = options.kv_type});
  if (!context.ok()) return context.status();
  if (size.value() > model.value().trained_tokens()) {
    Note("the model was trained for " + WithCommas(model.value().trained_tokens()) +
         " tokens; answers from beyond them may be poor");
  }
  const Result<double> prefill = Prefill(*context, prompt.value(), "reading");
  if (!prefill.ok()) return prefill.status();
  result.prefill_s = prefill.value();
  Status status = Generate(options, model.value(), *context, result);
  if (!status.ok()) return status;
  result.stats = context->stats();
  result.kv_bytes = context->KvBytes();
  if (options.json) {
    PrintJson(ReportJson(options, choice.value(), result));
  } else {
    PrintReport(options, choice.value(), result);
  }
  return Status::Ok();
}

void AddModelFlags(CLI::App& command, RunOptions& options) {
  command.add_option("-m,--model", options.model.path, "the model")
      ->type_name("MODEL.gguf")
      ->required();
  command.add_option("-f,--file", options.file, "the document, UTF-8 text; - is stdin")
      ->type_name("FILE");
  command.add_option("-p,--prompt", options.prompt, "the question")->type_name("TEXT");
  command.add_option("-n,--tokens", options.tokens, "generate at most that many tokens")
      ->type_name("N")
      ->check(Between(1, kMostContext))
      ->capture_default_str();
  command.add_option("--attention", options.attention, KnownMethods(/*allow_off=*/true))
      ->type_name("METHOD")
      ->default_str(AttentionSettings().method);
}

}  // namespace

void AddRunCommand(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("run", "Answer a question about a long document");
  command->footer(kHelp);
  auto options = std::make_shared<RunOptions>();
  AddModelFlags(*command, *options);
  AddThreads(*command, options->threads);
  command->add_option("--ctx", options->context, "tokens of context; 0: what the prompt needs")
      ->type_name("N")
      ->check(Between(0, kMostContext))
      ->capture_default_str();
  AddKvType(*command, options->kv_type);
  command->add_option("--answer", options->answer, "digits: a number is the only possible answer")
      ->type_name("free|digits")
      ->check(OneOf({"free", "digits"}))
      ->capture_default_str();
  command->add_option("--temperature", options->temperature, "0: always the likeliest token")
      ->type_name("T")
      ->check(Between(0, 100))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "of the choice, when the temperature is not 0")
      ->type_name("N")
      ->capture_default_str();
  command->add_flag("--raw", options->raw, "plain text: leave the model's chat format out");
  command->add_flag("--check-tensors", options->model.check_tensors,
                    "look at all weights first; models up to 1 GiB always are");
  command->add_flag("--verbose", options->model.verbose, "show llama.cpp's log");
  command->add_flag("--json", options->json, "print one JSON object instead of text");
  options->flags.AddTo(*command, /*allow_off=*/true);
  command->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace coppice::app
