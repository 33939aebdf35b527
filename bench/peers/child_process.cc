// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "peers/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

namespace coppice::bench {
namespace {

using Clock = std::chrono::steady_clock;

// Ours are moved above those that the program finds its files at, so that dup2 hits none of them.
constexpr int kFirstOwnDescriptor = 32;
constexpr int kFirstFile = 3;
constexpr std::size_t kLongestLine = 4096;
constexpr off_t kErrorTail = 2000;
// A program that closed its socket is about to end; what it ended with is worth that wait.
constexpr std::chrono::milliseconds kEndWait{500};

Status SystemError(const std::string& what) {
  return Status::Internal(what + ": " + std::strerror(errno));
}

Descriptor MoveUp(int fd) {
  const Descriptor low(fd);
  return Descriptor(low.ok() ? fcntl(fd, F_DUPFD_CLOEXEC, kFirstOwnDescriptor) : -1);
}

struct SpawnActions {
  posix_spawn_file_actions_t actions;
  SpawnActions() { posix_spawn_file_actions_init(&actions); }
  ~SpawnActions() { posix_spawn_file_actions_destroy(&actions); }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;
  void Place(const Descriptor& from, int to) {
    posix_spawn_file_actions_adddup2(&actions, from.get(), to);
  }
};

std::string HowItEnded(int status) {
  if (WIFSIGNALED(status)) return "was killed by signal " + std::to_string(WTERMSIG(status));
  return "ended with status " + std::to_string(WEXITSTATUS(status));
}

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Descriptor::~Descriptor() {
  if (fd_ >= 0) close(fd_);
}

Result<Descriptor> MakeMemoryFile(const char* name, std::size_t bytes) {
  Descriptor file = MoveUp(memfd_create(name, MFD_CLOEXEC));
  if (!file.ok() || ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) {
    return SystemError("no shared memory of " + std::to_string(bytes) + " bytes");
  }
  return file;
}

Result<ChildProcess> ChildProcess::Start(const std::vector<std::string>& command,
                                         std::span<const Descriptor* const> files) {
  int ends[2] = {-1, -1};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return SystemError("no socket for a child process");
  }
  Descriptor ours(ends[0]);
  const Descriptor its = MoveUp(ends[1]);
  Result<Descriptor> errors = MakeMemoryFile("stderr", 0);
  if (!errors.ok()) return errors.status();
  if (!its.ok()) return SystemError("no socket for a child process");

  SpawnActions spawn;
  spawn.Place(its, STDIN_FILENO);
  spawn.Place(its, STDOUT_FILENO);
  spawn.Place(errors.value(), STDERR_FILENO);
  for (std::size_t i = 0; i < files.size(); ++i) {
    spawn.Place(*files[i], kFirstFile + static_cast<int>(i));
  }
  std::vector<char*> arguments;
  for (const std::string& argument : command) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  pid_t pid = -1;
  const int error =
      posix_spawn(&pid, arguments[0], &spawn.actions, nullptr, arguments.data(), environ);
  if (error != 0) {
    return Status::NotFound("cannot run " + command[0] + ": " + std::strerror(error));
  }
  return ChildProcess(pid, std::move(ours), std::move(errors).value());
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      socket_(std::move(other.socket_)),
      errors_(std::move(other.errors_)),
      received_(std::move(other.received_)) {}

ChildProcess::~ChildProcess() { Stop(); }

Result<std::string> ChildProcess::Ask(std::string_view line, Patience patience) {
  if (pid_ < 0) return Status::Internal("has ended before");
  if (!line.empty()) {
    if (Status status = Send(line); !status.ok()) return status;
  }
  return Receive(patience);
}

Status ChildProcess::Send(std::string_view line) {
  const std::string whole = std::string(line) + "\n";
  // A line is far shorter than a socket's buffer: it is taken whole or not at all.
  const ssize_t sent = send(socket_.get(), whole.data(), whole.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent == static_cast<ssize_t>(whole.size())) return Status::Ok();
  return Status::Internal(Bury());
}

Result<std::string> ChildProcess::Receive(Patience patience) {
  const Clock::time_point deadline = Clock::now() + patience;
  while (true) {
    if (const std::size_t end = received_.find('\n'); end != std::string::npos) {
      std::string line = received_.substr(0, end);
      received_.erase(0, end + 1);
      return line;
    }
    if (received_.size() > kLongestLine) {
      Stop();
      return Status::Internal("sent a line of more than " + std::to_string(kLongestLine) +
                              " bytes");
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    pollfd waiting = {.fd = socket_.get(), .events = POLLIN, .revents = 0};
    // Asked once more after the deadline: we may have slept longer than the program.
    const int ready = poll(&waiting, 1, static_cast<int>(std::max<std::int64_t>(0, left.count())));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      Stop();
      char seconds[32];
      std::snprintf(seconds, sizeof(seconds), "%g", static_cast<double>(patience.count()) / 1000);
      return Status::Internal("gave no answer for " + std::string(seconds) + " s and was stopped");
    }
    char bytes[1024];
    const ssize_t count = recv(socket_.get(), bytes, sizeof(bytes), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return Status::Internal(Bury());
    received_.append(bytes, static_cast<std::size_t>(count));
  }
}

void ChildProcess::Stop() {
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

std::string ChildProcess::Bury() {
  std::string words = "closed its end and was stopped";
  for (const auto deadline = Clock::now() + kEndWait; pid_ >= 0 && Clock::now() < deadline;) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      words = HowItEnded(status);
      pid_ = -1;
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  Stop();
  const std::string error = LastErrorLine();
  return error.empty() ? words : words + ": " + error;
}

std::string ChildProcess::LastErrorLine() const {
  const off_t size = lseek(errors_.get(), 0, SEEK_END);
  std::string tail(static_cast<std::size_t>(std::clamp<off_t>(size, 0, kErrorTail)), '\0');
  const ssize_t count =
      pread(errors_.get(), tail.data(), tail.size(), size - static_cast<off_t>(tail.size()));
  tail.resize(count < 0 ? 0 : static_cast<std::size_t>(count));
  while (!tail.empty() && std::isspace(static_cast<unsigned char>(tail.back()))) tail.pop_back();
  return tail.substr(tail.rfind('\n') + 1);
}

}  // namespace coppice::bench
