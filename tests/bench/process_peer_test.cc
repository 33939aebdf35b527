// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// A peer in a process of its own, played by testdata/fake_peer.py: what it computes arrives, and
// whatever else it does ends in a status, within its time, with no process left behind.
#include "peers/process_peer.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cerrno>
#include <thread>

#include "bench/peer_problem.h"

namespace coppice::testing {
namespace {

using bench::Peer;

const SmallProblem& Problem() {
  static const SmallProblem problem(DType::kF16, 3, 20, 4, 2, 8);
  return problem;
}

std::unique_ptr<Peer> Fake(const std::string& behaviour,
                           std::chrono::milliseconds patience = std::chrono::minutes(1)) {
  return bench::MakeProcessPeer({.name = "fake",
                                 .python = COPPICE_TEST_PYTHON,
                                 .script = COPPICE_TEST_DATA_DIR "/fake_peer.py",
                                 .arguments = {"--compute", behaviour},
                                 .patience = patience});
}

bool NoChildIsLeft() { return waitpid(-1, nullptr, WNOHANG) == -1 && errno == ECHILD; }

// Prepares and runs until something fails, a few times at most.
Status Failure(Peer& peer) {
  if (Status status = peer.Prepare(Problem().problem()); !status.ok()) return status;
  for (int round = 0; round < 3; ++round) {
    if (const Result<double> seconds = peer.Run(); !seconds.ok()) return seconds.status();
  }
  return Status::Ok();
}

void ExpectFailure(const std::string& behaviour, const std::vector<std::string>& words,
                   std::chrono::milliseconds patience = std::chrono::minutes(1)) {
  const std::unique_ptr<Peer> peer = Fake(behaviour, patience);
  const Status status = Failure(*peer);
  EXPECT_FALSE(status.ok()) << behaviour;
  for (const std::string& word : words) {
    EXPECT_NE(status.message().find(word), std::string::npos)
        << behaviour << ": no '" << word << "' in: " << status.message();
  }
  EXPECT_EQ(status.message().find('\n'), std::string::npos) << status.message();
  EXPECT_TRUE(NoChildIsLeft()) << behaviour;
  EXPECT_FALSE(peer->Run().ok()) << "it ended, and may not be asked again";
}

TEST(ProcessPeer, ComputesFromOurTensors) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0}) {
    const SmallProblem problem(type, 3, 20, 4, 2, 32);
    const std::unique_ptr<Peer> peer = Fake("good");
    const Status status = peer->Prepare(problem.problem());
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(peer->version(), "1.5 of the fake");
    EXPECT_EQ(peer->output()[0], 0);
    const Result<double> seconds = peer->Run();
    ASSERT_TRUE(seconds.ok()) << seconds.status().message();
    EXPECT_EQ(seconds.value(), 0.25) << "its own figure, not ours";
    EXPECT_LT(problem.Error(peer->output()), 1e-6) << NameOf(type);
  }
  EXPECT_TRUE(NoChildIsLeft());
}

TEST(ProcessPeer, ReadsStridedTensors) {
  const SmallProblem problem(DType::kF32, 2, 12, 2, 2, 8);
  bench::PeerProblem strided = problem.problem();
  const TensorView& keys = strided.keys;
  std::vector<float> wide(static_cast<std::size_t>(keys.tokens) * 100, -1);
  for (std::int64_t t = 0; t < keys.tokens; ++t) {
    for (std::int64_t h = 0; h < keys.heads; ++h) {
      std::memcpy(&wide[static_cast<std::size_t>(t * 100 + h * 40)], keys.Row(t, h), 32);
    }
  }
  strided.keys.data = wide.data();
  strided.keys.token_stride = 400;
  strided.keys.head_stride = 160;
  const std::unique_ptr<Peer> peer = Fake("good");
  ASSERT_TRUE(peer->Prepare(strided).ok());
  ASSERT_TRUE(peer->Run().ok());
  EXPECT_LT(problem.Error(peer->output()), 1e-6);
}

TEST(ProcessPeer, WhatALibraryPrintsIsNoAnswer) {
  const std::unique_ptr<Peer> peer = Fake("chatty");
  EXPECT_EQ(Failure(*peer).message(), "");
  EXPECT_EQ(peer->version(), "1.5 of the fake");
}

