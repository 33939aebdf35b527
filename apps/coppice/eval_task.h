// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What `coppice eval` measures. A task makes prompts of an exact length from a long text, and turns
// what the model does with them into a score. It does not know which attention computes it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "context.h"
#include "coppice/status.h"
#include "model.h"
#include "prompt.h"

namespace coppice::app {

// A long text to cut prompts from.
class TextSource {
 public:
  explicit TextSource(std::string text) : text_(std::move(text)) {}

  // The first `count` tokens from a line start near byte `offset` on; starts again at the
  // beginning when the text ends. kInvalidArgument for a text that is too short.
  Result<Tokens> TokensFrom(const Model& model, std::size_t offset, int count) const;
  std::size_t bytes() const { return text_.size(); }

 private:
  std::string text_;
};

struct SampleRequest {
  int length = 0;  // tokens of the prompt
  int sample = 0;  // in [0, samples)
  int samples = 1;
  std::uint64_t seed = 1;
};

struct SampleResult {
  double value = 0;  // what Score() takes
  double prefill_s = 0;
};

class EvalTask {
 public:
  virtual ~EvalTask() = default;
  virtual const char* name() const = 0;
  // What the answer is restricted to, alike for every attention; empty: there is no answer.
  virtual std::string answer() const = 0;
  // Tokens beyond the prompt, and tokens of a batch whose logits are asked for.
  virtual int extra_tokens() const = 0;
  virtual int outputs() const = 0;
  // Runs one sample in an empty context. The same request makes the same prompt.
  virtual Result<SampleResult> Run(Context& context, const SampleRequest& request) = 0;
  virtual double Score(std::span<const double> values) const = 0;
};

std::unique_ptr<EvalTask> MakePasskey(const Model& model, const TextSource& text);
// threads: for the softmax over the vocabulary.
std::unique_ptr<EvalTask> MakePerplexity(const Model& model, const TextSource& text, int threads);

}  // namespace coppice::app
