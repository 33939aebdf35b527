// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Running the coppice command as a user does, and files to give to it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace coppice::testing {

struct CommandResult {
  int status = -1;  // exit status; 128 + n when signal n ended it
  std::string out;
  std::string err;

  // The last line of stdout; discarded() when it is no JSON.
  nlohmann::json Json() const;
  // Lines of stderr that report an error.
  std::vector<std::string> Errors() const;
};

struct CommandOptions {
  std::string in;              // stdin
  std::string out_path;        // where stdout goes instead of into the result
  int interrupt_after_ms = 0;  // send SIGINT then; 0: never
};

CommandResult RunCommand(const std::vector<std::string>& arguments,
                         const CommandOptions& options = {});

// A directory of this test, removed at the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  std::string Path(const std::string& name) const { return path_ + "/" + name; }
  // Writes a file and returns its path.
  std::string Write(const std::string& name, const std::string& bytes) const;

 private:
  std::string path_;
};

std::string ReadAll(const std::string& path);

// Checks that the command failed in the way of the house: one line, this exit status, and text that
// contains all of `words`.
void ExpectError(const CommandResult& result, int status, const std::vector<std::string>& words);

}  // namespace coppice::testing
