// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// A program that answers lines with lines. Its stdin and stdout are one socket, so that writing to
// a dead one is an error and no signal; its stderr goes to memory, and the end of it into the
// message when the program dies. It knows nothing of what the lines mean. Called by
// process_peer.cc.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coppice/status.h"

namespace coppice::bench {

// A file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const { return fd_; }
  bool ok() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// A file in memory, of zeros.
Result<Descriptor> MakeMemoryFile(const char* name, std::size_t bytes);

class ChildProcess {
 public:
  // How long to wait for one answer.
  using Patience = std::chrono::milliseconds;

  // `files` become descriptors 3, 4, ... of the program. `command` begins with the program's path.
  static Result<ChildProcess> Start(const std::vector<std::string>& command,
                                    std::span<const Descriptor* const> files);

  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&&) = delete;
  // Kills it: it has nothing to clean up.
  ~ChildProcess();

  // Sends a line, when there is one, and waits for the next line of the program, without its
  // newline. A program that dies, closes its socket, falls silent or never ends its line is killed
  // and gives a status.
  Result<std::string> Ask(std::string_view line, Patience patience);

 private:
  ChildProcess(pid_t pid, Descriptor socket, Descriptor errors)
      : pid_(pid), socket_(std::move(socket)), errors_(std::move(errors)) {}

  Status Send(std::string_view line);
  Result<std::string> Receive(Patience patience);
  // Kills and reaps it, once.
  void Stop();
  // The same for one that closed its end. Returns what happened to it, in words.
  std::string Bury();
  std::string LastErrorLine() const;

  pid_t pid_ = -1;  // -1 when there is none any more
  Descriptor socket_;
  Descriptor errors_;
  std::string received_;  // what came after the last line
};

}  // namespace coppice::bench
