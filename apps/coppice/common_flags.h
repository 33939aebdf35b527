// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// --kv-type and --threads, alike for all subcommands.
#pragma once

#include <CLI/App.hpp>
#include <functional>
#include <string>
#include <vector>

#include "coppice/tensor.h"

namespace coppice::app {

// Checks whose text does not clutter the help, and whose messages say what is allowed.
std::function<std::string(const std::string&)> Between(double least, double most);
std::function<std::string(const std::string&)> OneOf(std::vector<std::string> known);

// The processors that this process may use.
int DefaultThreads();
void AddThreads(CLI::App& command, int& threads);

// f16, bf16, f32 or q8_0.
void AddKvType(CLI::App& command, std::string& name);

// name must be f16, bf16 or f32.
DType ParseKvType(const std::string& name);

}  // namespace coppice::app
