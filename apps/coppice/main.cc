// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The coppice command: reads the command line, runs one subcommand, and turns its status into one
// line on stderr and an exit status. It holds no attention code.
//
//   0 done   1 the work failed   2 bad usage   130 stopped by Ctrl-C
#include <llama.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "commands.h"
#include "coppice/attention.h"
#include "coppice/coppice.h"

namespace coppice::app {
namespace {

constexpr const char* kExamples = R"(Examples:
  coppice run -m model.gguf -f book.txt -p "Who is the narrator?"
      answer a question about a long document, with pruned attention
  coppice run -m model.gguf -f book.txt -p "Who is the narrator?" --attention off
      the same with llama.cpp's own attention, to compare
  coppice bench attention --phase decode --tokens 131072 --peers
      how fast one layer's attention is on this machine, beside ggml's
  coppice eval passkey -m model.gguf --lengths 2048,8192 --attention dense,hip
      does a model still find a number hidden in a long text?
  coppice convert -m model-q4_1.gguf -o model-q8_0.gguf
      store its weights as llama.cpp reads long prompts fastest from

Every command takes --json: one JSON object is then the only thing on stdout.
Exit status: 0 done, 1 the work failed, 2 bad usage, 130 stopped by Ctrl-C.)";

std::string Version() {
  std::string isas;
  for (const std::string& isa : AvailableIsas()) isas += (isas.empty() ? "" : " ") + isa;
  return std::string("coppice ") + coppice_version() + "\n" + llama_version() +
         " (llama.cpp), kernels: " + isas;
}

// "coppice bench attention", as far as the command line got.
std::string CommandPath(const CLI::App& app) {
  std::string path = "coppice";
  for (const CLI::App* at = &app; !at->get_subcommands().empty();) {
    at = at->get_subcommands().front();
    path += " " + at->get_name();
  }
  return path;
}

int Complain(const CLI::App& app, std::string message, int exit_status) {
  for (char& c : message) {
    if (c == '\n') c = ' ';
  }
  std::fprintf(stderr, "%s: error: %s\n", CommandPath(app).c_str(), message.c_str());
  return exit_status;
}

int ExitStatus(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return 0;
    case StatusCode::kInvalidArgument:
      return 2;
    case StatusCode::kCancelled:
      return 130;
    default:
      return 1;
  }
}

// CLI11 would only say that a subcommand is missing.
std::string UnknownCommand(const CLI::App& app, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return {};
  std::string known;
  for (const CLI::App* command : app.get_subcommands({})) {
    if (command->get_name() == argv[1]) return {};
    known += (known.empty() ? "" : ", ") + command->get_name();
  }
  return "unknown command '" + std::string(argv[1]) + "'; known: " + known;
}

int Parse(CLI::App& app, int argc, char** argv, bool& done) {
  if (const std::string unknown = UnknownCommand(app, argc, argv); !unknown.empty()) {
    done = true;
    return Complain(app, unknown, 2);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {  // --help, --version
    done = true;
    return app.exit(asked);
  } catch (const CLI::ParseError& error) {
    done = true;
    return Complain(app, std::string(error.what()) + " (see " + CommandPath(app) + " --help)", 2);
  }
  return 0;
}

int Main(int argc, char** argv) {
  CLI::App app{"Sub-quadratic attention for pretrained language models, without retraining.",
               "coppice"};
  app.set_version_flag("--version", Version);
  app.require_subcommand(1);
  app.footer(kExamples);
  Action action;
  AddRunCommand(app, action);
  AddBenchCommand(app, action);
  AddEvalCommand(app, action);
  AddSelectCommand(app, action);
  AddAttendCommand(app, action);
  AddConvertCommand(app, action);

  bool done = false;
  const int parsed = Parse(app, argc, argv, done);
  if (done) return parsed;
  try {
    const Status status = action();
    if (!status.ok()) return Complain(app, status.message(), ExitStatus(status));
  } catch (const std::bad_alloc&) {
    return Complain(app, "out of memory; try a shorter input or fewer tokens", 1);
  } catch (const std::exception& error) {
    return Complain(app, std::string("internal error: ") + error.what() + "; please report it", 1);
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    return Complain(app, "cannot write to stdout; is the disk full?", 1);
  }
  return 0;
}

}  // namespace
}  // namespace coppice::app

int main(int argc, char** argv) { return coppice::app::Main(argc, argv); }
