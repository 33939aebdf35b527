// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

namespace coppice::app {
namespace {

struct Closer {
  void operator()(std::FILE* file) const {
    if (file != stdin) std::fclose(file);
  }
};
using File = std::unique_ptr<std::FILE, Closer>;

constexpr std::size_t kMostTextBytes = std::size_t{1} << 30;

std::string Reason() { return std::strerror(errno); }

// How many bytes a well-formed character at the front of `text` has (Unicode 15, table 3-7); 0: it
// is not well formed.
std::size_t CharacterBytes(std::string_view text) {
  const auto byte = [&](std::size_t i) -> unsigned {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto within = [&](std::size_t i, unsigned least, unsigned most) {
    return byte(i) >= least && byte(i) <= most;
  };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return within(1, 0x80, 0xBF) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const unsigned least = lead == 0xE0 ? 0xA0 : 0x80;
    const unsigned most = lead == 0xED ? 0x9F : 0xBF;
    return within(1, least, most) && within(2, 0x80, 0xBF) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const unsigned least = lead == 0xF0 ? 0x90 : 0x80;
    const unsigned most = lead == 0xF4 ? 0x8F : 0xBF;
    return within(1, least, most) && within(2, 0x80, 0xBF) && within(3, 0x80, 0xBF) ? 4 : 0;
  }
  return 0;
}

bool WriteAll(int descriptor, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

Status PlaceNotWritable(const std::string& path, int error) {
  return Status::NotFound("cannot write '" + path + "': " + std::strerror(error) +
                          "; choose a place that can be written");
}

Status CannotWrite(const std::string& path, int error) {
  return Status::ResourceExhausted("cannot write '" + path + "': " + std::strerror(error) +
                                   "; free some space or choose another place");
}

bool WritePieces(int descriptor, std::initializer_list<std::string_view> pieces) {
  for (const std::string_view piece : pieces) {
    if (!WriteAll(descriptor, piece)) return false;
  }
  return true;
}

Status WriteInPlace(const std::string& path, std::initializer_list<std::string_view> pieces) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor < 0) return PlaceNotWritable(path, errno);
  int error = WritePieces(descriptor, pieces) ? 0 : errno;
  if (close(descriptor) != 0 && error == 0) error = errno;
  return error == 0 ? Status::Ok() : CannotWrite(path, error);
}

}  // namespace

Result<std::string> ReadFile(const std::string& path, std::size_t most) {
  const std::string name = path == "-" ? "stdin" : "'" + path + "'";
  File file(path == "-" ? stdin : std::fopen(path.c_str(), "rb"));
  if (file == nullptr) {
    return Status::NotFound("cannot open " + name + ": " + Reason() + "; check the path");
  }
  std::string bytes;
  char buffer[1 << 16];
  while (true) {
    const std::size_t got = std::fread(buffer, 1, sizeof(buffer), file.get());
    if (got == 0) break;
    bytes.append(buffer, got);
    if (bytes.size() > most) {
      return Status::InvalidArgument(name + " is larger than " + std::to_string(most) +
                                     " bytes; give a smaller file");
    }
  }
  if (std::ferror(file.get()) != 0) {
    return Status::DataLoss("cannot read " + name + ": " + Reason() + "; check the path");
  }
  return bytes;
}

Result<std::string> ReadText(const std::string& path) {
  Result<std::string> text = ReadFile(path, kMostTextBytes);
  if (!text.ok()) return text;
  const std::string name = path == "-" ? "stdin" : "'" + path + "'";
  if (text->empty()) return Status::DataLoss(name + " is empty; give a file with text in it");
  const std::size_t bad = FirstBadUtf8(*text);
  if (bad != std::string::npos) {
    return Status::DataLoss(name + " is not UTF-8 text: bad byte at offset " + std::to_string(bad) +
                            "; convert it first, as with iconv -t UTF-8");
  }
  return text;
}

std::size_t FirstBadUtf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t bytes = CharacterBytes(text.substr(at, 4));
    if (bytes == 0) return at;
    at += bytes;
  }
  return std::string_view::npos;
}

PendingFile::PendingFile(std::string path)
    : path_(std::move(path)),
      name_(path_ + ".tmp" + std::to_string(getpid())),
      descriptor_(open(name_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666)),
      error_(errno) {}

PendingFile::~PendingFile() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(name_.c_str());  // nothing, once it is published
}

Status PendingFile::status() const {
  return descriptor_ < 0 ? PlaceNotWritable(path_, error_) : Status::Ok();
}

Status PendingFile::Publish() const {
  if (fsync(descriptor_) != 0 || std::rename(name_.c_str(), path_.c_str()) != 0) {
    return CannotWrite(path_, errno);
  }
  return Status::Ok();
}

Status WriteFile(const std::string& path, std::initializer_list<std::string_view> pieces) {
  struct stat info = {};
  if (stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) return WriteInPlace(path, pieces);
  const PendingFile file(path);
  if (!file.status().ok()) return file.status();
  if (!WritePieces(file.descriptor(), pieces)) return CannotWrite(path, errno);
  return file.Publish();
}

}  // namespace coppice::app
