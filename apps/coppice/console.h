// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What the command writes: tables and notes for people on stderr, JSON for programs on stdout.
#pragma once

#include <cstdint>
#include <cstdio>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace coppice::app {

bool IsTerminal(int descriptor);

// "note: ..." on stderr.
void Note(const std::string& message);

// One line on stdout; text that is not UTF-8 gets replacement characters, infinities become null.
void PrintJson(const nlohmann::json& object);

// Right-aligned columns, the first one left-aligned; a rule below the first row.
void PrintTable(const std::vector<std::vector<std::string>>& rows, std::FILE* out);

std::string WithCommas(std::int64_t number);     // "1,234,567"
std::string HumanBytes(double bytes);            // "12.3 MiB"
std::string Fixed(double number, int decimals);  // "0.12"; "-" for NaN

}  // namespace coppice::app
