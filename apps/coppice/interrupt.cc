// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "interrupt.h"

namespace coppice::app {
namespace {

volatile std::sig_atomic_t interrupted = 0;

void OnSignal(int /*signal*/) { interrupted = 1; }

}  // namespace

InterruptScope::InterruptScope() {
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &old_int_);
  sigaction(SIGTERM, &action, &old_term_);
}

InterruptScope::~InterruptScope() {
  sigaction(SIGINT, &old_int_, nullptr);
  sigaction(SIGTERM, &old_term_, nullptr);
}

bool Interrupted() { return interrupted != 0; }
bool InterruptedCallback(void* /*unused*/) { return Interrupted(); }
Status InterruptedStatus() { return Status::Cancelled("interrupted; there is no result"); }

}  // namespace coppice::app
