/* Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
 *
 * One head, two keys with equal scores: the output is the mean of the values. */
#include <coppice/coppice.h>
#include <math.h>
#include <stdio.h>

#define DIM 64
#define KEYS 2

static void describe(coppice_tensor* tensor, void* data, int tokens) {
  tensor->data = data;
  tensor->dtype = COPPICE_F32;
  tensor->tokens = tokens;
  tensor->heads = 1;
  tensor->dim = DIM;
  tensor->token_stride = DIM * (int)sizeof(float);
  tensor->head_stride = DIM * (int)sizeof(float);
}

int main(void) {
  static float q[DIM], k[KEYS * DIM], v[KEYS * DIM], out[DIM];
  coppice_attend_args args;
  coppice_pool* pool;
  int i;
  for (i = 0; i < DIM; ++i) {
    q[i] = 0.5f;
    k[i] = k[DIM + i] = 1.0f;
    v[i] = 1.0f;
    v[DIM + i] = 3.0f;
  }
  coppice_attend_args_init(&args);
  describe(&args.queries, q, 1);
  describe(&args.keys, k, KEYS);
  describe(&args.values, v, KEYS);
  describe(&args.output, out, 1);
  if (coppice_abi_version() != COPPICE_ABI_VERSION) return 2;
  if (coppice_pool_create(2, &pool) != COPPICE_OK) {
    fprintf(stderr, "%s\n", coppice_last_error());
    return 1;
  }
  args.pool = pool;
  if (coppice_attend(&args) != COPPICE_OK) {
    fprintf(stderr, "%s\n", coppice_last_error());
    return 1;
  }
  args.budget = -1;
  if (coppice_attend(&args) != COPPICE_INVALID_ARGUMENT) return 3;
  coppice_pool_free(pool);
  return fabs(out[0] - 2.0) < 1e-5 && fabs(out[DIM - 1] - 2.0) < 1e-5 ? 0 : 1;
}
