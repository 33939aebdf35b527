// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// What this machine can do at most, to hold measurements against: the peak rate of multiply-adds
// and the bandwidth of streaming reads.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "coppice/executor.h"

namespace coppice::bench {

// GFLOP/s of multiply-adds of numbers of a `type` ("f32", "bf16", "int8", "amx_bf16"; 2 for each product
// and sum; a third of "amx_bf16" for "amx_bf16x3", where three products make one) on all threads of the
// pool, in the registers that the kernels of `isa` use; the best of a few short runs. 0 where there is no
// such instruction.
double PeakGflops(std::string_view type, std::string_view isa, ThreadPool& pool);

// Bandwidth of reading 512 MiB on all threads, from front to back or the quarters of every 4 MiB side by
// side. What a shared machine gives changes within seconds, so that this is measured in turn with what is
// held against it.
class StreamProbe {
 public:
  StreamProbe(std::string_view isa, ThreadPool& pool);
  void Run();
  // GB/s of the best run; 0 without one, or without memory.
  double best() const { return best_; }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::string isa_;
  ThreadPool& pool_;
  std::unique_ptr<float, Free> data_;
  double best_ = 0;
};

}  // namespace coppice::bench
