// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "coppice/settings.h"

#include <algorithm>

namespace coppice {
namespace {

Status CheckRange(const char* field, int value, int least, int most) {
  if (value >= least && value <= most) return Status::Ok();
  return Status::InvalidArgument(std::string(field) + " is " + std::to_string(value) +
                                 "; it must be between " + std::to_string(least) + " and " +
                                 std::to_string(most));
}

}  // namespace

Status Validate(const AttentionSettings& settings) {
  const std::vector<std::string> selectors = SelectorNames();
  if (settings.method != "dense" &&
      std::find(selectors.begin(), selectors.end(), settings.method) == selectors.end()) {
    std::string known = "dense";
    for (const std::string& name : selectors) known += ", " + name;
    return Status::NotFound("unknown attention method '" + settings.method + "'; known: " + known);
  }
  constexpr int kMostTokens = 1 << 28;
  struct Field {
    const char* name;
    int value, least, most;
  };
  const Field fields[] = {
      {"budget", settings.budget, 1, kMostTokens},
      {"block_k", settings.block_k, 1, 1024},
      {"block_q", settings.block_q, 1, 1024},
      {"query_stride", settings.query_stride, 1, 1024},
      {"breadth", settings.breadth, 1, 4096},
      {"probe", settings.probe, 0, 4096},
      {"sink", settings.sink, 0, kMostTokens},
      {"window", settings.window, 0, kMostTokens},
      {"dense_layers", settings.dense_layers, 0, 65536},
      {"refresh", settings.refresh, 1, 65536},
  };
  for (const Field& field : fields) {
    const Status status = CheckRange(field.name, field.value, field.least, field.most);
    if (!status.ok()) return status;
  }
  if (settings.method == "streaming" && settings.sink + settings.window == 0) {
    return Status::InvalidArgument("sink and window are both 0; streaming would read no keys");
  }
  return Status::Ok();
}

}  // namespace coppice
