// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Reading texts and writing results. A result appears under its name when it is complete, or not at
// all.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <string>
#include <string_view>

#include "coppice/status.h"

namespace coppice::app {

// A whole text; path "-" is stdin. It must have something in it and be UTF-8.
Result<std::string> ReadText(const std::string& path);

// Any file, up to `most` bytes.
Result<std::string> ReadFile(const std::string& path, std::size_t most);

// Offset of the first byte that is not UTF-8, or npos.
std::size_t FirstBadUtf8(std::string_view text);

// A new file beside `path`, which goes with its scope unless it was published under that name.
class PendingFile {
 public:
  explicit PendingFile(std::string path);
  ~PendingFile();
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;

  Status status() const;  // whether it is there
  const std::string& name() const { return name_; }
  int descriptor() const { return descriptor_; }
  // Syncs and renames it.
  Status Publish() const;

 private:
  std::string path_;
  std::string name_;
  int descriptor_;
  int error_;
};

// Writes the pieces, one after the other, to a pending file, and publishes it. What is no regular file (a pipe,
// /dev/null) is written in place.
Status WriteFile(const std::string& path, std::initializer_list<std::string_view> pieces);

}  // namespace coppice::app
