// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Pruning happens where it should, whatever threads and batches llama.cpp uses; and the life of the
// object: reuse of graphs, attaching, freeing.
#include <gtest/gtest.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "session.h"
#include "support/huge_pages.h"

namespace coppice::testing {
namespace {

class Pruning : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(model_, nullptr);
    options_.context = 2048;
    options_.batch = 512;
    options_.attention = EagerSettings();
  }

  ModelPtr model_ = LoadTiny(TinyLlama());
  SessionOptions options_;
};

TEST_F(Pruning, LongPromptIsPruned) {
  Session session(model_.get(), options_);
  session.Feed(1500, 0);
  session.Step(20, 1500);
  const LlamaStats stats = session.attention().stats();
  EXPECT_EQ(stats.dense_fallbacks, 0U);
  EXPECT_EQ(stats.calls, 4U * (3 + 20));
  const std::uint64_t visible_in_prefill = 4ULL * 4 * (1500ULL * 1501 / 2);
  EXPECT_EQ(stats.prefill.attention.keys_visible, visible_in_prefill);
  EXPECT_LT(stats.prefill.attention.keys_read, visible_in_prefill / 3);
  EXPECT_GT(stats.prefill.attention.keys_read, visible_in_prefill / 50);
  EXPECT_EQ(stats.decode.attention.keys_visible, 4ULL * 4 * (20 * 1500 + 210));
  EXPECT_LT(stats.decode.attention.keys_read, stats.decode.attention.keys_visible / 5);
  EXPECT_GT(stats.prefill.seconds, 0);
  EXPECT_GT(stats.decode.seconds, 0);
  session.attention().ClearStats();
  EXPECT_EQ(session.attention().stats().calls, 0U);
}

// A cache of 2 KiB a token, 6 MiB of keys and as much of values: two whole pages of each at least.
TEST(DoorMemory, TheCacheMovesIntoHugePagesAsItFills) {
  if (!SystemHasHugePages()) GTEST_SKIP() << "no huge pages here";
  TinyModel wide = TinyLlama();
  wide.layers = 1;
  wide.heads = wide.kv_heads = 8;
  wide.head_dim = 128;
  const ModelPtr model = LoadTiny(wide);
  ASSERT_NE(model, nullptr);
  SessionOptions options{.context = 4096, .batch = 512, .attention = DenseSettings()};
  Session session(model.get(), options);
  session.Feed(500, 0);
  const long before = HugeKib();
  session.Feed(2560, 500);
  EXPECT_GE(HugeKib() - before, 4 * 2048);
}

TEST_F(Pruning, FirstLayersStayDense) {
  options_.attention->dense_layers = 3;
  Session session(model_.get(), options_);
  session.Feed(1000, 0);
  const AttentionStats stats = session.attention().stats().prefill.attention;
  EXPECT_GT(stats.keys_read, stats.keys_visible * 3 / 4);
  EXPECT_LT(stats.keys_read, stats.keys_visible * 7 / 8);
  EXPECT_EQ(session.attention().stats().dense_fallbacks, 0U);
}

TEST_F(Pruning, SelectionsAreKeptWhileKeysAreAppended) {
  options_.attention->refresh = 1;
  Session each_step(model_.get(), options_);
  options_.attention->refresh = 1000;
  Session kept(model_.get(), options_);
  for (Session* session : {&each_step, &kept}) {
    session->Feed(1000, 0);
    session->Step(1, 1000);
  }
  EXPECT_TRUE(Compare(each_step, kept).same_bits);
  for (Session* session : {&each_step, &kept}) session->Step(3, 1001);
  EXPECT_FALSE(Compare(each_step, kept).same_bits);
}

// Another text of the same length is put into the same cells, by no graph.
TEST_F(Pruning, RestoredStateForgetsTheSelection) {
  options_.attention->refresh = 1000;
  options_.sequences = 2;
  Session other(model_.get(), options_);
  other.Feed(1001, 0, 1);
  std::vector<std::uint8_t> state(llama_state_seq_get_size(other.context(), 1));
  llama_state_seq_get_data(other.context(), state.data(), state.size(), 1);

  Session fresh(model_.get(), options_);
  Session used(model_.get(), options_);
  used.Feed(1000, 0);
  used.Step(1, 1000);
  llama_memory_clear(used.memory(), false);
  for (Session* session : {&fresh, &used}) {
    ASSERT_GT(llama_state_seq_set_data(session->context(), state.data(), state.size(), 0), 0U);
    session->ForgetLogits();
    session->Step(3, 1001);
  }
  EXPECT_TRUE(Compare(used, fresh).same_bits);
}

TEST_F(Pruning, SecondSequenceInItsOwnCells) {
  options_.sequences = 2;
  Session session(model_.get(), options_);
  session.Feed(600, 0, 0);
  session.attention().ClearStats();
  session.Feed(600, 0, 1);
  session.Step(5, 600, 1);
  const LlamaStats stats = session.attention().stats();
  EXPECT_EQ(stats.dense_fallbacks, 0U);
  EXPECT_EQ(stats.prefill.attention.keys_visible, 4ULL * 4 * (600ULL * 601 / 2));
  EXPECT_LT(stats.prefill.attention.keys_read, stats.prefill.attention.keys_visible * 2 / 3);
}

