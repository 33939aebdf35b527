// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// `coppice select` and `coppice attend` on arrays in files, held to the definition of attention.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>

#include "command.h"
#include "coppice/attention.h"
#include "npy.h"
#include "support/reference.h"

namespace coppice::testing {
namespace {

using app::Array;
using app::ReadNpy;
using app::WriteNpy;

constexpr int kTokens = 600;
constexpr int kQueries = 40;
constexpr int kHeads = 4;
constexpr int kKvHeads = 2;
constexpr int kDim = 64;

class Arrays : public ::testing::Test {
 protected:
  void SetUp() override {
    queries_ = Make("q.npy", {kQueries, kHeads, kDim}, 1);
    keys_ = Make("k.npy", {kTokens, kKvHeads, kDim}, 2);
    values_ = Make("v.npy", {kTokens, kKvHeads, kDim}, 3);
  }

  Array Make(const std::string& name, std::vector<std::int64_t> shape, unsigned seed) {
    Array array;
    array.shape = std::move(shape);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    array.data.resize(static_cast<std::size_t>(array.shape[0] * array.shape[1] * array.shape[2]));
    for (float& x : array.data) x = normal(random);
    EXPECT_TRUE(WriteNpy(directory_.Path(name), array.shape, array.data).ok());
    return array;
  }

  CommandResult Call(const std::string& command, std::vector<std::string> more,
                     const std::string& out = "") {
    std::vector<std::string> arguments = {command,
                                          "--queries",
                                          directory_.Path("q.npy"),
                                          "--keys",
                                          directory_.Path("k.npy"),
                                          "--threads",
                                          "2",
                                          "--json"};
    if (command == "attend") {
      arguments.insert(arguments.end(), {"--values", directory_.Path("v.npy"), "--out",
                                         out.empty() ? directory_.Path("o.npy") : out, "--lse",
                                         directory_.Path("l.npy")});
    }
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunCommand(arguments);
  }

  // ||o - reference|| / ||reference||, where query n of head h reads the keys of `reads`.
  template <typename Reads>
  double Error(Reads reads) {
    const auto output = ReadNpy(directory_.Path("o.npy"), 3, "output");
    EXPECT_TRUE(output.ok());
    double error = 0;
    double norm = 0;
    for (int n = 0; n < kQueries; ++n) {
      for (int h = 0; h < kHeads; ++h) {
        const std::vector<double> expected = Row(n, h, reads(n, h));
        for (int i = 0; i < kDim; ++i) {
          const double x = expected[static_cast<std::size_t>(i)];
          const double got =
              output.value().data[static_cast<std::size_t>((n * kHeads + h) * kDim + i)];
          error += (got - x) * (got - x);
          norm += x * x;
        }
      }
    }
    return std::sqrt(error / norm);
  }

  std::vector<double> Row(int n, int h, const std::set<int>& read) {
    const auto at = [](const Array& array, int token, int head, int i) {
      return static_cast<double>(
          array.data[static_cast<std::size_t>((token * array.shape[1] + head) * kDim + i)]);
    };
    const int kv_head = h / (kHeads / kKvHeads);
    double sum = 0;
    std::vector<double> row(kDim);
    for (const int j : read) {
      double score = 0;
      for (int i = 0; i < kDim; ++i) score += at(queries_, n, h, i) * at(keys_, j, kv_head, i);
      const double weight = std::exp(score / std::sqrt(static_cast<double>(kDim)));
      sum += weight;
      for (int i = 0; i < kDim; ++i) {
        row[static_cast<std::size_t>(i)] += weight * at(values_, j, kv_head, i);
      }
    }
    for (double& x : row) x /= sum;
    return row;
  }

