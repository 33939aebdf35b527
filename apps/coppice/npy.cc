// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The format (numpy.lib.format): "\x93NUMPY", major, minor, the header's length (u16 in version 1,
// u32 later, little endian), the header, the data. The header is a Python dictionary:
//
//   {'descr': '<f4', 'fortran_order': False, 'shape': (1024, 8, 128), }
#include "npy.h"

#include <sys/stat.h>

#include <bit>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string_view>

#include "files.h"
#include "memory.h"

namespace coppice::app {
namespace {

static_assert(std::endian::native == std::endian::little);
constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kMostHeaderBytes = 1 << 16;

struct Closer {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

// What follows 'key': in the dictionary, without leading blanks.
std::string_view ValueOf(std::string_view header, const std::string& key) {
  for (const char quote : {'\'', '"'}) {
    const std::string quoted = quote + key + quote;
    std::size_t at = header.find(quoted);
    if (at == std::string_view::npos) continue;
    at = header.find_first_not_of(' ', at + quoted.size());
    if (at == std::string_view::npos || header[at] != ':') continue;
    at = header.find_first_not_of(' ', at + 1);
    if (at != std::string_view::npos) return header.substr(at);
  }
  return {};
}

// "(3, 4, )" to {3, 4}; false when it is something else or a size is absurd.
bool ParseShape(std::string_view text, std::vector<std::int64_t>& shape) {
  if (text.empty() || text[0] != '(') return false;
  std::int64_t number = -1;
  for (const char c : text.substr(1)) {
    if (std::isdigit(static_cast<unsigned char>(c)) != 0) {
      number = (number < 0 ? 0 : number) * 10 + (c - '0');
      if (number > std::numeric_limits<std::int32_t>::max()) return false;
    } else if (c == ',' || c == ')') {
      if (number >= 0) shape.push_back(number);
      if (c == ')') return true;
      number = -1;
    } else if (c != ' ' && c != 'L') {
      return false;
    }
  }
  return false;
}

Status ParseHeader(std::string_view header, std::vector<std::int64_t>& shape) {
  const std::string_view type = ValueOf(header, "descr").substr(0, 5);
  if (type != "'<f4'" && type != "\"<f4\"") {
    return Status::InvalidArgument("is not little-endian f32; save it with astype('float32')");
  }
  if (ValueOf(header, "fortran_order").substr(0, 5) != "False") {
    return Status::InvalidArgument("is in Fortran order; save numpy.ascontiguousarray(x)");
  }
  if (!ParseShape(ValueOf(header, "shape"), shape)) {
    return Status::DataLoss("has a header without a proper shape; save it again");
  }
  return Status::Ok();
}

// Reads up to the data. Returns its offset.
Result<std::size_t> ReadHeader(std::FILE* file, std::vector<std::int64_t>& shape) {
  unsigned char start[12] = {};
  if (std::fread(start, 1, 8, file) != 8 || std::memcmp(start, kMagic.data(), 6) != 0) {
    return Status::DataLoss("is no .npy file; save it with numpy.save");
  }
  const std::size_t length_bytes = start[6] == 1 ? 2 : 4;
  if (start[6] < 1 || start[6] > 3 ||
      std::fread(start + 8, 1, length_bytes, file) != length_bytes) {
    return Status::DataLoss("has an unknown .npy version or ends in its header; save it again");
  }
  std::size_t length = 0;
  for (std::size_t i = 0; i < length_bytes; ++i) length |= std::size_t{start[8 + i]} << (8 * i);
  if (length > kMostHeaderBytes) return Status::DataLoss("has an absurd header; save it again");
  std::string header(length, '\0');
  if (std::fread(header.data(), 1, length, file) != length) {
    return Status::DataLoss("ends in its header; save it again");
  }
  if (Status status = ParseHeader(header, shape); !status.ok()) return status;
  return 8 + length_bytes + length;
}

std::string Describe(std::span<const std::int64_t> shape) {
  std::string text;
  for (const std::int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

}  // namespace

Result<Array> ReadNpy(const std::string& path, std::size_t dims, const std::string& what) {
  const std::string name = what + " '" + path + "' ";
  const std::unique_ptr<std::FILE, Closer> file(std::fopen(path.c_str(), "rb"));
  struct stat info = {};
  if (file == nullptr || fstat(fileno(file.get()), &info) != 0 || !S_ISREG(info.st_mode)) {
    return Status::NotFound(name + "cannot be opened as a file; check the path");
  }
  Array array;
  const Result<std::size_t> offset = ReadHeader(file.get(), array.shape);
  if (!offset.ok()) return Status(offset.status().code(), name + offset.status().message());
  if (array.shape.size() != dims) {
    return Status::InvalidArgument(name + "has shape " + Describe(array.shape) + "; it needs " +
                                   std::to_string(dims) + " sizes, [tokens, heads, dim]");
  }
  std::size_t count = 1;
  for (const std::int64_t size : array.shape) {
    if (__builtin_mul_overflow(count, static_cast<std::size_t>(size), &count)) count = SIZE_MAX / 8;
    if (count > SIZE_MAX / 8) count = SIZE_MAX / 8;
  }
  const auto file_bytes = static_cast<std::size_t>(info.st_size);
  if (count == 0) return Status::InvalidArgument(name + "is empty; it needs at least one value");
  if (count * sizeof(float) != file_bytes - *offset) {
    return Status::DataLoss(name + "should hold " + std::to_string(count) + " values, but has " +
                            std::to_string(file_bytes - *offset) + " bytes; save it again");
  }
  if (count * sizeof(float) > AvailableMemory()) {
    return Status::ResourceExhausted(name + "does not fit into memory; cut it");
  }
  array.data.resize(count);
  if (std::fread(array.data.data(), sizeof(float), count, file.get()) != count) {
    return Status::DataLoss(name + "cannot be read to its end; save it again");
  }
  return array;
}

Status WriteNpy(const std::string& path, std::span<const std::int64_t> shape,
                std::span<const float> data) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (const std::int64_t size : shape) header += std::to_string(size) + ", ";
  header += "), }";
  constexpr std::size_t kAlignment = 64;  // of the data, as NumPy writes it
  header.append(kAlignment - (10 + header.size() + 1) % kAlignment, ' ');
  header += '\n';
  std::string start(kMagic);
  start += '\x01';
  start += '\0';
  start += static_cast<char>(header.size() & 0xFF);
  start += static_cast<char>(header.size() >> 8);
  return WriteFile(
      path, {start, header, {reinterpret_cast<const char*>(data.data()), data.size_bytes()}});
}

}  // namespace coppice::app
