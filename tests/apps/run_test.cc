// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// `coppice run` and `coppice eval` with a small model.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>

#include "model_fixture.h"

namespace coppice::testing {
namespace {

using RunTest = ModelTest;
using EvalTest = ModelTest;

TEST_F(RunTest, JsonHasTheKeysOfTheContract) {
  const CommandResult result = Run({"-p", "hello", "-n", "4", "--attention", "dense", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 1);
  const nlohmann::json json = result.Json();
  for (const char* key :
       {"text", "prompt_tokens", "prefill_s", "decode_s", "generated_tokens", "attention_prefill_s",
        "attention_decode_s", "peak_rss_bytes", "kv_bytes", "attention", "dense_fallbacks"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(json["attention"]["method"], "dense");
  EXPECT_GT(json["kv_bytes"], 0);
  EXPECT_GT(json["peak_rss_bytes"], 0);
  EXPECT_EQ(json["keys_read_fraction"], 1.0);
}

TEST_F(RunTest, EveryAttentionSaysTheSameWhenTheBudgetCoversTheContext) {
  std::string expected;
  for (const char* attention : {"off", "dense", "hip:budget=4096"}) {
    const CommandResult result =
        Run({"-p", "hello", "-n", "8", "--attention", attention, "--json"});
    ASSERT_EQ(result.status, 0) << result.err;
    const std::string text = result.Json()["text"];
    if (expected.empty()) expected = text;
    EXPECT_EQ(text, expected) << attention;
  }
}

TEST_F(RunTest, OffDoesNotKnowItsAttentionTime) {
  const nlohmann::json json = Run({"-p", "a", "-n", "2", "--attention", "off", "--json"}).Json();
  EXPECT_TRUE(json["attention_prefill_s"].is_null());
  EXPECT_EQ(json["attention"]["method"], "off");
}

TEST_F(RunTest, PruningReadsFewerKeys) {
  const CommandResult result = Run({"-f", text_, "--ctx", "24000", "-n", "1", "--budget", "64",
                                    "--dense-layers", "0", "--window", "64", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_LT(result.Json()["keys_read_fraction"], 0.1);
}

TEST_F(RunTest, FlagsWinOverTheConfigFile) {
  const std::string config = directory_.Write(
      "c.json", R"({"method": "streaming", "budget": 333, "sink": 7, "share_group": false})");
  const CommandResult result =
      Run({"-p", "a", "-n", "1", "--config", config, "--budget", "444", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const nlohmann::json attention = result.Json()["attention"];
  EXPECT_EQ(attention["method"], "streaming");
  EXPECT_EQ(attention["budget"], 444);
  EXPECT_EQ(attention["sink"], 7);
  EXPECT_EQ(attention["share_group"], false);
}

TEST_F(RunTest, AnswersOfDigits) {
  const nlohmann::json json =
      Run({"-p", "a number?", "-n", "6", "--answer", "digits", "--json"}).Json();
  const std::string text = json["text"];
  EXPECT_FALSE(text.empty());
  EXPECT_TRUE(std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return std::isdigit(c);
  })) << text;
}

TEST_F(RunTest, TemperatureFollowsTheSeed) {
  const auto text = [&](const char* seed) {
    return Run({"-p", "a", "-n", "12", "--temperature", "1", "--seed", seed, "--json"})
        .Json()["text"];
  };
  EXPECT_EQ(text("1"), text("1"));
  EXPECT_NE(text("1"), text("2"));
}

TEST_F(RunTest, QuantisedCacheIsRead) {
  const CommandResult result = Run({"-p", "a", "-n", "2", "--kv-type", "q8_0", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.Json()["dense_fallbacks"], 0);
  EXPECT_GT(result.Json()["attention_prefill_s"], 0);
}

TEST_F(RunTest, CacheOfUnknownKindFallsBackAndSaysSo) {
  const CommandResult result = Run({"-p", "a", "-n", "2", "--kv-type", "f32", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_GT(result.Json()["dense_fallbacks"], 0);
  EXPECT_FALSE(result.Json()["dense_fallback_reasons"].empty());
}

TEST_F(RunTest, TextStreamsToStdoutAndTheTableToStderr) {
  const CommandResult result = Run({"-p", "a", "-n", "3", "--answer", "digits"});
  ASSERT_EQ(result.status, 0);
  EXPECT_EQ(result.out.find("prefill"), std::string::npos);
  EXPECT_NE(result.err.find("prefill"), std::string::npos);
  EXPECT_NE(result.err.find("keys read"), std::string::npos);
}

TEST_F(EvalTest, Passkey) {
  const CommandResult result = RunCommand(
      {"eval", "passkey", "-m", model_, "--text", text_, "--lengths", "600,800", "--attention",
       "off,hip:budget=64:window=32", "--samples", "2", "--threads", "1", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const nlohmann::json json = result.Json();
  EXPECT_NE(json["answer"].get<std::string>().find("digits"), std::string::npos);
  ASSERT_EQ(json["results"].size(), 4u);
  const nlohmann::json& last = json["results"][3];
  EXPECT_EQ(last["task"], "passkey");
  EXPECT_EQ(last["length"], 800);
  EXPECT_EQ(last["attention"], "hip:budget=64:window=32");
  EXPECT_EQ(last["settings"]["budget"], 64);
  EXPECT_EQ(last["samples"], 2);
  EXPECT_GE(last["score"], 0.0);
  EXPECT_GT(last["prefill_s"], 0.0);
  EXPECT_EQ(json["results"][0]["keys_read_fraction"], 1.0);
}

TEST_F(EvalTest, PerplexityIsTheSameForAllThatReadEverything) {
  const CommandResult result =
      RunCommand({"eval", "perplexity", "-m", model_, "--text", text_, "--lengths", "1500",
                  "--attention", "off,dense,hip:budget=4096,streaming:window=32", "--dense-layers",
                  "0", "--samples", "2", "--threads", "1", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const nlohmann::json results = result.Json()["results"];
  const double off = results[0]["score"];
  EXPECT_GT(off, 1.0);
  EXPECT_NEAR(results[1]["score"], off, 1e-3 * off);
  EXPECT_NEAR(results[2]["score"], off, 1e-3 * off);
  EXPECT_GT(std::abs(results[3]["score"].get<double>() - off), 1e-3 * off);
}

TEST_F(EvalTest, TooShort) {
  ExpectError(RunCommand({"eval", "passkey", "-m", model_, "--text", text_, "--lengths", "64",
                          "--attention", "dense", "--json"}),
              2, {"64", "too short"});
}

TEST_F(EvalTest, CtrlCStopsCleanly) {
  const CommandResult result =
      RunCommand({"eval", "perplexity", "-m", model_, "--text", text_, "--lengths", "4000",
                  "--attention", "dense", "--samples", "100000", "--threads", "1", "--json"},
                 {.interrupt_after_ms = 2000});
  EXPECT_EQ(result.status, 130) << result.err;
  EXPECT_EQ(result.out, "");
  ASSERT_EQ(result.Errors().size(), 1u);
  EXPECT_NE(result.Errors()[0].find("interrupted"), std::string::npos);
}

}  // namespace
}  // namespace coppice::testing
