# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's com.microsoft.GroupQueryAttention in f32 as a peer: started by process_peer.cc.

The operator takes the new keys and values, appends them to those of the past and attends to all.
We bind one buffer [1, kv_heads, tokens, dim] as past and as present: the operator sees that they
are the same and writes the new rows only (in decode one, in prefill as many as there are queries).
Otherwise it copies the whole past at each call, and decode takes 1.5 times as long at 4,096 keys
and twice as long at 16,384. So what is measured is what a program that keeps its cache in place
would pay. Calling it again and again writes the same rows to the same place.

In prefill it uses its flash kernel; one query goes through matrix products and a softmax.
"""

import time

import onnx_model
import peer_child


def prepare(problem):
    import numpy as np
    import onnxruntime as ort

    queries, tokens, dim = problem.queries_count, problem.tokens, problem.head_dim
    heads, kv_heads = problem.heads, problem.kv_heads
    past = tokens - queries

    def rows(memory):
        """[tokens, kv_heads, dim], not converted yet; of bf16 the bits."""
        kind = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[problem.kv_type]
        return np.frombuffer(memory, kind).reshape(tokens, kv_heads, dim)

    def convert(numbers):
        if problem.kv_type == "bf16":
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers.astype(np.float32)

    def cache(numbers):
        """The past in f32 [1, kv_heads, tokens, dim], with room for the new."""
        buffer = np.zeros((1, kv_heads, tokens, dim), np.float32)
        for head in range(kv_heads):
            buffer[0, head, :past] = convert(numbers[:past, head])
        return buffer

    keys, values = rows(problem.keys), rows(problem.values)
    past_key, past_value = cache(keys), cache(values)
    query = np.frombuffer(problem.queries, np.float32).reshape(1, queries, heads * dim).copy()
    inputs = {
        "query": query,
        "key": convert(keys[past:]).reshape(1, queries, kv_heads * dim),
        "value": convert(values[past:]).reshape(1, queries, kv_heads * dim),
        "past_key": past_key,
        "past_value": past_value,
        "seqlens_k": np.array([tokens - 1], np.int32),
        "total_sequence_length": np.array([tokens], np.int32),
    }
    outputs = {
        "output": np.zeros((1, queries, heads * dim), np.float32),
        "present_key": past_key,
        "present_value": past_value,
    }

    def described(arrays):
        kinds = {np.dtype(np.float32): onnx_model.FLOAT, np.dtype(np.int32): onnx_model.INT32}
        return {name: (kinds[array.dtype], array.shape) for name, array in arrays.items()}

    model = onnx_model.group_query_attention(
        described(inputs), described(outputs), heads, kv_heads
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = problem.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for arrays, bind in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
        for name, array in arrays.items():
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    result = np.frombuffer(problem.output, np.float32).reshape(outputs["output"].shape)

    def run():
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        seconds = time.perf_counter() - start
        result[:] = outputs["output"]
        return seconds

    # The binding knows the inputs by their addresses; this keeps them alive.
    run.inputs = inputs
    return ort.__version__, run


if __name__ == "__main__":
    peer_child.serve(prepare)
