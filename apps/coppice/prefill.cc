// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "prefill.h"

#include <algorithm>
#include <chrono>

#include "progress.h"

namespace coppice::app {
namespace {

Status AppendBatches(Context& context, std::span<const llama_token> tokens, bool last_logits,
                     Progress* progress) {
  for (std::size_t at = 0; at < tokens.size();) {
    const std::size_t count = std::min<std::size_t>(kBatchTokens, tokens.size() - at);
    const bool last = at + count == tokens.size();
    Status status = context.Decode(tokens.subspan(at, count), last && last_logits ? 1 : 0);
    if (!status.ok()) return status;
    at += count;
    if (progress != nullptr) progress->Update(static_cast<std::int64_t>(at));
  }
  return Status::Ok();
}

}  // namespace

Result<double> Prefill(Context& context, std::span<const llama_token> tokens,
                       const std::string& label) {
  Progress progress(label, static_cast<std::int64_t>(tokens.size()), "tokens");
  const auto start = std::chrono::steady_clock::now();
  Status status = AppendBatches(context, tokens, /*last_logits=*/true, &progress);
  if (!status.ok()) return status;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Status Append(Context& context, std::span<const llama_token> tokens) {
  return AppendBatches(context, tokens, /*last_logits=*/false, nullptr);
}

}  // namespace coppice::app
