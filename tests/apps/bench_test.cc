// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// `coppice bench attention`: the figures are there and make sense, not how good they are.
#include <gtest/gtest.h>

#include "command.h"
#include "support/reference.h"

namespace coppice::testing {
namespace {

CommandResult Bench(std::vector<std::string> more) {
  std::vector<std::string> arguments = {
      "bench",      "attention", "--tokens",  "2048", "--heads",   "4", "--kv-heads", "2",
      "--head-dim", "64",        "--threads", "1",    "--seconds", "0", "--json"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return RunCommand(arguments);
}

// No peer of `tools/setup peers`, whatever this machine has.
class BenchWithoutPeers : public ::testing::Test {
 protected:
  BenchWithoutPeers() {
    unsetenv("COPPICE_PEERS_PYTHON");
    setenv("XDG_CACHE_HOME", cache_.Path("empty").c_str(), 1);
  }
  TemporaryDirectory cache_;
};

TEST_F(BenchWithoutPeers, JsonHasTheKeysOfTheContract) {
  const CommandResult result = Bench({"--phase", "prefill", "--queries", "64", "--peers"});
  ASSERT_EQ(result.status, 0) << result.err;
  const nlohmann::json json = result.Json();
  for (const char* key :
       {"seconds_min", "seconds_median", "gflops", "gbytes_per_s", "peak_gflops", "arithmetic",
        "isa", "stream_gbytes_per_s", "selected_fraction", "select_s", "attend_s", "extra_bytes",
        "rel_error_vs_dense", "rel_error_vs_float64"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_GE(json["rounds"], 3);
  EXPECT_GT(json["peak_gflops"], 0);
  EXPECT_GT(json["stream_gbytes_per_s"], 0);
  EXPECT_LT(json["selected_fraction"], 1.0);
  ASSERT_TRUE(json["peers"]["ggml"].contains("ratio_median")) << json["peers"];
  EXPECT_LT(json["peers"]["ggml"]["rel_error_vs_dense"], 4e-3);
  EXPECT_EQ(json["peers"]["ggml"]["rel_error_vs_dense"],
            json["peers"]["ggml"]["rel_error_vs_float64"]);
  EXPECT_NE(json["peers"]["ggml"]["version"], "");
}

TEST_F(BenchWithoutPeers, MissingPeersSayHowToGetThem) {
  const nlohmann::json json = Bench({"--peers"}).Json();
  for (const char* peer : {"pytorch-f32", "pytorch-bf16", "onnxruntime"}) {
    EXPECT_EQ(json["peers"][peer]["error"], "not installed; install it with tools/setup peers");
  }
  EXPECT_TRUE(json["peers"]["ggml"].contains("seconds_min"));
}

TEST_F(BenchWithoutPeers, APythonThatIsNotThereIsNamed) {
  setenv("COPPICE_PEERS_PYTHON", "/nowhere/python3", 1);
  const nlohmann::json json = Bench({"--peers"}).Json();
  unsetenv("COPPICE_PEERS_PYTHON");
  for (const char* peer : {"pytorch-f32", "pytorch-bf16", "onnxruntime"}) {
    const std::string error = json["peers"][peer]["error"];
    EXPECT_NE(error.find("/nowhere/python3"), std::string::npos) << error;
  }
}

TEST(Bench, MeasuresAsManyRoundsAsAskedFor) {
  EXPECT_EQ(Bench({"--phase", "decode", "--method", "dense", "--rounds", "2000"}).Json()["rounds"],
            2000);
}

TEST(Bench, ErrorOfAPrunedResultIsThatOfThePruning) {
  const nlohmann::json json = Bench({"--phase", "decode", "--budget", "256"}).Json();
  const double against_dense = json["rel_error_vs_dense"];
  EXPECT_GT(against_dense, 1e-3);
  EXPECT_NEAR(json["rel_error_vs_float64"].get<double>(), against_dense, 1e-4);
}

TEST(Bench, DenseIsRight) {
  for (const char* type : {"f16", "bf16", "f32"}) {
    for (const char* phase : {"prefill", "decode"}) {
      for (const char* input : {"random", "smooth"}) {
        const nlohmann::json json =
            Bench({"--method", "dense", "--kv-type", type, "--phase", phase, "--input", input})
                .Json();
        EXPECT_LE(json["rel_error_vs_dense"], ExactBound(json["isa"].get<std::string>()))
            << type << " " << phase << " " << input;
        EXPECT_EQ(json["selected_fraction"], 1.0);
      }
    }
  }
}

TEST(Bench, FlopsAndBytesAreTheDenseOnes) {
  const nlohmann::json json = Bench({"--method", "dense", "--phase", "decode"}).Json();
  const double seconds = json["seconds_min"];
  EXPECT_NEAR(json["gflops"].get<double>() * seconds, 4.0 * 4 * 64 * 2048 * 1e-9, 1e-9);
  EXPECT_NEAR(json["gbytes_per_s"].get<double>() * seconds, 2.0 * 2048 * 2 * 64 * 2 * 1e-9, 1e-9);
}

TEST(Bench, ThreadsDoNotChangeTheResult) {
  const auto error = [](const char* threads) {
    return RunCommand({"bench", "attention", "--tokens", "2048", "--seconds", "0", "--threads",
                       threads, "--json"})
        .Json()["rel_error_vs_dense"];
  };
  EXPECT_EQ(error("1"), error("3"));
}

TEST(Bench, WhatCannotBe) {
  ExpectError(RunCommand({"bench", "attention", "--kv-type", "q8_0", "--head-dim", "80", "--tokens",
                          "512"}),
              2, {"q8_0", "32", "80"});
  ExpectError(Bench({"--phase", "decode", "--queries", "3"}), 2, {"prefill"});
  ExpectError(Bench({"--phase", "prefill", "--queries", "4000"}), 2, {"4000", "2048"});
  ExpectError(RunCommand({"bench", "attention", "--tokens", "200000000"}), 1, {"GiB", "--tokens"});
  ExpectError(RunCommand({"bench", "attention", "--heads", "9", "--kv-heads", "2"}), 2, {"9", "2"});
}

}  // namespace
}  // namespace coppice::testing
