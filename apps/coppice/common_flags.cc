// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "common_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>
#include <vector>

namespace coppice::app {
namespace {

constexpr int kMostThreads = 1024;

std::string Written(double number) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.15g", number);
  return text;
}

}  // namespace

std::function<std::string(const std::string&)> Between(double least, double most) {
  return [least, most](const std::string& text) -> std::string {
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    if (!text.empty() && *end == '\0' && number >= least && number <= most) return {};
    return "'" + text + "' is not a number between " + Written(least) + " and " + Written(most);
  };
}

std::function<std::string(const std::string&)> OneOf(std::vector<std::string> known) {
  return [known = std::move(known)](const std::string& text) -> std::string {
    std::string names;
    for (const std::string& name : known) {
      if (name == text) return {};
      names += (names.empty() ? "" : ", ") + name;
    }
    return "unknown '" + text + "'; known: " + names;
  };
}

int DefaultThreads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMostThreads);
}

void AddThreads(CLI::App& command, int& threads) {
  command.add_option("--threads", threads, "threads to compute with")
      ->type_name("N")
      ->check(Between(1, kMostThreads))
      ->capture_default_str();
}

void AddKvType(CLI::App& command, std::string& name) {
  command.add_option("--kv-type", name, "how keys and values are stored")
      ->type_name("f16|bf16|f32|q8_0")
      ->check(OneOf({"f16", "bf16", "f32", "q8_0"}))
      ->capture_default_str();
}

DType ParseKvType(const std::string& name) {
  return name == "f32"    ? DType::kF32
         : name == "bf16" ? DType::kBF16
         : name == "q8_0" ? DType::kQ8_0
                          : DType::kF16;
}

}  // namespace coppice::app
