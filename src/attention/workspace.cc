// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "attention/workspace.h"

#include <new>

namespace coppice {

bool Workspace::Impl::Reserve(std::size_t thread_bytes, std::size_t shared_bytes, int tiles) {
  if (thread_bytes > thread_size) {
    for (AlignedBytes& thread : threads) {
      AlignedBytes larger = AllocateAligned(thread_bytes);
      if (larger == nullptr) return false;
      thread = std::move(larger);
    }
    thread_size = thread_bytes;
  }
  if (shared_bytes > shared_size) {
    AlignedBytes larger = AllocateAligned(shared_bytes);
    if (larger == nullptr) return false;
    shared = std::move(larger);
    shared_size = shared_bytes;
  }
  if (tiles > finished_size) {
    auto* counters = new (std::nothrow) std::atomic<int>[static_cast<std::size_t>(tiles)]();
    if (counters == nullptr) return false;
    finished.reset(counters);
    finished_size = tiles;
  }
  return true;
}

Workspace::Workspace(int threads) : impl_(std::make_unique<Impl>(threads < 1 ? 1 : threads)) {}
Workspace::~Workspace() = default;
Workspace::Workspace(Workspace&&) noexcept = default;
Workspace& Workspace::operator=(Workspace&&) noexcept = default;

int Workspace::threads() const { return static_cast<int>(impl_->threads.size()); }
std::size_t Workspace::bytes() const { return impl_->bytes(); }

}  // namespace coppice
