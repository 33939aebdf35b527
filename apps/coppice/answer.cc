// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "answer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "prompt.h"

namespace coppice::app {
namespace {

bool AllDigits(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

Chooser::Chooser(const Model& model, Alphabet alphabet, float temperature, std::uint64_t seed)
    : temperature_(temperature), random_(seed) {
  for (llama_token token = 0; token < model.vocab_size(); ++token) {
    if (alphabet == Alphabet::kFree) {
      later_.push_back(token);
      continue;
    }
    const std::string piece = Piece(model, token);
    const bool end = alphabet == Alphabet::kNumber && llama_vocab_is_eog(model.vocab(), token);
    if (end || AllDigits(piece)) later_.push_back(token);
    const std::string_view unspaced =
        std::string_view(piece).substr(piece.starts_with(' ') ? 1 : 0);
    if (AllDigits(unspaced) || piece == " ") first_.push_back(token);
  }
  if (alphabet == Alphabet::kFree) first_ = later_;
}

Result<llama_token> Chooser::Choose(const float* logits, bool first) {
  const std::vector<llama_token>& allowed = Allowed(first);
  float best_logit = -std::numeric_limits<float>::infinity();
  llama_token best = -1;
  for (const llama_token token : allowed) {
    if (logits[token] > best_logit) {
      best_logit = logits[token];
      best = token;
    }
  }
  if (best < 0) {
    return Status::DataLoss(
        "the model gives no numbers as logits; its weights are damaged, or its vocabulary lacks "
        "the answer's alphabet: try --check-tensors and --answer free");
  }
  if (temperature_ <= 0) return best;
  weights_.clear();
  for (const llama_token token : allowed) {
    const double weight = std::exp((logits[token] - best_logit) / temperature_);
    weights_.push_back(std::isnan(weight) ? 0 : weight);
  }
  std::discrete_distribution<std::size_t> draw(weights_.begin(), weights_.end());
  return allowed[draw(random_)];
}

}  // namespace coppice::app
