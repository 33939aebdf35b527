// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// A graph of one node, ggml_flash_attn_ext, on ggml's best CPU backend for this machine. The
// arguments are laid out as llama.cpp lays them out: Q f32 [dim, queries, heads], permuted from
// [dim, heads, queries]; K and V [dim, tokens, kv_heads], permuted views of the cache's rows; a
// causal mask in f16; scores in f32. Keys and values are read in place; only the mask is made here.
//
// No thread pool is attached, as in a program that calls libllama: ggml starts its threads for every
// graph, about 30 us. A pool of its own would spin on the cores for 100 ms after each round, and
// slow down ours, which runs in between.
#include "peers/ggml.h"

#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

namespace coppice::bench {
namespace {

constexpr std::uint16_t kHalfMinusInfinity = 0xFC00;
constexpr const char* kInstall = "install it with tools/setup llama";

template <typename T, void (*Free)(T*)>
struct Deleter {
  void operator()(T* object) const { Free(object); }
};
using ContextPtr = std::unique_ptr<ggml_context, Deleter<ggml_context, ggml_free>>;
using BackendPtr = std::unique_ptr<ggml_backend, Deleter<ggml_backend, ggml_backend_free>>;
using BufferPtr =
    std::unique_ptr<ggml_backend_buffer, Deleter<ggml_backend_buffer, ggml_backend_buffer_free>>;

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, FreeMemory>;

// ggml wants its tensors aligned to 32 bytes.
Memory Allocate(std::size_t bytes) {
  return Memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
}

ggml_type TypeOf(DType type) {
  constexpr ggml_type kTypes[] = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0};
  return kTypes[static_cast<int>(type)];
}

class GgmlPeer final : public Peer {
 public:
  std::string name() const override { return "ggml"; }
  std::string version() const override { return ggml_version(); }
  double BytesNeeded(const PeerProblem& problem) const override;
  Status Prepare(const PeerProblem& problem) override;
  Result<double> Run() override;
  const float* output() const override { return static_cast<const float*>(result_->data); }

 private:
  Status OpenBackend(int threads);
  // A tensor [dim, heads, tokens] over the view's memory, seen as [dim, tokens, heads].
  ggml_tensor* Wrap(const TensorView& view);
  // Null without memory.
  ggml_tensor* MakeMask(std::int64_t queries, std::int64_t keys);
  void Place(ggml_tensor* tensor, void* memory);

  // Buffers go before the backend, the context last.
  ContextPtr context_;
  BackendPtr backend_;
  std::vector<BufferPtr> buffers_;
  Memory mask_;
  Memory output_;
  ggml_cgraph* graph_ = nullptr;
  ggml_tensor* result_ = nullptr;
};

Status GgmlPeer::OpenBackend(int threads) {
  ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  if (ggml_backend_dev_count() == 0) {
    ggml_backend_load_all_from_path(COPPICE_LLAMA_BACKENDS_DIR);
  }
  backend_.reset(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
  if (backend_ == nullptr) {
    return Status::NotFound(std::string("ggml has no CPU backend in ") +
                            COPPICE_LLAMA_BACKENDS_DIR + "; " + kInstall);
  }
  ggml_backend_reg_t registry =
      ggml_backend_dev_backend_reg(ggml_backend_get_device(backend_.get()));
  const auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
      ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"));
  if (set_threads == nullptr) return Status::NotFound("ggml's CPU backend is too old; update it");
  set_threads(backend_.get(), threads);
  return Status::Ok();
}

ggml_tensor* GgmlPeer::Wrap(const TensorView& view) {
  ggml_tensor* rows =
      ggml_new_tensor_3d(context_.get(), TypeOf(view.type), view.dim, view.heads, view.tokens);
  Place(rows, const_cast<void*>(view.data));  // ggml does not write to its inputs
  ggml_tensor* view_tensor = ggml_permute(context_.get(), rows, 0, 2, 1, 3);
  ggml_backend_view_init(view_tensor);
  return view_tensor;
}

void GgmlPeer::Place(ggml_tensor* tensor, void* memory) {
  const std::size_t bytes = ggml_nbytes(tensor);
  buffers_.emplace_back(ggml_backend_dev_buffer_from_host_ptr(
      ggml_backend_get_device(backend_.get()), memory, bytes, bytes));
  ggml_backend_tensor_alloc(buffers_.back().get(), tensor, memory);
}

ggml_tensor* GgmlPeer::MakeMask(std::int64_t queries, std::int64_t keys) {
  mask_ = Allocate(static_cast<std::size_t>(queries * keys) * sizeof(std::uint16_t));
  if (mask_ == nullptr) return nullptr;
  auto* row = static_cast<std::uint16_t*>(mask_.get());
  for (std::int64_t query = 0; query < queries; ++query, row += keys) {
    const std::int64_t visible = keys - queries + query + 1;
    std::fill_n(row, visible, std::uint16_t{0});
    std::fill(row + visible, row + keys, kHalfMinusInfinity);
  }
  return ggml_new_tensor_2d(context_.get(), GGML_TYPE_F16, keys, queries);
}

double GgmlPeer::BytesNeeded(const PeerProblem& problem) const {
  const TensorView& queries = problem.queries;
  const auto mask = 2.0 * static_cast<double>(queries.tokens * problem.keys.tokens);
  return mask + 4.0 * static_cast<double>(queries.tokens * queries.heads * problem.values.dim);
}

Status GgmlPeer::Prepare(const PeerProblem& problem) {
  const TensorView& queries = problem.queries;
  const TensorView& keys = problem.keys;
  const TensorView& values = problem.values;
  if (Status status = OpenBackend(problem.threads); !status.ok()) return status;
  const ggml_init_params params = {.mem_size = 16 * ggml_tensor_overhead() + ggml_graph_overhead(),
                                   .mem_buffer = nullptr,
                                   .no_alloc = true};
  context_.reset(ggml_init(params));
  if (context_ == nullptr) return Status::ResourceExhausted("no memory for ggml");
  ggml_tensor* q = Wrap(queries);
  ggml_tensor* k = Wrap(keys);
  ggml_tensor* v = Wrap(values);
  ggml_tensor* mask = MakeMask(queries.tokens, keys.tokens);
  output_ = Allocate(static_cast<std::size_t>(queries.tokens * queries.heads * values.dim) *
                     sizeof(float));
  if (mask == nullptr || output_ == nullptr) {
    return Status::ResourceExhausted("no memory for ggml's mask; use fewer --tokens");
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(queries.dim));
  result_ = ggml_flash_attn_ext(context_.get(), q, k, v, mask, scale, 0.0f, 0.0f);
  ggml_prec_set_acc(result_, GGML_PREC_F32);
  Place(mask, mask_.get());
  Place(result_, output_.get());
  if (!ggml_backend_supports_op(backend_.get(), result_)) {
    return Status::Unimplemented("ggml's CPU backend has no flash attention for " +
                                 std::string(NameOf(keys.type)) + " keys of dim " +
                                 std::to_string(keys.dim));
  }
  graph_ = ggml_new_graph(context_.get());
  ggml_build_forward_expand(graph_, result_);
  return Status::Ok();
}

Result<double> GgmlPeer::Run() {
  const auto start = std::chrono::steady_clock::now();
  if (ggml_backend_graph_compute(backend_.get(), graph_) != GGML_STATUS_SUCCESS) {
    return Status::Internal("ggml could not compute its graph");
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::unique_ptr<Peer> MakeGgmlPeer() { return std::make_unique<GgmlPeer>(); }

}  // namespace coppice::bench