  TemporaryDirectory directory_;
  Array queries_, keys_, values_;
};

TEST_F(Arrays, AttendDense) {
  const CommandResult result = Call("attend", {"--method", "dense"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.Json()["keys_read_fraction"], 1.0);
  EXPECT_LE(Error([](int n, int) {
              std::set<int> read;
              for (int j = 0; j <= kTokens - kQueries + n; ++j) read.insert(j);
              return read;
            }),
            ExactBound(AvailableIsas().back()));
  const auto lse = ReadNpy(directory_.Path("l.npy"), 2, "lse");
  ASSERT_TRUE(lse.ok());
  EXPECT_EQ(lse.value().shape, (std::vector<std::int64_t>{kQueries, kHeads}));
}

// What select lists, with sink and window, is what attend reads.
TEST_F(Arrays, AttendReadsWhatSelectLists) {
  const std::vector<std::string> settings = {"--method",  "hip", "--budget",  "64",
                                             "--sink",    "16",  "--window",  "64",
                                             "--block-k", "8",   "--block-q", "16"};
  const nlohmann::json json = Call("select", settings).Json();
  EXPECT_EQ(json["block_size"], 8);
  EXPECT_EQ(json["query_block_size"], 16);
  ASSERT_EQ(json["shared_by_group"], true);
  ASSERT_EQ(json["selected"].size(), static_cast<std::size_t>(kKvHeads));
  ASSERT_EQ(json["selected"][0].size(), 3u);
  const CommandResult attended = Call("attend", settings);
  ASSERT_EQ(attended.status, 0) << attended.err;
  EXPECT_LT(attended.Json()["keys_read_fraction"], 0.4);
  EXPECT_LE(
      Error([&](int n, int h) {
        const int position = kTokens - kQueries + n;
        std::set<int> read;
        for (int j = 0; j < 16; ++j) read.insert(j);
        for (int j = position - 63; j <= position; ++j) read.insert(j);
        for (const int start :
             json["selected"][static_cast<std::size_t>(h / 2)][static_cast<std::size_t>(n / 16)]) {
          for (int j = start; j < start + 8; ++j) read.insert(j);
        }
        return read;
      }),
      ExactBound(AvailableIsas().back()));
}

TEST_F(Arrays, ABudgetThatCoversEverythingListsAllBlocks) {
  const nlohmann::json json =
      Call("select", {"--budget", "1000", "--sink", "32", "--window", "256"}).Json();
  const nlohmann::json& row = json["selected"][0][2];  // its last query sees all 600 keys
  EXPECT_EQ(row.front(), 32);
  EXPECT_EQ(row.size(), static_cast<std::size_t>((600 - 256 - 32) / 8));
}

TEST_F(Arrays, HeadsThatSelectForThemselves) {
  const nlohmann::json json = Call("select", {"--no-share-group", "--budget", "64"}).Json();
  EXPECT_EQ(json["shared_by_group"], false);
  EXPECT_EQ(json["selected"].size(), static_cast<std::size_t>(kHeads));
}

TEST_F(Arrays, TwoByteKeysAndValues) {
  for (const char* type : {"f16", "bf16"}) {
    const CommandResult result = Call("attend", {"--method", "dense", "--kv-type", type});
    ASSERT_EQ(result.status, 0) << result.err;
    EXPECT_LE(Error([](int n, int) {
                std::set<int> read;
                for (int j = 0; j <= kTokens - kQueries + n; ++j) read.insert(j);
                return read;
              }),
              type[0] == 'f' ? 2e-3 : 2e-2);
  }
}

TEST_F(Arrays, BadArrays) {
  const std::string bytes = ReadAll(directory_.Path("q.npy"));
  const auto select = [&](const std::string& queries) {
    return RunCommand({"select", "--queries", directory_.Write("bad.npy", queries), "--keys",
                       directory_.Path("k.npy"), "--json"});
  };
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string changed = bytes;
    return changed.replace(changed.find(from), from.size(), to);
  };
  ExpectError(select(""), 1, {"bad.npy", "numpy.save"});
  ExpectError(select(bytes.substr(0, 50)), 1, {"bad.npy", "header"});
  ExpectError(select(bytes.substr(0, bytes.size() - 7)), 1, {"bad.npy", "values"});
  ExpectError(select(replaced("<f4", "<f8")), 2, {"f32"});
  ExpectError(select(replaced("False", "True ")), 2, {"Fortran"});
  ExpectError(select(replaced("(40, 4, 64, )", "(40, 4, 6x, )")), 1, {"shape"});
  ExpectError(select(replaced("(40, 4, 64, )", "(9999999999)  ")), 1, {"shape"});
  ExpectError(select(replaced("(40, 4, 64, )", "(999, 99, 99)")), 1, {"9791199 values"});
}

TEST_F(Arrays, ShapesThatDoNotFit) {
  ExpectError(RunCommand({"attend", "--queries", directory_.Path("q.npy"), "--keys",
                          directory_.Path("q.npy"), "--values", directory_.Path("v.npy"), "--out",
                          directory_.Path("o.npy")}),
              2, {"keys", "values"});
  ExpectError(Call("select", {"--method", "dense"}), 2, {"dense"});
}

TEST_F(Arrays, OutputThatCannotBeWritten) {
  ExpectError(Call("attend", {}, "/dev/full"), 1, {"/dev/full", "No space left"});
  ExpectError(Call("attend", {}, "/nowhere/o.npy"), 1, {"/nowhere/o.npy"});
}

}  // namespace
}  // namespace coppice::testing
