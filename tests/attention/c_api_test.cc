// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/resource.h>
#endif

#include "attention/layer.h"
#include "coppice/coppice.h"

namespace coppice::testing {
namespace {

coppice_tensor CView(const TensorView& view) {
  return {const_cast<void*>(view.data),
          static_cast<int32_t>(view.type),
          view.tokens,
          view.heads,
          view.dim,
          view.token_stride,
          view.head_stride};
}

coppice_attend_args Args(Layer& layer) {
  coppice_attend_args args;
  coppice_attend_args_init(&args);
  args.queries = CView(layer.queries.view());
  args.keys = CView(layer.keys.view());
  args.values = CView(layer.values.view());
  args.output = CView(Contiguous(static_cast<const void*>(layer.output.data()), DType::kF32,
                                 layer.queries.tokens, layer.queries.heads, layer.values.dim));
  args.lse = layer.lse.data();
  return args;
}

TEST(CApi, GivesWhatTheCppApiGives) {
  for (const char* method : {"dense", "hip"}) {
    Layer c(DType::kF16, 30, 900, 6, 2, 64, 64);
    Layer cpp = c;
    coppice_attend_args args = Args(c);
    args.method = method;
    args.budget = 100;
    ASSERT_EQ(coppice_attend(&args), COPPICE_OK) << coppice_last_error();
    AttentionSettings settings;
    settings.method = method;
    settings.budget = 100;
    ThreadPool pool(1);
    ASSERT_TRUE(Attend(cpp.Inputs(), settings, pool).ok());
    EXPECT_EQ(c.output, cpp.output);
    EXPECT_EQ(c.lse, cpp.lse);
  }
}

// Runs `change` on both sides and compares.
template <typename ChangeC, typename ChangeCpp>
void ExpectSame(DType type, const char* method, ChangeC change_c, ChangeCpp change_cpp) {
  Layer c(type, 30, 900, 6, 2, 64, 64);
  Layer cpp = c;
  coppice_attend_args args = Args(c);
  args.method = method;
  AttentionSettings settings;
  settings.method = method;
  settings.budget = args.budget = 100;
  AttentionInputs inputs = cpp.Inputs();
  change_c(args);
  change_cpp(inputs, settings);
  ASSERT_EQ(coppice_attend(&args), COPPICE_OK) << coppice_last_error();
  ThreadPool pool(1);
  ASSERT_TRUE(Attend(inputs, settings, pool).ok());
  EXPECT_EQ(c.output, cpp.output);
  EXPECT_EQ(c.lse, cpp.lse);
}

TEST(CApi, HandsOverWhatTheModelHas) {
  const std::vector<float> heads = {0.5f, 0.25f, 0.125f, -1.0f, 2.0f, 0.0f};
  ExpectSame(
      DType::kF16, "dense", [](coppice_attend_args& args) { args.softcap = 0.3f; },
      [](AttentionInputs& inputs, AttentionSettings&) { inputs.softcap = 0.3f; });
  ExpectSame(
      DType::kF16, "dense", [&](coppice_attend_args& args) { args.alibi_slopes = heads.data(); },
      [&](AttentionInputs& inputs, AttentionSettings&) { inputs.alibi_slopes = heads.data(); });
  ExpectSame(
      DType::kF16, "hip", [&](coppice_attend_args& args) { args.sinks = heads.data(); },
      [&](AttentionInputs& inputs, AttentionSettings&) { inputs.sinks = heads.data(); });
}

TEST(CApi, HandsOverTheSettings) {
  ExpectSame(
      DType::kF16, "hip", [](coppice_attend_args& args) { args.breadth = 1; },
      [](AttentionInputs&, AttentionSettings& settings) { settings.breadth = 1; });
  ExpectSame(
      DType::kF16, "hip",
      [](coppice_attend_args& args) {
        args.breadth = 1;
        args.probe = 0;
      },
      [](AttentionInputs&, AttentionSettings& settings) {
        settings.breadth = 1;
        settings.probe = 0;
      });
  ExpectSame(
      DType::kF16, "hip", [](coppice_attend_args& args) { args.balance = 0; },
      [](AttentionInputs&, AttentionSettings& settings) { settings.balance = false; });
  ExpectSame(
      DType::kQ8_0, "dense", [](coppice_attend_args& args) { args.fast = 1; },
      [](AttentionInputs&, AttentionSettings& settings) { settings.fast = true; });
}

TEST(CApi, MistakesHaveACodeAndAText) {
  Layer layer(DType::kF16, 3, 90, 6, 2, 64, 64);
  coppice_attend_args args = Args(layer);
  args.method = "magic";
  EXPECT_EQ(coppice_attend(&args), COPPICE_NOT_FOUND);
  EXPECT_NE(std::string(coppice_last_error()).find("magic"), std::string::npos);
  args = Args(layer);
  args.budget = 0;
  EXPECT_EQ(coppice_attend(&args), COPPICE_INVALID_ARGUMENT);
  args = Args(layer);
  args.struct_size = 3;
  EXPECT_EQ(coppice_attend(&args), COPPICE_INVALID_ARGUMENT);
  args = Args(layer);
  args.keys.dtype = 9;
  EXPECT_EQ(coppice_attend(&args), COPPICE_INVALID_ARGUMENT);
  args = Args(layer);
  args.threads = 0;
  EXPECT_EQ(coppice_attend(&args), COPPICE_INVALID_ARGUMENT);
  EXPECT_EQ(coppice_attend(nullptr), COPPICE_INVALID_ARGUMENT);
  EXPECT_STRNE(coppice_last_error(), "");
}

struct FreePool {
  void operator()(coppice_pool* pool) const { coppice_pool_free(pool); }
};
using Pool = std::unique_ptr<coppice_pool, FreePool>;

Pool MakePool(int threads) {
  coppice_pool* pool = nullptr;
  EXPECT_EQ(coppice_pool_create(threads, &pool), COPPICE_OK) << coppice_last_error();
  return Pool(pool);
}

TEST(CApi, APoolServesCallsOfAllShapes) {
  const Pool pool = MakePool(3);
  for (const char* method : {"dense", "hip", "dense"}) {
    for (const int queries : {1, 70}) {
      Layer alone(DType::kF16, queries, 900, 6, 2, 64, 64);
      Layer pooled = alone;
      coppice_attend_args args = Args(alone);
      args.method = method;
      args.budget = 100;
      ASSERT_EQ(coppice_attend(&args), COPPICE_OK) << coppice_last_error();
      coppice_attend_args with_pool = Args(pooled);
      with_pool.method = method;
      with_pool.budget = 100;
      with_pool.threads = 0;
      with_pool.pool = pool.get();
      ASSERT_EQ(coppice_attend(&with_pool), COPPICE_OK) << coppice_last_error();
      EXPECT_EQ(pooled.output, alone.output);
      EXPECT_EQ(pooled.lse, alone.lse);
    }
  }
}

TEST(CApi, AFailedCallLeavesThePoolFree) {
  const Pool pool = MakePool(2);
  Layer layer(DType::kF16, 3, 90, 6, 2, 64, 64);
  coppice_attend_args args = Args(layer);
  args.pool = pool.get();
  args.method = "magic";
  EXPECT_EQ(coppice_attend(&args), COPPICE_NOT_FOUND);
  args.method = "dense";
  EXPECT_EQ(coppice_attend(&args), COPPICE_OK) << coppice_last_error();
}

// Until one of two callers is refused; what is not refused is right.
TEST(CApi, APoolRefusesASecondCall) {
  const Pool pool = MakePool(2);
  Layer expected(DType::kF16, 40, 900, 6, 2, 64, 64);
  coppice_attend_args args = Args(expected);
  args.method = "dense";
  ASSERT_EQ(coppice_attend(&args), COPPICE_OK);
  std::atomic<int> refused{0};
  const auto caller = [&] {
    Layer layer(DType::kF16, 40, 900, 6, 2, 64, 64);
    coppice_attend_args mine = Args(layer);
    mine.method = "dense";
    mine.pool = pool.get();
    for (int call = 0; call < 20000 && refused.load() == 0; ++call) {
      if (coppice_attend(&mine) == COPPICE_OK) {
        EXPECT_EQ(layer.output, expected.output);
      } else {
        EXPECT_NE(std::string(coppice_last_error()).find("another call"), std::string::npos);
        ++refused;
      }
    }
  };
  std::thread other(caller);
  caller();
  other.join();
  EXPECT_GT(refused.load(), 0);
}

TEST(CApi, APoolThatCannotBe) {
  coppice_pool* pool = nullptr;
  EXPECT_EQ(coppice_pool_create(0, &pool), COPPICE_INVALID_ARGUMENT);
  EXPECT_EQ(coppice_pool_create(1025, &pool), COPPICE_INVALID_ARGUMENT);
  EXPECT_EQ(coppice_pool_create(1, nullptr), COPPICE_INVALID_ARGUMENT);
  coppice_pool_free(nullptr);
}

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(CApi, ThreadsThatCannotBeStarted) {
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  rlimit little = before;
  little.rlim_cur = rlim_t{1} << 30;  // for 1,024 stacks
  ASSERT_EQ(setrlimit(RLIMIT_AS, &little), 0);
  coppice_pool* pool = nullptr;
  const int code = coppice_pool_create(1024, &pool);
  setrlimit(RLIMIT_AS, &before);
  EXPECT_EQ(code, COPPICE_RESOURCE_EXHAUSTED);
  EXPECT_EQ(pool, nullptr);
  EXPECT_NE(std::string(coppice_last_error()).find("no thread"), std::string::npos)
      << coppice_last_error();
}
#endif

TEST(CApi, SaysItsVersion) {
  EXPECT_EQ(coppice_abi_version(), COPPICE_ABI_VERSION);
  EXPECT_STRNE(coppice_version(), "");
}

}  // namespace
}  // namespace coppice::testing
