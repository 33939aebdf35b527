// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "console.h"

namespace coppice::app {
namespace {

constexpr int kBarWidth = 24;
constexpr double kTerminalSeconds = 0.1;  // between two drawings of the bar
constexpr double kLogSeconds = 5;         // between two lines

double Seconds(std::chrono::steady_clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

Progress::Progress(std::string label, std::int64_t total, std::string unit)
    : label_(std::move(label)),
      total_(std::max<std::int64_t>(total, 1)),
      unit_(std::move(unit)),
      terminal_(IsTerminal(STDERR_FILENO)),
      start_(Clock::now()),
      shown_(start_) {}

std::string Progress::Line(std::int64_t done, double seconds) const {
  std::string line = label_ + "  ";
  if (terminal_) {
    const auto filled = static_cast<std::size_t>(kBarWidth * done / total_);
    line += "[" + std::string(filled, '#') + std::string(kBarWidth - filled, '.') + "]  ";
  }
  line += WithCommas(done) + " / " + WithCommas(total_) + " " + unit_;
  if (done > 0 && seconds > 0) {
    const double rate = static_cast<double>(done) / seconds;
    line += "  " + Fixed(rate, rate < 10 ? 2 : 0) + " " + unit_ + "/s  " +
            Fixed(static_cast<double>(total_ - done) / rate, 0) + " s left";
  }
  return line;
}

void Progress::Update(std::int64_t done) {
  const Clock::time_point now = Clock::now();
  if (Seconds(now - shown_) < (terminal_ ? kTerminalSeconds : kLogSeconds)) return;
  shown_ = now;
  const std::string line = Line(std::min(done, total_), Seconds(now - start_));
  std::fprintf(stderr, terminal_ ? "\r\033[K%s" : "%s\n", line.c_str());
  drawn_ = terminal_;
}

void Progress::Finish() {
  if (drawn_) std::fputs("\r\033[K", stderr);
  drawn_ = false;
}

}  // namespace coppice::app
