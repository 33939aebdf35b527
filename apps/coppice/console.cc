// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "console.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace coppice::app {

bool IsTerminal(int descriptor) { return isatty(descriptor) == 1; }

void Note(const std::string& message) { std::fprintf(stderr, "note: %s\n", message.c_str()); }

void PrintJson(const nlohmann::json& object) {
  const std::string text =
      object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  std::fwrite(text.data(), 1, text.size(), stdout);
}

void PrintTable(const std::vector<std::vector<std::string>>& rows, std::FILE* out) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (std::size_t i = 0; i < rows[r].size(); ++i) {
      const std::string pad(widths[i] - rows[r][i].size(), ' ');
      line += i == 0 ? rows[r][i] + pad : "  " + pad + rows[r][i];
    }
    std::fprintf(out, "%s\n", line.c_str());
    if (r == 0) std::fprintf(out, "%s\n", std::string(line.size(), '-').c_str());
  }
}

std::string WithCommas(std::int64_t number) {
  const std::string digits = std::to_string(number);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    text += digits[i];
    const std::size_t left = digits.size() - 1 - i;
    if (left > 0 && left % 3 == 0 && digits[i] != '-') text += ',';
  }
  return text;
}

std::string HumanBytes(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 5) {
    bytes /= 1024;
    ++unit;
  }
  return Fixed(bytes, unit == 0 ? 0 : 1) + " " + units[unit];
}

std::string Fixed(double number, int decimals) {
  if (std::isnan(number)) return "-";
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", decimals, number);
  return text;
}

}  // namespace coppice::app
