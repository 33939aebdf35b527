// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "command.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace coppice::testing {
namespace {

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// In the child: files as stdin, stdout and stderr, then the command.
[[noreturn]] void BecomeCommand(const std::vector<std::string>& arguments, const std::string& in,
                                const std::string& out, const std::string& err) {
  const int flags = O_WRONLY | O_CREAT | O_TRUNC;
  dup2(open(in.c_str(), O_RDONLY), STDIN_FILENO);
  dup2(open(out.c_str(), flags, 0600), STDOUT_FILENO);
  dup2(open(err.c_str(), flags, 0600), STDERR_FILENO);
  std::vector<char*> argv;
  argv.push_back(const_cast<char*>(COPPICE_COMMAND));
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execv(COPPICE_COMMAND, argv.data());
  _exit(127);
}

}  // namespace

CommandResult RunCommand(const std::vector<std::string>& arguments, const CommandOptions& options) {
  const TemporaryDirectory directory;
  const std::string in = directory.Write("in", options.in);
  const std::string err = directory.Path("err");
  const std::string out = options.out_path.empty() ? directory.Path("out") : options.out_path;
  const pid_t child = fork();
  if (child == 0) BecomeCommand(arguments, in, out, err);
  if (options.interrupt_after_ms > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(options.interrupt_after_ms));
    kill(child, SIGINT);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CommandResult result;
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (options.out_path.empty()) result.out = ReadAll(out);
  result.err = ReadAll(err);
  return result;
}

nlohmann::json CommandResult::Json() const {
  const std::vector<std::string> lines = Lines(out);
  return nlohmann::json::parse(lines.empty() ? "" : lines.back(), nullptr,
                               /*allow_exceptions=*/false);
}

std::vector<std::string> CommandResult::Errors() const {
  std::vector<std::string> errors;
  for (const std::string& line : Lines(err)) {
    if (line.find("error: ") != std::string::npos) errors.push_back(line);
  }
  return errors;
}

TemporaryDirectory::TemporaryDirectory() {
  std::string path = std::filesystem::temp_directory_path() / "coppice-test-XXXXXX";
  path_ = mkdtemp(path.data()) == nullptr ? "" : path;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

std::string TemporaryDirectory::Write(const std::string& name, const std::string& bytes) const {
  std::ofstream(Path(name), std::ios::binary) << bytes;
  return Path(name);
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

void ExpectError(const CommandResult& result, int status, const std::vector<std::string>& words) {
  EXPECT_EQ(result.status, status) << result.err;
  EXPECT_EQ(result.out, "");
  ASSERT_EQ(Lines(result.err).size(), 1u) << result.err;
  EXPECT_EQ(result.Errors().size(), 1u) << result.err;
  for (const std::string& word : words) {
    EXPECT_NE(result.err.find(word), std::string::npos) << "no '" << word << "' in: " << result.err;
  }
}

}  // namespace coppice::testing
