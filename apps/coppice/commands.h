// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The subcommands. Each Add function declares one below `app`; when the command line names it, its
// work is stored in `action` and main() runs it.
#pragma once

#include <CLI/App.hpp>
#include <functional>

#include "coppice/status.h"

namespace coppice::app {

using Action = std::function<Status()>;

void AddRunCommand(CLI::App& app, Action& action);
void AddBenchCommand(CLI::App& app, Action& action);
void AddEvalCommand(CLI::App& app, Action& action);
void AddSelectCommand(CLI::App& app, Action& action);
void AddAttendCommand(CLI::App& app, Action& action);
void AddConvertCommand(CLI::App& app, Action& action);

}  // namespace coppice::app
