// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Passkey retrieval (arXiv 2305.16300): five digits are hidden in a long text, at a depth that moves
// from sample to sample, and the model is asked for them. Score: the share of right answers.
//
//   instruction | text ... | the pass key | ... text | question, start of the answer
//
// It is plain text to go on from, without a chat format: with one, SmolLM2-135M loses keys near the
// beginning of 8,192 tokens that it finds without.
//
// The answer has no choice but digits, after one space at most: small models chat otherwise. It is
// so for every attention alike.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <utility>

#include "answer.h"
#include "eval_task.h"
#include "prefill.h"

namespace coppice::app {
namespace {

constexpr std::size_t kDigits = 5;
constexpr int kMostAnswerTokens = 8;
constexpr const char* kInstruction =
    "There is a pass key hidden in the following text. Find it and remember it.\n\n";
constexpr const char* kQuestion = "\n\nWhat is the pass key? The pass key is";

std::string Needle(const std::string& key) {
  return "\nThe pass key is " + key + ". Remember it. " + key + " is the pass key.\n";
}

void Extend(Tokens& tokens, std::span<const llama_token> more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
}

class Passkey final : public EvalTask {
 public:
  Passkey(const Model& model, const TextSource& text)
      : model_(model), text_(text), chooser_(model, Alphabet::kDigits, 0, 0) {}

  const char* name() const override { return "passkey"; }
  std::string answer() const override { return "digits, with at most one space before them"; }
  int extra_tokens() const override { return kMostAnswerTokens; }
  int outputs() const override { return 1; }

  Result<SampleResult> Run(Context& context, const SampleRequest& request) override {
    std::mt19937_64 random(request.seed * 1000003 +
                           static_cast<std::uint64_t>(request.sample) * 97 +
                           static_cast<std::uint64_t>(request.length));
    const std::string key = std::to_string(10000 + random() % 90000);
    const Result<Tokens> prompt = MakePrompt(request, key, random() % text_.bytes());
    if (!prompt.ok()) return prompt.status();
    const Result<double> seconds = Prefill(context, prompt.value(), "  reading");
    if (!seconds.ok()) return seconds.status();
    const Result<std::string> answer = Answer(context);
    if (!answer.ok()) return answer.status();
    return SampleResult{answer.value() == key ? 1.0 : 0.0, seconds.value()};
  }

  double Score(std::span<const double> values) const override {
    double sum = 0;
    for (const double value : values) sum += value;
    return sum / static_cast<double>(values.size());
  }

 private:
  Result<Tokens> MakePrompt(const SampleRequest& request, const std::string& key,
                            std::size_t offset) const {
    Result<Tokens> prompt = Tokenize(model_, kInstruction, /*special=*/true);
    const Result<Tokens> needle = Tokenize(model_, Needle(key), /*special=*/false);
    const Result<Tokens> tail = Tokenize(model_, kQuestion, /*special=*/false);
    for (const Result<Tokens>* tokens : {&std::as_const(prompt), &needle, &tail}) {
      if (!tokens->ok()) return tokens->status();
    }
    const auto fixed = prompt->size() + needle.value().size() + tail.value().size();
    if (static_cast<std::size_t>(request.length) <= fixed) {
      return Status::InvalidArgument("length " + std::to_string(request.length) +
                                     " is too short for a passkey prompt; use at least " +
                                     std::to_string(fixed + 1));
    }
    const int room = request.length - static_cast<int>(fixed);
    const Result<Tokens> text = text_.TokensFrom(model_, offset, room);
    if (!text.ok()) return text.status();
    const double depth = (request.sample + 0.5) / request.samples;
    const std::size_t at = LineStartBefore(text.value(), depth);
    Extend(*prompt, std::span(text.value()).first(at));
    Extend(*prompt, needle.value());
    Extend(*prompt, std::span(text.value()).subspan(at));
    Extend(*prompt, tail.value());
    return prompt;
  }

  // The place at that depth, or the end of a line shortly before it.
  std::size_t LineStartBefore(const Tokens& text, double depth) const {
    constexpr std::size_t kSearched = 64;
    const auto wanted =
        static_cast<std::size_t>(std::floor(depth * static_cast<double>(text.size())));
    for (std::size_t at = wanted; at > 0 && wanted - at < kSearched; --at) {
      const std::string piece = Piece(model_, text[at - 1]);
      if (piece.find('\n') != std::string::npos) return at;
    }
    return wanted;
  }

  Result<std::string> Answer(Context& context) {
    std::string answer;
    for (int i = 0; i < kMostAnswerTokens; ++i) {
      const Result<llama_token> token = chooser_.Choose(context.Logits(0), i == 0);
      if (!token.ok()) return token.status();
      const std::string piece = Piece(model_, token.value());
      answer += piece.starts_with(' ') ? piece.substr(1) : piece;
      if (answer.size() >= kDigits) break;
      Status status = context.Decode({&token.value(), 1}, /*outputs=*/1);
      if (!status.ok()) return status;
    }
    return answer;
  }

  const Model& model_;
  const TextSource& text_;
  Chooser chooser_;
};

}  // namespace

std::unique_ptr<EvalTask> MakePasskey(const Model& model, const TextSource& text) {
  return std::make_unique<Passkey>(model, text);
}

}  // namespace coppice::app
