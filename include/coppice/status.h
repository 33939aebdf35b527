// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// Errors are values. A function that can fail returns Status, or Result<T> when it has something to
// give back; the library throws nothing across its API, prints nothing and never aborts.
//
//   coppice::Status status = coppice::Validate(settings);
//   if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
#pragma once

#include <cassert>
#include <optional>
#include <string>
#include <utility>

namespace coppice {

enum class StatusCode {
  kOk = 0,
  kInvalidArgument,    // the caller's mistake; the message names the field and its value
  kNotFound,           // a file, a method or an instruction set that is not there
  kDataLoss,           // a file that is damaged or cut short
  kResourceExhausted,  // out of memory or disk
  kUnimplemented,      // a type or shape that no kernel reads
  kCancelled,          // the user asked to stop
  kInternal,
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status Ok() { return {}; }
  static Status InvalidArgument(std::string message) {
    return {StatusCode::kInvalidArgument, std::move(message)};
  }
  static Status NotFound(std::string message) {
    return {StatusCode::kNotFound, std::move(message)};
  }
  static Status DataLoss(std::string message) {
    return {StatusCode::kDataLoss, std::move(message)};
  }
  static Status ResourceExhausted(std::string message) {
    return {StatusCode::kResourceExhausted, std::move(message)};
  }
  static Status Unimplemented(std::string message) {
    return {StatusCode::kUnimplemented, std::move(message)};
  }
  static Status Cancelled(std::string message) {
    return {StatusCode::kCancelled, std::move(message)};
  }
  static Status Internal(std::string message) {
    return {StatusCode::kInternal, std::move(message)};
  }

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

// Either a T or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(std::move(status)) {  // NOLINT(google-explicit-constructor)
    assert(!status_.ok());
  }

  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return *std::move(value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }
  T& operator*() { return *value_; }
  const T& operator*() const { return *value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace coppice
