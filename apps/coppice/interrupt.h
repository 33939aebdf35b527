// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Ctrl-C during a computation: the first one asks it to stop, the second one kills.
#pragma once

#include <csignal>

#include "coppice/status.h"

namespace coppice::app {

// While one lives, SIGINT and SIGTERM set a flag. The next signal of its kind has its old effect.
class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

 private:
  struct sigaction old_int_ = {};
  struct sigaction old_term_ = {};
};

bool Interrupted();
// The form of ggml_abort_callback.
bool InterruptedCallback(void* unused);
Status InterruptedStatus();

}  // namespace coppice::app
