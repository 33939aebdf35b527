// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "prompt.h"

#include <limits>

namespace coppice::app {
namespace {

Result<Tokens> TokenizeText(const Model& model, const std::string& text, bool special,
                            bool parse_special) {
  // Never more tokens than bytes, but for the special ones and a leading space.
  constexpr std::size_t kExtra = 16;
  if (text.size() > std::numeric_limits<std::int32_t>::max() - kExtra) {
    return Status::InvalidArgument("the text has more than 2 GiB; cut it");
  }
  Tokens tokens(text.size() + kExtra);
  const std::int32_t count = llama_tokenize(
      model.vocab(), text.data(), static_cast<std::int32_t>(text.size()), tokens.data(),
      static_cast<std::int32_t>(tokens.size()), special, parse_special);
  if (count < 0) {
    return Status::DataLoss("model '" + model.path() + "' cannot tokenize the text");
  }
  tokens.resize(static_cast<std::size_t>(count));
  for (const llama_token token : tokens) {
    if (token < 0 || token >= model.vocab_size()) {
      return Status::DataLoss("model '" + model.path() +
                              "' is damaged: its tokenizer gives token " + std::to_string(token) +
                              " of " + std::to_string(model.vocab_size()) + "; fetch it again");
    }
  }
  return tokens;
}

}  // namespace

Result<Tokens> Tokenize(const Model& model, const std::string& text, bool special) {
  return TokenizeText(model, text, special, /*parse_special=*/false);
}

Result<Tokens> TokenizeTemplate(const Model& model, const std::string& text, bool special) {
  return TokenizeText(model, text, special, /*parse_special=*/true);
}

std::string Piece(const Model& model, llama_token token) {
  std::string piece(64, '\0');
  while (true) {
    const std::int32_t size = llama_token_to_piece(
        model.vocab(), token, piece.data(), static_cast<std::int32_t>(piece.size()), /*lstrip=*/0,
        /*special=*/false);
    const auto needed = static_cast<std::size_t>(size < 0 ? -size : size);
    const bool done = size >= 0;
    piece.resize(needed);
    if (done || needed == 0) return piece;
  }
}

ChatFrame FrameOf(const Model& model) {
  const char* chat_template = llama_model_chat_template(model.get(), nullptr);
  if (chat_template == nullptr) return {};
  const std::string marker = "[the message]";
  const llama_chat_message message = {"user", marker.c_str()};
  std::string text(4096, '\0');
  const std::int32_t size =
      llama_chat_apply_template(chat_template, &message, 1, /*add_ass=*/true, text.data(),
                                static_cast<std::int32_t>(text.size()));
  if (size < 0 || static_cast<std::size_t>(size) > text.size()) return {};
  text.resize(static_cast<std::size_t>(size));
  const std::size_t at = text.find(marker);
  if (at == std::string::npos) return {};
  return {text.substr(0, at), text.substr(at + marker.size())};
}

Result<Tokens> BuildPrompt(const Model& model, const std::string& document,
                           const std::string& question, bool raw) {
  const char* between = document.empty() || question.empty() ? "" : "\n\n";
  const std::string message = document + between + question;
  const ChatFrame frame = raw ? ChatFrame() : FrameOf(model);
  if (frame.before.empty() && frame.after.empty()) {
    return Tokenize(model, message, /*special=*/true);
  }
  Result<Tokens> tokens = TokenizeTemplate(model, frame.before, /*special=*/true);
  if (!tokens.ok()) return tokens;
  const Result<Tokens> middle = Tokenize(model, message, /*special=*/false);
  if (!middle.ok()) return middle;
  const Result<Tokens> after = TokenizeTemplate(model, frame.after, /*special=*/false);
  if (!after.ok()) return after;
  tokens->insert(tokens->end(), middle.value().begin(), middle.value().end());
  tokens->insert(tokens->end(), after.value().begin(), after.value().end());
  return tokens;
}

}  // namespace coppice::app
