// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// libllama as a guest in this process: its log is kept instead of printed, and when it crashes on a
// damaged model the user reads one line instead of a backtrace.
#pragma once

#include <array>
#include <csignal>
#include <functional>
#include <iterator>
#include <string>

#include "coppice/status.h"

namespace coppice::app {

// Loads the CPU backends, once. verbose: libllama's log goes to stderr.
Status StartLlama(bool verbose);

// The first error that libllama logged since the last call, without its function's name; may be
// empty.
std::string TakeLlamaError();

// While one lives, it hears every line of libllama's log. One at a time.
class LogListener {
 public:
  explicit LogListener(std::function<void(const char* line)> listen);
  ~LogListener();
  LogListener(const LogListener&) = delete;
  LogListener& operator=(const LogListener&) = delete;
};

// While one lives, a fatal signal or an abort of ggml ends the process with one line that blames the
// file, and exit status 1. For the time in which libllama trusts what it reads from a model file.
class DamageGuard {
 public:
  explicit DamageGuard(const std::string& path);
  ~DamageGuard();
  DamageGuard(const DamageGuard&) = delete;
  DamageGuard& operator=(const DamageGuard&) = delete;

 private:
  static constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGABRT, SIGILL};
  std::array<struct sigaction, std::size(kSignals)> old_ = {};
};

}  // namespace coppice::app
