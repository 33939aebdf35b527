// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "command.h"

namespace coppice::app {
namespace {

using testing::ReadAll;
using testing::TemporaryDirectory;

TEST(Files, FirstBadUtf8) {
  const std::size_t none = std::string::npos;
  EXPECT_EQ(FirstBadUtf8(""), none);
  EXPECT_EQ(FirstBadUtf8("plain"), none);
  EXPECT_EQ(FirstBadUtf8("\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x8C\xB3"), none);
  EXPECT_EQ(FirstBadUtf8("ab\x80"), 2u);
  EXPECT_EQ(FirstBadUtf8("a\xC0\xAF"), 1u);         // overlong
  EXPECT_EQ(FirstBadUtf8("\xE0\x9F\xBF"), 0u);      // overlong
  EXPECT_EQ(FirstBadUtf8("\xED\xA0\x80"), 0u);      // surrogate
  EXPECT_EQ(FirstBadUtf8("\xF4\x90\x80\x80"), 0u);  // beyond U+10FFFF
  EXPECT_EQ(FirstBadUtf8("end \xE2\x82"), 4u);      // cut off
  EXPECT_EQ(FirstBadUtf8(std::string_view("\0a", 2)), none);
}

TEST(Files, WriteReplacesAndLeavesNothingBehind) {
  const TemporaryDirectory directory;
  const std::string path = directory.Write("out", "old");
  ASSERT_TRUE(WriteFile(path, {"new", " text"}).ok());
  EXPECT_EQ(ReadAll(path), "new text");
}

TEST(Files, AFailedWriteLeavesTheOldFile) {
  const TemporaryDirectory directory;
  const std::string folder = directory.Path("folder");
  ASSERT_EQ(mkdir(folder.c_str(), 0700), 0);
  EXPECT_FALSE(WriteFile(folder, {"text"}).ok());
  EXPECT_FALSE(WriteFile(directory.Path("none/out"), {"text"}).ok());
  EXPECT_FALSE(WriteFile("/dev/full", {"text"}).ok());
}

TEST(Files, ReadFileHasALimit) {
  const TemporaryDirectory directory;
  const std::string path = directory.Write("long", std::string(1000, 'x'));
  EXPECT_FALSE(ReadFile(path, 999).ok());
  EXPECT_EQ(ReadFile(path, 1000).value().size(), 1000u);
}

}  // namespace
}  // namespace coppice::app
