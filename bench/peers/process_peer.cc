// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "peers/process_peer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "core/rows.h"

namespace coppice::bench {
namespace {

constexpr const char* kInstall = "install it with tools/setup peers";
// Of an interpreter with PyTorch loaded, and of what its kernels allocate for themselves.
constexpr double kProcessBytes = 512.0 * (1 << 20);
constexpr std::size_t kMostQuoted = 60;

// What the script gets: the same bits, but for q8_0, of which neither peer knows.
DType PackedType(DType type) { return type == DType::kQ8_0 ? DType::kF32 : type; }

std::size_t PackedBytes(const TensorView& view) {
  return static_cast<std::size_t>(
      RowBytes(PackedType(view.type), view.tokens * view.heads * view.dim));
}

// A shared file in our memory.
class Mapping {
 public:
  Mapping() = default;
  Mapping(const Descriptor& file, std::size_t bytes)
      : data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0)),
        bytes_(bytes) {}
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, MAP_FAILED)), bytes_(other.bytes_) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapping() {
    if (ok()) munmap(data_, bytes_);
  }
  bool ok() const { return data_ != MAP_FAILED; }
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = MAP_FAILED;
  std::size_t bytes_ = 0;
};

// Packs [tokens, heads, dim] and returns where it ends.
std::byte* Pack(const TensorView& view, std::byte* out) {
  const DType packed = PackedType(view.type);
  const std::int64_t row_bytes = RowBytes(packed, view.dim);
  for (std::int64_t token = 0; token < view.tokens; ++token) {
    for (std::int64_t head = 0; head < view.heads; ++head, out += row_bytes) {
      const std::byte* row = view.Row(token, head);
      if (packed == view.type) {
        std::memcpy(out, row, static_cast<std::size_t>(row_bytes));
        continue;
      }
      for (std::int64_t i = 0; i < view.dim; ++i) {
        const float element = LoadElement(row, view.type, i);
        std::memcpy(out + 4 * i, &element, 4);
      }
    }
  }
  return out;
}

// A new file: queries, keys, values, packed one after the other.
Result<Descriptor> PackInputs(const PeerProblem& problem) {
  const std::size_t bytes =
      PackedBytes(problem.queries) + PackedBytes(problem.keys) + PackedBytes(problem.values);
  Result<Descriptor> file = MakeMemoryFile("inputs", bytes);
  if (!file.ok()) return file;
  const Mapping mapping(file.value(), bytes);
  if (!mapping.ok()) return Status::ResourceExhausted("no memory for a copy of the inputs");
  Pack(problem.values, Pack(problem.keys, Pack(problem.queries, mapping.data())));
  return file;
}

std::string Quoted(const std::string& line) {
  std::string text = line.substr(0, kMostQuoted);
  for (char& c : text) {
    if (c < ' ' || c > '~') c = '?';
  }
  return "'" + text + (line.size() > kMostQuoted ? "...'" : "'");
}

// What follows `word` and a space, if the line begins with them.
std::optional<std::string> After(const std::string& word, const std::string& line) {
  if (line.rfind(word + " ", 0) != 0) return std::nullopt;
  return line.substr(word.size() + 1);
}

class ProcessPeer final : public Peer {
 public:
  explicit ProcessPeer(ProcessPeerOptions options) : options_(std::move(options)) {}

  std::string name() const override { return options_.name; }
  std::string version() const override { return version_; }
  double BytesNeeded(const PeerProblem& problem) const override;
  Status Prepare(const PeerProblem& problem) override;
  Result<double> Run() override;
  const float* output() const override { return reinterpret_cast<const float*>(output_.data()); }

 private:
  std::vector<std::string> Command(const PeerProblem& problem) const;
  // The text after `word` in the answer; any other answer is an error and the process's end.
  Result<std::string> Ask(const std::string& line, const std::string& word);
  Status Nonsense(const std::string& answer);

  ProcessPeerOptions options_;
  std::string version_;
  Mapping output_;
  std::optional<ChildProcess> child_;
};

double ProcessPeer::BytesNeeded(const PeerProblem& problem) const {
  const TensorView& queries = problem.queries;
  const TensorView& keys = problem.keys;
  const auto scores = static_cast<double>(queries.tokens * keys.tokens);
  const auto numbers = 2.0 * static_cast<double>(keys.tokens * keys.heads * keys.dim);
  const double in_transit =
      static_cast<double>(PackedBytes(queries) + PackedBytes(keys) + PackedBytes(problem.values));
  return kProcessBytes + in_transit + numbers * options_.bytes_per_number +
         scores * options_.bytes_per_score + 3 * static_cast<double>(PackedBytes(queries));
}

