// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "llama_runtime.h"

#include <ggml-backend.h>
#include <llama.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <mutex>
#include <utility>

namespace coppice::app {
namespace {

struct Log {
  std::mutex mutex;
  bool verbose = false;
  bool in_error = false;  // a continuation line belongs to the error before it
  std::string first_error;
  std::function<void(const char*)> listen;
};

Log& TheLog() {
  static Log log;
  return log;
}

void OnLog(ggml_log_level level, const char* text, void* /*user_data*/) {
  Log& log = TheLog();
  const std::lock_guard<std::mutex> lock(log.mutex);
  if (log.verbose) std::fputs(text, stderr);
  if (level == GGML_LOG_LEVEL_ERROR && log.first_error.empty()) {
    log.first_error = text;
    log.in_error = true;
  } else if (level == GGML_LOG_LEVEL_CONT && log.in_error) {
    log.first_error += text;
  } else {
    log.in_error = false;
  }
  if (log.listen) log.listen(text);
}

// What the handlers write; set before they are installed.
char damage_line[1024];

[[noreturn]] void Die() {
  [[maybe_unused]] const ssize_t written =
      write(STDERR_FILENO, damage_line, std::strlen(damage_line));
  _exit(1);
}

void OnFatalSignal(int /*signal*/) { Die(); }
void OnGgmlAbort(const char* /*message*/) { Die(); }

}  // namespace

Status StartLlama(bool verbose) {
  TheLog().verbose = verbose;
  llama_log_set(OnLog, nullptr);
  if (ggml_backend_dev_count() == 0) {
    ggml_backend_load_all_from_path(COPPICE_LLAMA_BACKENDS_DIR);
    if (ggml_backend_dev_count() == 0) {
      return Status::NotFound(std::string("llama.cpp has no CPU backend in ") +
                              COPPICE_LLAMA_BACKENDS_DIR + "; install it with tools/setup llama");
    }
    llama_backend_init();
  }
  return Status::Ok();
}

std::string TakeLlamaError() {
  Log& log = TheLog();
  const std::lock_guard<std::mutex> lock(log.mutex);
  std::string error;
  error.swap(log.first_error);
  log.in_error = false;
  const std::size_t name = error.find(": ");
  if (name != std::string::npos && error.find(' ') > name) error.erase(0, name + 2);
  while (!error.empty() && error.back() == '\n') error.pop_back();
  return error;
}

LogListener::LogListener(std::function<void(const char* line)> listen) {
  Log& log = TheLog();
  const std::lock_guard<std::mutex> lock(log.mutex);
  log.listen = std::move(listen);
}

LogListener::~LogListener() {
  Log& log = TheLog();
  const std::lock_guard<std::mutex> lock(log.mutex);
  log.listen = nullptr;
}

DamageGuard::DamageGuard(const std::string& path) {
  std::snprintf(damage_line, sizeof(damage_line),
                "coppice: error: model '%s' is damaged: libllama crashed on it; fetch it again\n",
                path.c_str());
  ggml_set_abort_callback(OnGgmlAbort);
  struct sigaction action = {};
  action.sa_handler = OnFatalSignal;
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < old_.size(); ++i) sigaction(kSignals[i], &action, &old_[i]);
}

DamageGuard::~DamageGuard() {
  for (std::size_t i = 0; i < old_.size(); ++i) sigaction(kSignals[i], &old_[i], nullptr);
  ggml_set_abort_callback(nullptr);
}

}  // namespace coppice::app
