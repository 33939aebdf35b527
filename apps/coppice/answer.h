// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Choosing the next token: greedily or by chance, from the whole vocabulary or from the alphabet of
// the right answer.
#pragma once

#include <llama.h>

#include <cstdint>
#include <random>
#include <string_view>
#include <vector>

#include "coppice/status.h"
#include "model.h"

namespace coppice::app {

// Which tokens an answer may have.
enum class Alphabet {
  kFree,
  kDigits,  // digits, with at most one space before the first; never an end
  kNumber,  // the same, and the model may end it after a digit
};

class Chooser {
 public:
  // temperature 0: the most likely token; of equals the first.
  Chooser(const Model& model, Alphabet alphabet, float temperature, std::uint64_t seed);

  // logits [vocab_size]. first: nothing has been answered yet. kDataLoss when no logit is a number.
  Result<llama_token> Choose(const float* logits, bool first);

 private:
  const std::vector<llama_token>& Allowed(bool first) const { return first ? first_ : later_; }

  std::vector<llama_token> first_;
  std::vector<llama_token> later_;
  float temperature_;
  std::mt19937_64 random_;
  std::vector<double> weights_;
};

}  // namespace coppice::app
