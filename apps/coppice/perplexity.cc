// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Perplexity of the last tokens of a long text: how well the model predicts them when it has read
// all that comes before. Score: exp of the mean negative log-likelihood over all samples, which
// start at places spread evenly over the text.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <vector>

#include "coppice/executor.h"
#include "eval_task.h"
#include "prefill.h"

namespace coppice::app {
namespace {

constexpr int kScored = 1024;
// Rows of logits that are kept at once: 128 MiB for a vocabulary of 262,144.
constexpr int kRows = 128;

// -log softmax(logits)[target]
double NegativeLogLikelihood(const float* logits, int count, llama_token target) {
  const float largest = *std::max_element(logits, logits + count);
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += static_cast<double>(std::exp(logits[i] - largest));
  return std::log(sum) + static_cast<double>(largest) - static_cast<double>(logits[target]);
}

class Perplexity final : public EvalTask {
 public:
  Perplexity(const Model& model, const TextSource& text, int threads)
      : model_(model), text_(text), pool_(threads) {}

  const char* name() const override { return "perplexity"; }
  std::string answer() const override { return ""; }
  int extra_tokens() const override { return 0; }
  int outputs() const override { return kRows; }

  Result<SampleResult> Run(Context& context, const SampleRequest& request) override {
    if (request.length < 2) {
      return Status::InvalidArgument("length " + std::to_string(request.length) +
                                     " is too short for a perplexity; use at least 2");
    }
    const auto step = text_.bytes() / static_cast<std::size_t>(request.samples);
    const std::size_t offset =
        step * static_cast<std::size_t>(request.sample) +
        static_cast<std::size_t>(request.seed * 7919) % std::max<std::size_t>(step / 4, 1);
    const Result<Tokens> start = TokenizeTemplate(model_, "", /*special=*/true);
    if (!start.ok()) return start.status();
    Tokens tokens = start.value();
    const Result<Tokens> text =
        text_.TokensFrom(model_, offset, request.length - static_cast<int>(tokens.size()));
    if (!text.ok()) return text.status();
    tokens.insert(tokens.end(), text.value().begin(), text.value().end());
    return Score(context, tokens);
  }

  double Score(std::span<const double> values) const override {
    double sum = 0;
    for (const double value : values) sum += value;
    return std::exp(sum / static_cast<double>(values.size()));
  }

 private:
  Result<SampleResult> Score(Context& context, std::span<const llama_token> tokens) {
    const auto begin = std::chrono::steady_clock::now();
    const std::size_t scored = std::min<std::size_t>(kScored, tokens.size() - 1);
    const std::size_t first = tokens.size() - 1 - scored;  // its logits predict the first scored
    if (first > 0) {
      const Result<double> read = Prefill(context, tokens.first(first), "  reading");
      if (!read.ok()) return read.status();
    }
    double sum = 0;
    double softmax_s = 0;
    for (std::size_t at = first; at < tokens.size() - 1;) {
      const std::size_t count = std::min<std::size_t>(kRows, tokens.size() - 1 - at);
      Status status = context.Decode(tokens.subspan(at, count), static_cast<int>(count));
      if (!status.ok()) return status;
      const auto softmax = std::chrono::steady_clock::now();
      std::vector<double> losses(count);
      pool_.Run(static_cast<int>(count), [&](int row, int) {
        const auto i = static_cast<std::size_t>(row);
        losses[i] =
            NegativeLogLikelihood(context.Logits(row), model_.vocab_size(), tokens[at + i + 1]);
      });
      for (const double loss : losses) sum += loss;
      softmax_s +=
          std::chrono::duration<double>(std::chrono::steady_clock::now() - softmax).count();
      at += count;
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return SampleResult{sum / static_cast<double>(scored), seconds - softmax_s};
  }

  const Model& model_;
  const TextSource& text_;
  ThreadPool pool_;
};

}  // namespace

std::unique_ptr<EvalTask> MakePerplexity(const Model& model, const TextSource& text, int threads) {
  return std::make_unique<Perplexity>(model, text, threads);
}

}  // namespace coppice::app
