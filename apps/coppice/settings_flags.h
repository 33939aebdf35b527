// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The method settings on the command line: one spelling for all subcommands. Defaults come from
// AttentionSettings, then a --config file, then flags, then what is written at the method itself,
// as in "hip:budget=256:block_k=16"; the later one wins.
#pragma once

#include <CLI/App.hpp>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coppice/settings.h"
#include "coppice/status.h"

namespace coppice::app {

struct AttentionChoice {
  AttentionSettings settings;
  std::string isa;   // instruction set of the kernels; empty: the best
  bool off = false;  // leave llama.cpp's own attention in place
};

class SettingsFlags {
 public:
  // allow_off: whether the command knows llama.cpp's own attention as a method.
  void AddTo(CLI::App& command, bool allow_off, const AttentionSettings& defaults = {});

  // text: a method with settings of its own, or empty for the method of --config or the default.
  Result<AttentionChoice> Resolve(std::string_view text) const;

 private:
  std::vector<std::pair<std::string, std::string>> given_;  // in the order of the command line
  std::string config_;
  bool allow_off_ = false;
  AttentionSettings defaults_;
};

// "dense, hip, streaming", with "off" in front where the command knows it.
std::string KnownMethods(bool allow_off);

// What --config reads and reports show.
nlohmann::json ToJson(const AttentionChoice& choice);

}  // namespace coppice::app
