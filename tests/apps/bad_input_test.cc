// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Files that are not what they should be: one clear line, the right exit status, no crash.
#include <gtest/gtest.h>

#include "model_fixture.h"

namespace coppice::testing {
namespace {

using BadModel = ModelTest;
using BadText = ModelTest;
using BadMemory = ModelTest;

CommandResult RunModel(const std::string& path) {
  return RunCommand({"run", "-m", path, "-p", "hello", "-n", "2", "--threads", "1", "--json"});
}

TEST_F(BadModel, NoFile) { ExpectError(RunModel("/nowhere/m.gguf"), 1, {"/nowhere/m.gguf"}); }

TEST_F(BadModel, NotAGguf) {
  ExpectError(RunModel(text_), 1, {text_, "not a GGUF"});
  ExpectError(RunModel(directory_.Write("empty.gguf", "")), 1, {"empty"});
  ExpectError(RunModel(directory_.Path("")), 1, {"regular file"});
}

TEST_F(BadModel, Truncated) {
  const std::string bytes = ReadAll(model_);
  for (const std::size_t size : {std::size_t{3}, std::size_t{5}, std::size_t{24}, std::size_t{1000},
                                 bytes.size() / 2, bytes.size() - 40}) {
    SCOPED_TRACE(size);
    ExpectError(RunModel(directory_.Write("cut.gguf", bytes.substr(0, size))), 1, {"cut.gguf"});
  }
}

// A flip may leave a model that works; it must never crash the command or hang it.
TEST_F(BadModel, FlippedBits) {
  const std::string bytes = ReadAll(model_);
  const std::size_t header = bytes.find("blk.1.ffn_down.weight") + 64;
  std::uint32_t random = 1;
  for (int flip = 0; flip < 60; ++flip) {
    random = random * 1664525 + 1013904223;
    const std::size_t at = (random >> 8) % header;
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << (random & 7)));
    SCOPED_TRACE("bit " + std::to_string(random & 7) + " of byte " + std::to_string(at));
    const CommandResult result = RunModel(directory_.Write("flip.gguf", damaged));
    if (result.status == 0) continue;
    ExpectError(result, 1, {"flip.gguf"});
  }
}

TEST_F(BadText, NoFile) { ExpectError(Run({"-f", "/nowhere/t.txt"}), 1, {"/nowhere/t.txt"}); }

TEST_F(BadText, Empty) {
  ExpectError(Run({"-f", directory_.Write("empty.txt", "")}), 1, {"empty.txt", "is empty"});
  ExpectError(Run({"-f", "-"}), 1, {"stdin", "is empty"});
}

TEST_F(BadText, NotUtf8) {
  ExpectError(Run({"-f", directory_.Write("latin1.txt", "caf\xE9 au lait")}), 1,
              {"UTF-8", "offset 3"});
  ExpectError(Run({"-p", "caf\xE9"}), 2, {"UTF-8", "offset 3"});
}

TEST_F(BadText, LongerThanTheContext) {
  ExpectError(Run({"-f", text_, "-p", "?"}), 1, {"20,0", "4,096", "--ctx"});
  ExpectError(Run({"-p", "hello there", "--ctx", "20", "-n", "10"}), 1, {"--ctx is 20"});
}

TEST_F(BadMemory, KvCacheThatCannotBe) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer's allocator reports what the command handles";
#endif
  // Refused before libllama fills its cells, so without a word of its own.
  ExpectError(Run({"-p", "hello", "--ctx", "200000000", "--kv-type", "f32"}), 1,
              {"200,000,000", "are free; use a smaller --ctx"});
}

}  // namespace
}  // namespace coppice::testing
