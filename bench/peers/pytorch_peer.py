# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""PyTorch's scaled_dot_product_attention as a peer: started by process_peer.cc.

The way that is fastest and right, of those tried with torch 2.13 on one core of a Zen 4 (8 query
heads over 2 KV heads x 128):

  as many queries as keys   is_causal, which skips what is hidden: 170 ms for 2,048; a mask: 310 ms
  fewer                     is_causal would put the first query on the first key, so a mask: one
                            that is added, of the type of the queries. causal_lower_right makes a
                            boolean one at each call and is a little slower.
  one (decode)              no mask

The query heads that share a KV head are folded into its queries, [1, kv_heads, group * queries,
dim]: in decode the kernel would otherwise read the keys once for every query head and take 2.4
times as long in f32 (4,096 keys), 13 times in bf16; in prefill 3 to 8 % longer. The mask is then as
many times as large, so from MOST_MASK_BYTES on we keep the heads apart and say enable_gqa. In
decode there are then only kv_heads pieces of work, too few for many threads, so both ways are tried
first.

Keys and values are kept [kv_heads, tokens, dim], as in PyTorch's own caches: a little faster than
the rows [token][kv_head][dim] that we are given. PyTorch chooses the flash kernel for all of it by
itself.
"""

import os
import time

import peer_child

# No OpenMP thread spins while others are measured. Read when libgomp is loaded, or Intel's library.
# A spin of 20 us at the end of a parallel region, as our own threads have, did not make it faster.
os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0", KMP_BLOCKTIME="0")

MOST_MASK_BYTES = 256 << 20


def shortest(function):
    """Of a few calls, the first of which warms up."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def prepare(problem):
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    torch.set_grad_enabled(False)
    torch.set_num_threads(problem.threads)
    torch.set_num_interop_threads(1)
    types = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    compute = types[problem.compute]
    queries, tokens = problem.queries_count, problem.tokens
    heads, kv_heads, dim = problem.heads, problem.kv_heads, problem.head_dim
    group = heads // kv_heads

    def load(memory, kind, *shape):
        """[tokens, heads, dim] as [1, heads, tokens, dim] of the computing type."""
        rows = torch.frombuffer(memory, dtype=kind).view(shape).transpose(0, 1)
        loaded = torch.empty(rows.shape, dtype=compute)
        return loaded.copy_(rows).unsqueeze(0)

    kv_type = types[problem.kv_type]
    q = load(problem.queries, torch.float32, queries, heads, dim)
    k = load(problem.keys, kv_type, tokens, kv_heads, dim)
    v = load(problem.values, kv_type, tokens, kv_heads, dim)
    output = torch.frombuffer(problem.output, dtype=torch.float32).view(queries, heads, dim)

    square = queries == tokens and queries > 1
    mask = None
    if queries > 1 and not square:
        mask = torch.full((queries, tokens), float("-inf"), dtype=compute)
        mask.triu_(tokens - queries + 1)

    def apart():
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=square, enable_gqa=True
        )

    folded_q = q.reshape(1, kv_heads, group * queries, dim)

    def folded():
        return scaled_dot_product_attention(folded_q, k, v, attn_mask=mask)

    if square:
        attend = apart
    elif queries == 1:
        attend = min((apart, folded), key=shortest)
    elif group * mask.nbytes > MOST_MASK_BYTES:
        attend = apart
    else:
        attend = folded
        mask = mask.repeat(group, 1)

    def run():
        start = time.perf_counter()
        result = attend()
        seconds = time.perf_counter() - start
        output.copy_(result.view(heads, queries, dim).transpose(0, 1))
        return seconds

    return torch.__version__, run


if __name__ == "__main__":
    peer_child.serve(prepare)
