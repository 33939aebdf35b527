// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// How fast one layer's attention is: ours, and the peers' on the same data, in alternating rounds.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "coppice/executor.h"
#include "coppice/settings.h"
#include "coppice/status.h"
#include "inputs.h"

namespace coppice::bench {

struct AttentionBenchOptions {
  AttentionSettings settings;
  std::string isa;  // empty: the best
  bool peers = false;
  double seconds = 1;  // measure ours at least that long, and everybody at most 20 times that
  int rounds = 3;      // and at least that often, whatever it takes
  // Asked before each peer is prepared, so that one that does not fit says so; null: no limit.
  std::function<double()> available_bytes;
};

struct Timing {
  double seconds_min = 0;
  double seconds_median = 0;
  double seconds_p99 = 0;  // 99 of 100 rounds took no longer
  int rounds = 0;
};

struct PeerResult {
  std::string name;
  Status status;  // why there are no figures
  std::string version;
  Timing timing;
  double rel_error_vs_float64 = 0;  // of dense attention, which is what all peers compute
};

struct AttentionBenchResult {
  std::string isa;
  std::string kernel;      // as of Attention::kernel()
  std::string score_type;  // arithmetic of K.Q^T
  std::string value_type;  // arithmetic of P.V
  Timing timing;           // of one call; in decode the mean over the steps that share a selection
  double dense_gflop = 0;  // of the causal dense work: 4 * heads * dim * visible keys
  double kv_gbytes = 0;    // keys and values, once
  double selected_fraction = 0;   // keys read / keys visible
  double select_s = 0;            // thread-seconds of one call
  double attend_s = 0;            // thread-seconds of one call
  std::size_t extra_bytes = 0;    // scratch and block mask
  double rel_error_vs_dense = 0;  // dense itself: against float64
  double rel_error_vs_float64 = 0;
  double peak_gflops = 0;  // of that arithmetic, half of the work in each
  double stream_gbytes_per_s = 0;
  std::vector<PeerResult> peers;
};

Result<AttentionBenchResult> RunAttentionBench(const AttentionBenchOptions& options,
                                               const Inputs& inputs, ThreadPool& pool);

}  // namespace coppice::bench
