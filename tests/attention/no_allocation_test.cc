// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// RunItem allocates nothing: the allocator of this program counts.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "attention/layer.h"

namespace {
std::atomic<long> allocations{0};

void* Count(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
}  // namespace

void* operator new(std::size_t size) { return Count(size); }
void* operator new[](std::size_t size) { return Count(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size == 0 ? 1 : size);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size == 0 ? 1 : size);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace coppice::testing {
namespace {

TEST(NoAllocation, RunItemAllocatesNothing) {
  for (const char* method : {"dense", "hip", "streaming"}) {
    for (const int queries : {1, 40}) {
      Layer layer(DType::kF16, queries, 2000, 6, 2, 64, 64);
      AttentionSettings settings;
      settings.method = method;
      settings.budget = 128;
      Workspace workspace(1);
      Attention attention = Attention::Create(settings).value();
      ASSERT_TRUE(attention.Plan(layer.Inputs(), workspace).ok());
      const long before = allocations;
      for (int item = 0; item < attention.items(); ++item) attention.RunItem(item, 0);
      EXPECT_EQ(allocations - before, 0) << method << " queries " << queries;
    }
  }
}

// The next step of the same shape plans without growing its workspace.
TEST(NoAllocation, WorkspaceOnlyGrows) {
  Layer layer(DType::kF16, 40, 2000, 6, 2, 64, 64);
  Workspace workspace(2);
  Attention attention = Attention::Create(Dense()).value();
  ASSERT_TRUE(attention.Plan(layer.Inputs(), workspace).ok());
  const std::size_t bytes = workspace.bytes();
  EXPECT_GT(bytes, 0u);
  ASSERT_TRUE(attention.Plan(layer.Inputs(), workspace).ok());
  EXPECT_EQ(workspace.bytes(), bytes);
}

}  // namespace
}  // namespace coppice::testing
