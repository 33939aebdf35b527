// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "common_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <thread>
#include <vector>

namespace coppice::app {
namespace {

constexpr int kMostThreads = 1024;

}  // namespace

int DefaultThreads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMostThreads);
}

void AddThreads(CLI::App& command, int& threads) {
  command.add_option("--threads", threads, "threads to compute with")
      ->type_name("N")
      ->check(CLI::Range(1, kMostThreads))
      ->capture_default_str();
}

void AddKvType(CLI::App& command, std::string& name, bool quantised) {
  std::vector<std::string> names = {"f16", "bf16", "f32"};
  if (quantised) names.emplace_back("q8_0");
  command.add_option("--kv-type", name, "how keys and values are stored")
      ->type_name(quantised ? "f16|bf16|f32|q8_0" : "f16|bf16|f32")
      ->check([names](const std::string& text) {
        if (std::find(names.begin(), names.end(), text) != names.end()) return std::string();
        std::string known;
        for (const std::string& each : names) known += (known.empty() ? "" : ", ") + each;
        return "unknown KV type '" + text + "'; known: " + known;
      })
      ->capture_default_str();
}

DType ParseKvType(const std::string& name) {
  return name == "f32" ? DType::kF32 : name == "bf16" ? DType::kBF16 : DType::kF16;
}

}  // namespace coppice::app
