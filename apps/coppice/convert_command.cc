// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// `coppice convert`: the weights of a model as q8_0, written by libllama. Matrix products are most of a
// prefill once attention is pruned, and libllama multiplies some types two to three times as fast as others
// (docs/command.md).
#include <llama.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>

#include "commands.h"
#include "common_flags.h"
#include "console.h"
#include "files.h"
#include "interrupt.h"
#include "llama_runtime.h"
#include "model.h"
#include "progress.h"

namespace coppice::app {
namespace {

struct ConvertOptions {
  ModelOptions model;
  std::string out;
  int threads = DefaultThreads();
  bool json = false;
};

constexpr const char* kHelp = R"(Example:
  coppice convert -m model-q4_1.gguf -o model-q8_0.gguf

Why: the matrix products of a long prompt, which are llama.cpp's, take half the time and less from
q8_0 where weights are q4_1, q5_1, f16 or f32, and a fifth less from q5_0; nothing is gained from
q4_0. q8_0 keeps what a smaller type has left of the weights, and takes 8.5 bits for each.)";

// libllama can only be stopped where it calls us, which it does for each tensor: "[   3/ 272] blk.0..". It
// turns an exception into its own error.
void OnLogLine(const char* line, std::optional<Progress>& progress) {
  int done = 0;
  int total = 0;
  if (std::sscanf(line, "[%d/%d]", &done, &total) != 2) return;
  if (Interrupted()) throw std::runtime_error("interrupted");
  if (!progress) progress.emplace("converting", total, "tensors");
  progress->Update(done);
}

Status Quantize(const ConvertOptions& options, const std::string& out) {
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = LLAMA_FTYPE_MOSTLY_Q8_0;
  params.nthread = options.threads;
  params.allow_requantize = true;
  TakeLlamaError();
  std::optional<Progress> progress;
  std::uint32_t failed = 0;
  {
    const DamageGuard guard(options.model.path);
    const LogListener listener([&](const char* line) { OnLogLine(line, progress); });
    failed = llama_model_quantize(options.model.path.c_str(), out.c_str(), &params);
  }
  if (Interrupted()) return InterruptedStatus();
  if (failed == 0) return Status::Ok();
  return Status::ResourceExhausted("llama.cpp could not convert '" + options.model.path + "' to '" +
                                   options.out + "': " + TakeLlamaError() + "; is the disk full?");
}

Status Convert(const ConvertOptions& options) {
  if (std::filesystem::exists(std::filesystem::symlink_status(options.out))) {
    return Status::InvalidArgument("'" + options.out + "' exists; choose another name");
  }
  if (const Result<Model> model = Model::Load(options.model); !model.ok()) return model.status();

  const InterruptScope interrupts;
  const auto start = std::chrono::steady_clock::now();
  const PendingFile made(options.out);
  if (!made.status().ok()) return made.status();
  if (Status status = Quantize(options, made.name()); !status.ok()) return status;
  if (Status status = made.Publish(); !status.ok()) return status;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  const std::uintmax_t before = std::filesystem::file_size(options.model.path);
  const std::uintmax_t after = std::filesystem::file_size(options.out);
  if (options.json) {
    PrintJson({{"out", options.out},
               {"weights", "q8_0"},
               {"bytes_before", before},
               {"bytes", after},
               {"seconds", seconds}});
  } else {
    std::fprintf(stderr, "%s: %s, from %s, in %s s\n", options.out.c_str(),
                 HumanBytes(static_cast<double>(after)).c_str(),
                 HumanBytes(static_cast<double>(before)).c_str(), Fixed(seconds, 1).c_str());
  }
  return Status::Ok();
}

}  // namespace

void AddConvertCommand(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("convert", "Store a model's weights as q8_0");
  command->footer(kHelp);
  auto options = std::make_shared<ConvertOptions>();
  command->add_option("-m,--model", options->model.path, "the model")
      ->type_name("MODEL.gguf")
      ->required();
  command->add_option("-o,--out", options->out, "the converted one; must not exist")
      ->type_name("FILE.gguf")
      ->required();
  AddThreads(*command, options->threads);
  command->add_flag("--verbose", options->model.verbose, "show llama.cpp's log");
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options, &action] { action = [options] { return Convert(*options); }; });
}

}  // namespace coppice::app
