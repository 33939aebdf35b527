# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""A peer for process_peer_test.cc that needs no library: `--compute` says how it behaves.

"good" computes attention by the definition and speaks through the real peer_child.py; "chatty"
prints while it prepares; "lacking" imports what is not there; "failing" throws in its first run.
The others write to stdout themselves.
"""

import math
import os
import pathlib
import signal
import struct
import sys
import time

PEERS = pathlib.Path(__file__).resolve().parents[3] / "bench/peers"
sys.path.insert(0, str(PEERS))

import peer_child


def numbers(memory, kind):
    code, size = {"f32": ("f", 4), "f16": ("e", 2), "bf16": ("H", 2)}[kind]
    count = len(memory) // size
    read = struct.unpack(f"{count}{code}", memory)
    if kind != "bf16":
        return read
    return struct.unpack(f"{count}f", struct.pack(f"{count}I", *(half << 16 for half in read)))


def attention(problem):
    dim, heads, kv_heads = problem.head_dim, problem.heads, problem.kv_heads
    queries = numbers(problem.queries, "f32")
    keys = numbers(problem.keys, problem.kv_type)
    values = numbers(problem.values, problem.kv_type)
    output = []
    for row in range(problem.queries_count * heads):
        visible = problem.tokens - problem.queries_count + row // heads + 1
        kv_head = row % heads // (heads // kv_heads)
        query = queries[row * dim : row * dim + dim]
        starts = [(token * kv_heads + kv_head) * dim for token in range(visible)]
        scores = [sum(map(lambda a, b: a * b, query, keys[at : at + dim])) for at in starts]
        weights = [math.exp((score - max(scores)) / math.sqrt(dim)) for score in scores]
        for i in range(dim):
            total = sum(weight * values[at + i] for weight, at in zip(weights, starts))
            output.append(total / sum(weights))
    return output


def prepare(problem):
    if problem.compute == "chatty":
        print("ready for nonsense")
        os.system("echo seconds 7")
    if problem.compute == "lacking":
        import no_such_module_of_ours
    result = struct.pack(f"{len(problem.output) // 4}f", *attention(problem))

    def run():
        if problem.compute == "failing":
            raise RuntimeError("out of\nluck")
        problem.output[:] = result
        return 0.25

    return "1.5 of the fake", run


def say(text):
    os.write(1, text)


def misbehave(how):
    if how == "dies":
        sys.exit("the fake has\nno wish to live")
    elif how == "hangs":
        time.sleep(1000)
    elif how == "babbles":
        say(b"hello\x07 " + b"x" * 100 + b"\n")
        sys.stdin.read()
    elif how == "floods":
        while True:
            say(b"x" * 1000)
    elif how == "closes":
        os.close(0)
        os.close(1)
        time.sleep(1000)
    say(b"ready and waiting\n")
    if how == "leaves":
        return
    sys.stdin.readline()
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "hangs later":
        time.sleep(1000)
    elif how == "forgets":  # the output stays what it was
        say(b"seconds 0.1\n")
        sys.stdin.readline()
    else:
        say(how.encode() + b"\n")
        sys.stdin.read()


if __name__ == "__main__":
    behaviour = sys.argv[sys.argv.index("--compute") + 1]
    if behaviour in ("good", "chatty", "lacking", "failing"):
        peer_child.serve(prepare)
    else:
        misbehave(behaviour)
