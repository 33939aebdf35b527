// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Progress of long work on stderr: a bar with rate and time left on a terminal, a plain line every
// few seconds in a log.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace coppice::app {

class Progress {
 public:
  // unit: plural, as in "tokens".
  Progress(std::string label, std::int64_t total, std::string unit);
  ~Progress() { Finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Update(std::int64_t done);
  // Clears the bar, so that other output can follow.
  void Finish();

 private:
  using Clock = std::chrono::steady_clock;

  std::string Line(std::int64_t done, double seconds) const;

  std::string label_;
  std::int64_t total_;
  std::string unit_;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point start_;
  Clock::time_point shown_;
};

}  // namespace coppice::app