std::vector<std::string> ProcessPeer::Command(const PeerProblem& problem) const {
  // -B: nothing is written beside the script.
  std::vector<std::string> command = {options_.python.empty() ? PeersPython() : options_.python,
                                      "-B", options_.script};
  command.insert(command.end(), options_.arguments.begin(), options_.arguments.end());
  const auto add = [&](const char* flag, std::int64_t value) {
    command.emplace_back(flag);
    command.push_back(std::to_string(value));
  };
  add("--queries", problem.queries.tokens);
  add("--heads", problem.queries.heads);
  add("--tokens", problem.keys.tokens);
  add("--kv-heads", problem.keys.heads);
  add("--head-dim", problem.keys.dim);
  add("--threads", problem.threads);
  command.emplace_back("--kv-type");
  command.emplace_back(NameOf(PackedType(problem.keys.type)));
  return command;
}

Status ProcessPeer::Prepare(const PeerProblem& problem) {
  const std::vector<std::string> command = Command(problem);
  if (command[0].empty()) return Status::NotFound(std::string("not installed; ") + kInstall);
  if (access(options_.script.c_str(), R_OK) != 0) {
    return Status::NotFound("its script " + options_.script +
                            " is not here; use the coppice of a build tree");
  }
  if (access(command[0].c_str(), X_OK) != 0) {
    return Status::NotFound("cannot run " + command[0] +
                            "; COPPICE_PEERS_PYTHON must name a python3");
  }
  const std::size_t bytes = PackedBytes(problem.queries);
  const Result<Descriptor> output = MakeMemoryFile("output", bytes);
  if (!output.ok()) return output.status();
  output_ = Mapping(output.value(), bytes);
  if (!output_.ok()) return Status::ResourceExhausted("no memory for an output");
  // Closed at the end of this function, so that the copy goes when the child has read it.
  const Result<Descriptor> inputs = PackInputs(problem);
  if (!inputs.ok()) return inputs.status();

  const Descriptor* files[] = {&inputs.value(), &output.value()};
  Result<ChildProcess> child = ChildProcess::Start(command, files);
  if (!child.ok()) return child.status();
  child_.emplace(std::move(child).value());
  const Result<std::string> version = Ask("", "ready");
  if (!version.ok()) return version.status();
  version_ = version.value();
  return Status::Ok();
}

Result<double> ProcessPeer::Run() {
  const Result<std::string> answer = Ask("run", "seconds");
  if (!answer.ok()) return answer.status();
  char* end = nullptr;
  const double seconds = std::strtod(answer.value().c_str(), &end);
  const bool whole = end != answer.value().c_str() && *end == '\0';
  if (!whole || !std::isfinite(seconds) || seconds <= 0) {
    return Nonsense("seconds " + answer.value());
  }
  return seconds;
}

Result<std::string> ProcessPeer::Ask(const std::string& line, const std::string& word) {
  if (!child_) return Status::Internal("has ended before");
  Result<std::string> answer = child_->Ask(line, options_.patience);
  if (!answer.ok()) {
    child_.reset();
    return Status::Internal("its process " + answer.status().message());
  }
  if (std::optional<std::string> rest = After(word, answer.value())) return *std::move(rest);
  if (std::optional<std::string> error = After("error", answer.value())) {
    child_.reset();
    return Status::Internal(*error);
  }
  return Nonsense(answer.value());
}

Status ProcessPeer::Nonsense(const std::string& answer) {
  child_.reset();
  return Status::Internal("its process answered " + Quoted(answer) + ", which makes no sense");
}

std::string Script(const char* name) { return std::string(COPPICE_PEERS_DIR) + "/" + name; }

}  // namespace

std::unique_ptr<Peer> MakeProcessPeer(ProcessPeerOptions options) {
  return std::make_unique<ProcessPeer>(std::move(options));
}

std::string PeersPython() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (std::string python = variable("COPPICE_PEERS_PYTHON"); !python.empty()) return python;
  std::string cache = variable("XDG_CACHE_HOME");
  if (cache.empty()) cache = variable("HOME") + "/.cache";
  std::string python = cache + "/coppice/peers/bin/python";
  return access(python.c_str(), X_OK) == 0 ? python : "";
}

std::unique_ptr<Peer> MakePyTorchPeer(const std::string& type) {
  const double bytes = type == "bf16" ? 2 : 4;
  return MakeProcessPeer({.name = "pytorch-" + type,
                          .script = Script("pytorch_peer.py"),
                          .arguments = {"--compute", type},
                          .bytes_per_number = bytes,
                          .bytes_per_score = bytes});
}

std::unique_ptr<Peer> MakeOnnxRuntimePeer() {
  return MakeProcessPeer({.name = "onnxruntime", .script = Script("onnxruntime_peer.py")});
}

}  // namespace coppice::bench
