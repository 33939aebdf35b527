// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
#include "model.h"

#include <gguf.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "llama_runtime.h"
#include "memory.h"

namespace coppice::app {
namespace {

// Up to this size the weights are always looked at: half a second for the largest.
constexpr std::uint64_t kSmallFile = std::uint64_t{1} << 30;
constexpr std::uint64_t kHeaderBytes = 24;  // magic, version, two counts

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
struct FreeGguf {
  void operator()(gguf_context* gguf) const { gguf_free(gguf); }
};

Status Damaged(const std::string& path, const std::string& why) {
  return Status::DataLoss("model '" + path + "' is damaged: " + why + "; fetch it again");
}

Result<std::uint64_t> CheckMagic(const std::string& path) {
  const std::unique_ptr<std::FILE, CloseFile> file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) {
    return Status::NotFound("cannot open model '" + path + "': " + std::strerror(errno) +
                            "; check the path");
  }
  struct stat info = {};
  if (fstat(fileno(file.get()), &info) != 0 || !S_ISREG(info.st_mode)) {
    return Status::NotFound("model '" + path + "' is no regular file; give a .gguf file");
  }
  if (info.st_size == 0) return Status::DataLoss("model '" + path + "' is empty; fetch it again");
  char magic[4] = {};
  const std::size_t got = std::fread(magic, 1, sizeof(magic), file.get());
  if (got < sizeof(magic) || std::memcmp(magic, GGUF_MAGIC, sizeof(magic)) != 0) {
    return Status::DataLoss("'" + path + "' is not a GGUF model; give a .gguf file");
  }
  const auto bytes = static_cast<std::uint64_t>(info.st_size);
  if (bytes < kHeaderBytes) return Damaged(path, "it ends in its header");
  return bytes;
}

// Every tensor must lie within the file.
Status CheckExtents(const std::string& path, const gguf_context& gguf, std::uint64_t bytes) {
  const std::int64_t tensors = gguf_get_n_tensors(&gguf);
  if (tensors == 0) return Damaged(path, "it holds no tensors");
  const std::uint64_t data = gguf_get_data_offset(&gguf);
  for (std::int64_t i = 0; i < tensors; ++i) {
    const std::uint64_t offset = gguf_get_tensor_offset(&gguf, i);
    const std::uint64_t size = gguf_get_tensor_size(&gguf, i);
    if (data <= bytes && offset <= bytes - data && size <= bytes - data - offset) continue;
    const double needed =
        static_cast<double>(data) + static_cast<double>(offset) + static_cast<double>(size);
    char text[160];
    std::snprintf(text, sizeof(text), "tensor %.48s ends at byte %.0f, the file at byte %llu",
                  gguf_get_tensor_name(&gguf, i), needed, static_cast<unsigned long long>(bytes));
    return Damaged(path, text);
  }
  return Status::Ok();
}

Result<std::uint64_t> CheckFile(const std::string& path) {
  Result<std::uint64_t> bytes = CheckMagic(path);
  if (!bytes.ok()) return bytes;
  const std::unique_ptr<gguf_context, FreeGguf> gguf(
      gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}));
  if (gguf == nullptr) {
    const std::string error = TakeLlamaError();
    return Damaged(path, error.empty() ? "its header cannot be read" : error);
  }
  if (Status status = CheckExtents(path, *gguf, *bytes); !status.ok()) return status;
  return bytes;
}

double MetaNumber(const llama_model* model, const std::string& key, double otherwise) {
  char text[64];
  if (llama_model_meta_val_str(model, key.c_str(), text, sizeof(text)) < 0) return otherwise;
  const double number = std::strtod(text, nullptr);
  return number > 0 ? number : otherwise;
}

}  // namespace

Result<Model> Model::Load(const ModelOptions& options) {
  if (Status status = StartLlama(options.verbose); !status.ok()) return status;
  const DamageGuard guard(options.path);
  const Result<std::uint64_t> bytes = CheckFile(options.path);
  if (!bytes.ok()) return bytes.status();

  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  params.check_tensors = options.check_tensors || bytes.value() <= kSmallFile;
  Model model;
  model.path_ = options.path;
  {
    const MemoryCeiling ceiling(/*extra=*/bytes.value());
    model.model_.reset(llama_model_load_from_file(options.path.c_str(), params));
  }
  if (model.model_ == nullptr) {
    const std::string error = TakeLlamaError();
    return Status::DataLoss("model '" + options.path + "' cannot be loaded: " +
                            (error.empty() ? "libllama does not say why" : error) +
                            "; fetch it again, or a model that this llama.cpp knows");
  }
  if (llama_model_has_encoder(model.get()) || !llama_model_has_decoder(model.get())) {
    return Status::Unimplemented("model '" + options.path +
                                 "' is no text generator; give a decoder-only model");
  }
  if (llama_vocab_type(model.vocab()) == LLAMA_VOCAB_TYPE_NONE) {
    return Status::Unimplemented("model '" + options.path +
                                 "' has no tokenizer; give a model that reads text");
  }
  if (model.vocab_size() < 1 || model.trained_tokens() < 1) {
    return Damaged(options.path, "it has no vocabulary or no context length");
  }
  return model;
}

std::string Model::description() const {
  char text[128] = {};
  llama_model_desc(model_.get(), text, sizeof(text));
  return text;
}

double Model::KvBytesPerToken(ggml_type type) const {
  char architecture[64] = {};
  llama_model_meta_val_str(get(), "general.architecture", architecture, sizeof(architecture));
  const std::string prefix = std::string(architecture) + ".attention.";
  const double heads = llama_model_n_head(get());
  const double dim = heads > 0 ? llama_model_n_embd(get()) / heads : 0;
  const double row = MetaNumber(get(), prefix + "key_length", dim) +
                     MetaNumber(get(), prefix + "value_length", dim);
  const double numbers = llama_model_n_layer(get()) * llama_model_n_head_kv(get()) * row;
  return numbers * static_cast<double>(ggml_type_size(type)) /
         static_cast<double>(ggml_blck_size(type));
}

bool Model::EveryLayerKeepsAll() const {
  return llama_model_n_swa(get()) == 0 && !llama_model_is_recurrent(get()) &&
         !llama_model_is_hybrid(get());
}

}  // namespace coppice::app
