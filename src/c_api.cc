// Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
//
// The C interface over the C++ one: checks, converts, and keeps the text of the last error.
#include <atomic>
#include <new>
#include <string>
#include <system_error>

#include "coppice/attention.h"
#include "coppice/coppice.h"

struct coppice_pool {
  explicit coppice_pool(int threads) : threads(threads), workspace(threads) {}

  coppice::ThreadPool threads;
  coppice::Workspace workspace;
  std::atomic_flag in_use = ATOMIC_FLAG_INIT;
};

namespace {

thread_local std::string last_error;

int ErrorCode(coppice::StatusCode code) {
  switch (code) {
    case coppice::StatusCode::kOk:
      return COPPICE_OK;
    case coppice::StatusCode::kInvalidArgument:
      return COPPICE_INVALID_ARGUMENT;
    case coppice::StatusCode::kNotFound:
      return COPPICE_NOT_FOUND;
    case coppice::StatusCode::kResourceExhausted:
      return COPPICE_RESOURCE_EXHAUSTED;
    case coppice::StatusCode::kUnimplemented:
      return COPPICE_UNIMPLEMENTED;
    default:
      return COPPICE_INTERNAL;
  }
}

coppice::TensorView View(const coppice_tensor& tensor) {
  return {tensor.data,       static_cast<coppice::DType>(tensor.dtype),
          tensor.tokens,     tensor.heads,
          tensor.dim,        tensor.token_stride,
          tensor.head_stride};
}

coppice::Status CheckThreads(std::int32_t threads) {
  if (threads >= 1 && threads <= 1024) return coppice::Status::Ok();
  return coppice::Status::InvalidArgument("threads is " + std::to_string(threads) +
                                          "; it must be between 1 and 1024");
}

// Of a pool, by one call at a time.
class Use {
 public:
  explicit Use(coppice_pool& pool)
      : pool_(pool), alone_(!pool.in_use.test_and_set(std::memory_order_acquire)) {}
  ~Use() {
    if (alone_) pool_.in_use.clear(std::memory_order_release);
  }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  bool alone() const { return alone_; }

 private:
  coppice_pool& pool_;
  const bool alone_;
};

coppice::Status AttendChecked(const coppice_attend_args& args) {
  using coppice::Status;
  if (args.struct_size != sizeof(coppice_attend_args)) {
    return Status::InvalidArgument("struct_size is " + std::to_string(args.struct_size) + ", not " +
                                   std::to_string(sizeof(coppice_attend_args)) +
                                   "; call coppice_attend_args_init");
  }
  if (args.method == nullptr) return Status::InvalidArgument("method is null");
  for (const coppice_tensor* tensor : {&args.queries, &args.keys, &args.values, &args.output}) {
    if (tensor->dtype < COPPICE_F32 || tensor->dtype > COPPICE_Q8_0) {
      return Status::InvalidArgument("dtype is " + std::to_string(tensor->dtype) +
                                     "; known: 0 (f32), 1 (f16), 2 (bf16), 3 (q8_0)");
    }
  }
  if (args.output.dtype != COPPICE_F32) return Status::InvalidArgument("output must be f32");

  coppice::AttentionSettings settings;
  settings.method = args.method;
  settings.budget = args.budget;
  settings.block_k = args.block_k;
  settings.block_q = args.block_q;
  settings.query_stride = args.query_stride;
  settings.sink = args.sink;
  settings.window = args.window;
  settings.representative = args.representative_center != 0 ? coppice::Representative::kCenter
                                                            : coppice::Representative::kFirst;
  settings.breadth = args.breadth;
  settings.probe = args.probe;
  settings.balance = args.balance != 0;
  settings.share_group = args.share_group != 0;
  settings.fast = args.fast != 0;

  const coppice::AttentionInputs inputs = {
      .queries = View(args.queries),
      .keys = View(args.keys),
      .values = View(args.values),
      .output = {static_cast<float*>(args.output.data), args.output.tokens, args.output.heads,
                 args.output.dim, args.output.token_stride, args.output.head_stride},
      .lse = args.lse,
      .scale = args.scale,
      .softcap = args.softcap,
      .alibi_slopes = args.alibi_slopes,
      .sinks = args.sinks};
  if (args.pool == nullptr) {
    if (Status status = CheckThreads(args.threads); !status.ok()) return status;
    coppice::ThreadPool threads(args.threads);
    return Attend(inputs, settings, threads);
  }
  const Use use(*args.pool);
  if (!use.alone()) {
    return Status::InvalidArgument(
        "the pool runs another call; it takes one at a time, so give each caller its own");
  }
  return Attend(inputs, settings, args.pool->threads, args.pool->workspace);
}

coppice::Status CreatePool(std::int32_t threads, coppice_pool** pool) {
  if (pool == nullptr) return coppice::Status::InvalidArgument("pool is null");
  *pool = nullptr;
  if (coppice::Status status = CheckThreads(threads); !status.ok()) return status;
  *pool = new coppice_pool(threads);
  return coppice::Status::Ok();
}

// The code of what `call` returns or throws, with its text in last_error.
template <typename Call>
int Run(Call call) {
  try {
    const coppice::Status status = call();
    last_error = status.message();
    return ErrorCode(status.code());
  } catch (const std::bad_alloc&) {
    last_error = "out of memory";
    return COPPICE_RESOURCE_EXHAUSTED;
  } catch (const std::system_error& error) {
    last_error = std::string("no thread could be started: ") + error.what();
    return COPPICE_RESOURCE_EXHAUSTED;
  } catch (const std::exception& error) {
    last_error = error.what();
    return COPPICE_INTERNAL;
  }
}

}  // namespace

extern "C" {

const char* coppice_version(void) { return COPPICE_VERSION; }
int coppice_abi_version(void) { return COPPICE_ABI_VERSION; }
const char* coppice_last_error(void) { return last_error.c_str(); }

void coppice_attend_args_init(coppice_attend_args* args) {
  const coppice::AttentionSettings defaults;
  *args = {};
  args->struct_size = sizeof(coppice_attend_args);
  args->method = "hip";
  args->budget = defaults.budget;
  args->block_k = defaults.block_k;
  args->block_q = defaults.block_q;
  args->query_stride = defaults.query_stride;
  args->sink = defaults.sink;
  args->window = defaults.window;
  args->representative_center = defaults.representative == coppice::Representative::kCenter;
  args->breadth = defaults.breadth;
  args->probe = defaults.probe;
  args->balance = defaults.balance;
  args->share_group = defaults.share_group;
  args->fast = defaults.fast;
  args->threads = 1;
}

int coppice_pool_create(int32_t threads, coppice_pool** pool) {
  return Run([&] { return CreatePool(threads, pool); });
}
void coppice_pool_free(coppice_pool* pool) { delete pool; }

int coppice_attend(const coppice_attend_args* args) {
  return Run([&] {
    return args == nullptr ? coppice::Status::InvalidArgument("args is null")
                           : AttendChecked(*args);
  });
}

}  // extern "C"