TEST(ProcessPeer, AnOutputThatIsNotWrittenIsAnErrorOfOne) {
  const std::unique_ptr<Peer> peer = Fake("forgets");
  ASSERT_TRUE(peer->Prepare(Problem().problem()).ok());
  ASSERT_TRUE(peer->Run().ok());
  EXPECT_EQ(Problem().Error(peer->output()), 1);
}

TEST(ProcessPeer, AModuleThatIsMissing) {
  ExpectFailure("lacking", {"no module no_such_module_of_ours", "tools/setup peers"});
}

TEST(ProcessPeer, AnExceptionIsOneLine) { ExpectFailure("failing", {"RuntimeError: out of luck"}); }

TEST(ProcessPeer, Death) {
  ExpectFailure("dies", {"ended with status 1", "no wish to live"});
  ExpectFailure("is killed", {"killed by signal 9"});
  ExpectFailure("closes", {"closed its end"});
}

TEST(ProcessPeer, DeathBetweenRoundsRaisesNoSignal) {
  const std::unique_ptr<Peer> peer = Fake("leaves");
  ASSERT_TRUE(peer->Prepare(Problem().problem()).ok());
  siginfo_t ended = {};
  ASSERT_EQ(waitid(P_ALL, 0, &ended, WEXITED | WNOWAIT), 0);
  const Result<double> seconds = peer->Run();
  ASSERT_FALSE(seconds.ok());
  EXPECT_NE(seconds.status().message().find("ended with status 0"), std::string::npos)
      << seconds.status().message();
  EXPECT_TRUE(NoChildIsLeft());
}

TEST(ProcessPeer, SilenceHasAnEnd) {
  const auto start = std::chrono::steady_clock::now();
  ExpectFailure("hangs", {"no answer for 0.3 s"}, std::chrono::milliseconds(300));
  ExpectFailure("hangs later", {"no answer for 5 s"}, std::chrono::seconds(5));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

TEST(ProcessPeer, Nonsense) {
  ExpectFailure("babbles", {"'hello? xxx", "...'", "no sense"});
  ExpectFailure("floods", {"4096 bytes"});
  for (const char* answer : {"seconds banana", "seconds 1 2", "seconds -1", "seconds nan",
                             "seconds", "seconds ", "secondsss 1", ""}) {
    ExpectFailure(answer, {"no sense", answer});
  }
}

TEST(ProcessPeer, IsKilledWithItsPeer) {
  std::unique_ptr<Peer> peer = Fake("hangs later");
  ASSERT_TRUE(peer->Prepare(Problem().problem()).ok());
  EXPECT_FALSE(NoChildIsLeft());
  peer.reset();
  EXPECT_TRUE(NoChildIsLeft());
}

TEST(ProcessPeer, WhatIsNotThereIsNamed) {
  const auto failure = [](const std::string& python, const std::string& script) {
    return Failure(*bench::MakeProcessPeer({.name = "fake", .python = python, .script = script}))
        .message();
  };
  const std::string fake = COPPICE_TEST_DATA_DIR "/fake_peer.py";
  EXPECT_NE(failure("/nowhere/python3", fake).find("/nowhere/python3"), std::string::npos);
  EXPECT_NE(failure(COPPICE_TEST_PYTHON, "/nowhere/peer.py").find("/nowhere/peer.py"),
            std::string::npos);
  // Can be run in principle, but is no program.
  EXPECT_NE(failure(COPPICE_TEST_DATA_DIR, fake).find("cannot run"), std::string::npos);
}

TEST(ProcessPeer, MemoryGrowsWithTheKeys) {
  bench::PeerProblem problem = Problem().problem();
  problem.keys.tokens = problem.values.tokens = 1 << 20;
  const auto numbers = 2.0 * (1 << 20) * 2 * 8;
  const std::unique_ptr<Peer> peer = Fake("good");
  const double small = peer->BytesNeeded(Problem().problem());
  EXPECT_GT(peer->BytesNeeded(problem) - small, numbers * (2 + 4) * 0.999);
  EXPECT_LT(peer->BytesNeeded(problem) - small, numbers * (2 + 4) * 1.001);
}

}  // namespace
}  // namespace coppice::testing
