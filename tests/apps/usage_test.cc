// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What needs no model: help, versions, and command lines that make no sense.
#include <gtest/gtest.h>

#include "command.h"

namespace coppice::testing {
namespace {

TEST(Usage, HelpShowsExamples) {
  for (const std::vector<std::string>& command : {std::vector<std::string>{},
                                                  {"run"},
                                                  {"bench", "attention"},
                                                  {"eval", "passkey"},
                                                  {"eval", "perplexity"},
                                                  {"select"},
                                                  {"attend"},
                                                  {"convert"}}) {
    std::vector<std::string> arguments = command;
    arguments.emplace_back("--help");
    const CommandResult result = RunCommand(arguments);
    EXPECT_EQ(result.status, 0);
    EXPECT_EQ(result.err, "");
    EXPECT_NE(result.out.find("Example"), std::string::npos) << result.out;
    EXPECT_NE(result.out.find("  coppice "), std::string::npos) << result.out;
  }
}

TEST(Usage, HelpShowsTheDefaultsOfTheSettings) {
  const CommandResult result = RunCommand({"run", "--help"});
  for (const char* flag : {"--budget", "--block-k", "--block-q", "--query-stride", "--sink",
                           "--window", "--representative", "--share-group", "--no-share-group",
                           "--dense-layers", "--refresh", "--exact", "--fast", "--config"}) {
    EXPECT_NE(result.out.find(flag), std::string::npos) << flag;
  }
}

TEST(Usage, Version) {
  const CommandResult result = RunCommand({"--version"});
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.out.rfind("coppice ", 0), 0u) << result.out;
  EXPECT_NE(result.out.find("generic"), std::string::npos) << result.out;
}

TEST(Usage, NonsenseIsStatusTwo) {
  ExpectError(RunCommand({}), 2, {"--help"});
  ExpectError(RunCommand({"walk"}), 2,
              {"walk", "run", "bench", "eval", "select", "attend", "convert"});
  ExpectError(RunCommand({"run"}), 2, {"--model", "coppice run --help"});
  ExpectError(RunCommand({"run", "-m", "x", "--frobnicate"}), 2, {"--frobnicate"});
  ExpectError(RunCommand({"run", "-m", "x"}), 2, {"-f", "-p"});
  ExpectError(RunCommand({"run", "-m", "x", "-p", "y", "--threads", "0"}), 2, {"--threads", "1"});
  ExpectError(RunCommand({"bench"}), 2, {"coppice bench --help"});
  ExpectError(RunCommand({"bench", "attention", "--phase", "sideways"}), 2, {"prefill", "decode"});
}

TEST(Usage, SettingsThatCannotBe) {
  const auto run = [](std::vector<std::string> more) {
    more.insert(more.begin(), {"run", "-m", "x", "-p", "y"});
    return RunCommand(more);
  };
  ExpectError(run({"--attention", "guess"}), 2, {"guess", "off", "dense", "hip", "streaming"});
  ExpectError(run({"--budget", "0"}), 2, {"budget", "0"});
  ExpectError(run({"--budget", "many"}), 2, {"budget", "many"});
  ExpectError(run({"--budget", "99999999999"}), 2, {"budget"});
  ExpectError(run({"--representative", "last"}), 2, {"representative", "first", "center"});
  ExpectError(run({"--attention", "hip:budget"}), 2, {"hip:budget=256"});
  ExpectError(run({"--attention", "hip:buget=3"}), 2, {"buget", "budget"});
  ExpectError(run({"--isa", "sse9"}), 2, {"sse9", "generic"});
}

TEST(Usage, ConfigFile) {
  const TemporaryDirectory directory;
  const auto run = [&](const std::string& config) {
    return RunCommand({"run", "-m", "x", "-p", "y", "--config", directory.Write("c.json", config)});
  };
  ExpectError(run("{\"bugdet\": 3}"), 2, {"bugdet", "budget"});
  ExpectError(run("{\"budget\": 3"), 2, {"JSON"});
  ExpectError(run("[3]"), 2, {"JSON"});
  ExpectError(run("{\"budget\": \"three\"}"), 2, {"budget", "three"});
  ExpectError(run("{\"budget\": 0}"), 2, {"budget", "0"});
  ExpectError(run("{\"share_group\": 1}"), 2, {"share_group", "true"});
}

TEST(Usage, AFullDiskUnderStdout) {
  const CommandResult result =
      RunCommand({"bench", "attention", "--tokens", "64", "--seconds", "0", "--json"},
                 {.out_path = "/dev/full"});
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(result.Errors().size(), 1u) << result.err;
}

}  // namespace
}  // namespace coppice::testing
