// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Reading a prompt into a context, with progress and in batches.
#pragma once

#include <span>
#include <string>

#include "context.h"
#include "coppice/status.h"
#include "prompt.h"

namespace coppice::app {

// Appends all tokens; logits of the last one are kept. Shows its progress under `label`. Returns the
// seconds that it took.
Result<double> Prefill(Context& context, std::span<const llama_token> tokens,
                       const std::string& label);

// The same without progress and logits, for a part of a text.
Status Append(Context& context, std::span<const llama_token> tokens);

}  // namespace coppice::app
