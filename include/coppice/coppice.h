/* Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
 *
 * The C interface: attention of one layer, dense or pruned, over strided views. Plain C89 but for
 * <stdint.h>. Every call returns 0, or an error code with its text in coppice_last_error().
 *
 *   coppice_pool* pool = NULL;
 *   coppice_attend_args args;
 *   coppice_attend_args_init(&args);
 *   args.queries.data = q; ...
 *   if (coppice_pool_create(4, &pool) != COPPICE_OK) fprintf(stderr, "%s\n", coppice_last_error());
 *   args.pool = pool;
 *   if (coppice_attend(&args) != COPPICE_OK) fprintf(stderr, "%s\n", coppice_last_error());
 *   coppice_pool_free(pool);
 */
#ifndef COPPICE_COPPICE_H_
#define COPPICE_COPPICE_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define COPPICE_API __attribute__((visibility("default")))
#else
#define COPPICE_API
#endif

#define COPPICE_ABI_VERSION 1

enum coppice_error {
  COPPICE_OK = 0,
  COPPICE_INVALID_ARGUMENT = 1,
  COPPICE_NOT_FOUND = 2,
  COPPICE_RESOURCE_EXHAUSTED = 3,
  COPPICE_UNIMPLEMENTED = 4,
  COPPICE_INTERNAL = 5
};

/* Q8_0: blocks of 32 elements, each an f16 scale and 32 signed bytes. */
enum coppice_dtype { COPPICE_F32 = 0, COPPICE_F16 = 1, COPPICE_BF16 = 2, COPPICE_Q8_0 = 3 };

/* A view [tokens, heads, dim]: element (t, h, i) lies at data + t * token_stride + h * head_stride +
 * i * element size (Q8_0: block i / 32 at + i / 32 * 34); strides are in bytes. */
typedef struct coppice_tensor {
  void* data;
  int32_t dtype; /* enum coppice_dtype */
  int64_t tokens;
  int64_t heads;
  int64_t dim;
  int64_t token_stride;
  int64_t head_stride;
} coppice_tensor;

/* Threads, the calling one among them, and their scratch memory, for one call at a time. Without one a call
 * with several threads starts and ends them: 50 to 80 microseconds with two, and milliseconds in one call of a
 * hundred where another process keeps a processor busy. */
typedef struct coppice_pool coppice_pool;

typedef struct coppice_attend_args {
  uint32_t struct_size;      /* sizeof(coppice_attend_args), set by coppice_attend_args_init */
  coppice_tensor queries;    /* f32 [queries, heads, dim_k], not scaled */
  coppice_tensor keys;       /* [keys, kv_heads, dim_k]; the last query sits on the last key */
  coppice_tensor values;     /* [keys, kv_heads, dim_v] */
  coppice_tensor output;     /* f32 [queries, heads, dim_v] */
  float* lse;                /* [queries, heads], natural log, or null */
  float scale;               /* 0: 1 / sqrt(dim_k) */
  float softcap;             /* this and the following two as in coppice/attention.h; 0: none */
  const float* alibi_slopes; /* [heads], or null */
  const float* sinks;        /* [heads], or null */
  const char* method;        /* "dense", "hip", "streaming", ... */
  int32_t budget;            /* tokens; this and the following as in coppice/settings.h */
  int32_t block_k;
  int32_t block_q;
  int32_t query_stride;
  int32_t sink;
  int32_t window;
  int32_t representative_center; /* 0: first */
  int32_t breadth;
  int32_t probe;
  int32_t balance;
  int32_t share_group;
  int32_t fast;
  int32_t threads;    /* 1 to 1024; not read with a pool */
  coppice_pool* pool; /* or null */
} coppice_attend_args;

/* "0.1.0" */
COPPICE_API const char* coppice_version(void);
/* COPPICE_ABI_VERSION of the library at hand. */
COPPICE_API int coppice_abi_version(void);
/* Text of the last error in this thread; valid until its next call. Never null. */
COPPICE_API const char* coppice_last_error(void);
/* 1 to 1024 threads. Fails with COPPICE_RESOURCE_EXHAUSTED where the system starts no more of them; *pool is
 * null then. */
COPPICE_API int coppice_pool_create(int32_t threads, coppice_pool** pool);
/* Not during a call that uses it. Null is allowed. */
COPPICE_API void coppice_pool_free(coppice_pool* pool);
/* The defaults of coppice/settings.h, one thread, no pool. */
COPPICE_API void coppice_attend_args_init(coppice_attend_args* args);
COPPICE_API int coppice_attend(const coppice_attend_args* args);

#ifdef __cplusplus
}
#endif
#endif /* COPPICE_COPPICE_H_ */
