// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// `coppice convert` with a small model.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>

#include "model_fixture.h"

namespace coppice::testing {
namespace {

class ConvertTest : public ModelTest {
 protected:
  CommandResult Convert(const std::string& out, const CommandOptions& options = {}) const {
    return RunCommand({"convert", "-m", model_, "-o", out, "--threads", "1", "--json"}, options);
  }
  // Files in the directory, beside the model and the text.
  std::vector<std::string> Left() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(directory_.Path(""))) {
      const std::string path = entry.path().string();
      if (path != model_ && path != text_) names.push_back(entry.path().filename().string());
    }
    return names;
  }
  const std::string out_ = directory_.Path("q8_0.gguf");
};

using Names = std::vector<std::string>;

TEST_F(ConvertTest, TheSmallerModelAnswers) {
  const CommandResult converted = Convert(out_);
  ASSERT_EQ(converted.status, 0) << converted.err;
  EXPECT_EQ(Left(), Names{"q8_0.gguf"});
  const nlohmann::json json = converted.Json();
  EXPECT_EQ(json["out"], out_);
  EXPECT_EQ(json["bytes_before"], std::filesystem::file_size(model_));
  EXPECT_EQ(json["bytes"], std::filesystem::file_size(out_));
  EXPECT_LT(json["bytes"], json["bytes_before"]);

  const CommandResult answer = RunCommand({"run", "-m", out_, "-p", "hello", "-n", "4", "--json"});
  EXPECT_EQ(answer.status, 0) << answer.err;
  EXPECT_EQ(answer.Json()["generated_tokens"], 4);
}

TEST_F(ConvertTest, NothingIsReplaced) {
  const std::string model = ReadAll(model_);
  ExpectError(Convert(model_), 2, {model_, "exists"});
  EXPECT_EQ(ReadAll(model_), model);
  ExpectError(Convert("/dev/null"), 2, {"/dev/null", "exists"});
}

TEST_F(ConvertTest, PlacesThatCannotBeWritten) {
  ExpectError(Convert("/nowhere/m.gguf"), 1, {"/nowhere/m.gguf", "No such file or directory"});
  EXPECT_EQ(Left(), Names{});
}

TEST_F(ConvertTest, ModelsThatCannotBeRead) {
  model_ = "/nowhere/m.gguf";
  ExpectError(Convert(out_), 1, {"/nowhere/m.gguf", "check the path"});
  model_ = text_;
  ExpectError(Convert(out_), 1, {"text.txt", "not a GGUF"});
  EXPECT_EQ(std::filesystem::exists(out_), false);
}

TEST_F(ConvertTest, AFullDiskLeavesNothing) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 16 << 10;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);  // both are inherited by the command
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const CommandResult result = Convert(out_);
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  ExpectError(result, 1, {"q8_0.gguf", "is the disk full?"});
  EXPECT_EQ(Left(), Names{});
}

}  // namespace
}  // namespace coppice::testing