// The same whether llama.cpp keeps all cells of sliding-window layers, its default, or few.
class Windows : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(FullCache, Windows, ::testing::Bool());

TEST_P(Windows, SlidingLayersStayDenseAndDoNotCount) {
  const ModelPtr model = LoadTiny(TinyGemma3());
  ASSERT_NE(model, nullptr);
  SessionOptions options;
  options.context = 2048;
  options.attention = EagerSettings();
  options.full_window_cache = GetParam();
  Session session(model.get(), options);
  session.Feed(1500, 0);
  session.Step(10, 1500);
  const LlamaStats stats = session.attention().stats();
  EXPECT_EQ(stats.dense_fallbacks, 0U);
  EXPECT_LT(stats.prefill.attention.keys_read, stats.prefill.attention.keys_visible / 2);
  // Sliding layers read their window, 96 keys each; were they pruned or counted as global, these
  // would not be what all four heads of two layers see.
  const std::uint64_t windows = 2ULL * 4 * 10 * 96;
  const std::uint64_t global = 2ULL * 4 * (10 * 1500 + 55);
  EXPECT_EQ(stats.decode.attention.keys_visible, windows + global);
  EXPECT_GE(stats.decode.attention.keys_read, windows + 2 * 4 * 10 * 40);
}

TEST_F(Pruning, SameBitsOnAnyNumberOfThreads) {
  options_.threads = 1;
  Session one(model_.get(), options_);
  options_.threads = 2;
  Session two(model_.get(), options_);
  for (Session* session : {&one, &two}) {
    session->Feed(300, 0);
    session->Step(5, 300);
  }
  EXPECT_TRUE(Compare(one, two).same_bits);
}

TEST_F(Pruning, ThreadsChangedAfterCreation) {
  Session still(model_.get(), options_);
  Session changed(model_.get(), options_);
  llama_set_n_threads(changed.context(), 1, 2);
  for (Session* session : {&still, &changed}) session->Feed(300, 0);
  llama_set_n_threads(changed.context(), 3, 2);
  for (Session* session : {&still, &changed}) session->Step(3, 300);
  EXPECT_TRUE(Compare(still, changed).same_bits);
}

// A graph is rebuilt when the padded length of the cache grows by 256, and reused in between.
TEST_F(Pruning, GraphsReusedOverManySteps) {
  options_.context = 1024;
  options_.flash = false;
  const AgainstStock run =
      RunAgainstStock(model_.get(), options_, DenseSettings(), [](Session& session) {
        session.Feed(100, 0);
        session.Step(400, 100);
      });
  EXPECT_EQ(run.difference.rows, 16U + 400);
  EXPECT_LT(run.difference.worst, 4e-3);
  EXPECT_EQ(run.stats.calls, 4U * 401);
}

TEST_F(Pruning, MicroBatchesOfAllSizes) {
  for (const int batch : {1, 33, 300}) {
    SessionOptions options;
    options.batch = batch;
    options.flash = false;
    const AgainstStock run = RunAgainstStock(model_.get(), options, DenseSettings(),
                                             [](Session& session) { session.Feed(300, 0); });
    EXPECT_LT(run.difference.worst, 4e-3) << batch;
    EXPECT_EQ(run.stats.dense_fallbacks, 0U);
  }
}

TEST_F(Pruning, AttachRefuses) {
  auto created = LlamaAttention::Create(DenseSettings());
  ASSERT_TRUE(created.ok());
  LlamaAttention& attention = **created;
  llama_context_params taken = llama_context_default_params();
  taken.cb_eval = [](ggml_tensor*, bool, void*) { return true; };
  EXPECT_EQ(attention.Attach(taken, model_.get()).code(), StatusCode::kInvalidArgument);
  llama_context_params params = llama_context_default_params();
  EXPECT_EQ(attention.Attach(params, nullptr).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(attention.Attach(params, model_.get()).ok());
  llama_context_params second = llama_context_default_params();
  EXPECT_EQ(attention.Attach(second, model_.get()).code(), StatusCode::kInvalidArgument);
}

TEST(Creation, RefusesBadSettings) {
  AttentionSettings settings;
  settings.budget = 0;
  EXPECT_FALSE(LlamaAttention::Create(settings).ok());
  settings = {};
  settings.method = "no-such-method";
  EXPECT_FALSE(LlamaAttention::Create(settings).ok());
  EXPECT_FALSE(LlamaAttention::Create({}, "no-such-isa").ok());
}

TEST_F(Pruning, EitherMayBeFreedFirst) {
  for (const bool context_first : {true, false}) {
    auto attention = std::move(LlamaAttention::Create(EagerSettings())).value();
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 512;
    ASSERT_TRUE(attention->Attach(params, model_.get()).ok());
    llama_context* context = llama_init_from_model(model_.get(), params);
    ASSERT_NE(context, nullptr);
    std::vector<llama_token> tokens(200, 7);
    ASSERT_EQ(llama_decode(context, llama_batch_get_one(tokens.data(), 200)), 0);
    if (!context_first) attention.reset();
    llama_free(context);
  }
}

}  // namespace
}  // namespace coppice::testing
