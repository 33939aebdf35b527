// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// From text to tokens.
#pragma once

#include <llama.h>

#include <string>
#include <vector>

#include "coppice/status.h"
#include "model.h"

namespace coppice::app {

using Tokens = std::vector<llama_token>;

// special: add the tokens that the model wants at the start of a text.
Result<Tokens> Tokenize(const Model& model, const std::string& text, bool special);

// Like Tokenize for a template's own text, in which control tokens are spelt out.
Result<Tokens> TokenizeTemplate(const Model& model, const std::string& text, bool special);

// Text of a token; nothing for control tokens.
std::string Piece(const Model& model, llama_token token);

// What a chat template puts around a user's message.
struct ChatFrame {
  std::string before;
  std::string after;
};

// Empty strings when the model has no template, or one that libllama does not know.
ChatFrame FrameOf(const Model& model);

// The document and the question in one user message, or one after the other as plain text when
// `raw` or when the model knows no chat. Control tokens that are spelt out in them stay text.
Result<Tokens> BuildPrompt(const Model& model, const std::string& document,
                           const std::string& question, bool raw);

}  // namespace coppice::app
