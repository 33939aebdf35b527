# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""The other end of process_peer.cc: what every peer in a process of its own shares.

A peer's script calls serve(prepare). prepare(problem) reads problem.queries, .keys and .values,
converts them as it likes, and returns its version and a function run(), which calls the operation
once, writes to problem.output, and returns the operation's seconds. Standard library only.

    we say                  they say
                            (the script starts; descriptor 3: inputs, 4: output)
    ready VERSION           run
    seconds 0.0123          run
    error TEXT              (nothing more; we end)

An end of file on stdin ends us. Between lines we sleep in a read: prepare() must leave no thread
that spins, because others are measured meanwhile.
"""

import argparse
import mmap
import os
import sys

INPUTS, OUTPUT = 3, 4
INSTALL = "install it with tools/setup peers"
NUMBER_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


class Problem:
    """Causal attention, the last query sitting on the last key, scale 1 / sqrt(head_dim).

    queries  f32 [queries, heads, head_dim]
    keys     kv_type [tokens, kv_heads, head_dim]
    values   kv_type [tokens, kv_heads, head_dim]
    output   f32 [queries, heads, head_dim], to be written
    """

    def __init__(self, options):
        self.__dict__.update(vars(options))
        query_bytes = 4 * self.queries_count * self.heads * self.head_dim
        kv_bytes = NUMBER_BYTES[self.kv_type] * self.tokens * self.kv_heads * self.head_dim
        # Copied on a write, as libraries ask for memory that they may write to.
        inputs = memoryview(mmap.mmap(INPUTS, 0, access=mmap.ACCESS_COPY))
        self.queries = inputs[:query_bytes]
        self.keys = inputs[query_bytes : query_bytes + kv_bytes]
        self.values = inputs[query_bytes + kv_bytes : query_bytes + 2 * kv_bytes]
        self.output = memoryview(mmap.mmap(OUTPUT, query_bytes))

    def drop_inputs(self):
        """Gives the shared inputs back, when nothing refers to them any more."""
        self.queries = self.keys = self.values = None


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--compute", default="f32")
    parser.add_argument("--queries", type=int, dest="queries_count")
    for name in ("heads", "tokens", "kv-heads", "head-dim", "threads"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--kv-type", choices=NUMBER_BYTES)
    return parser.parse_args()


def describe(error):
    """One line for the user."""
    if isinstance(error, ModuleNotFoundError):
        return f"{sys.executable} has no module {error.name}; {INSTALL}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]


def serve(prepare):
    # What libraries print must not get between our lines.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(line):
        channel.write(line + "\n")
        channel.flush()

    try:
        problem = Problem(parse_arguments())
        os.close(INPUTS)
        version, run = prepare(problem)
        problem.drop_inputs()
        answer(f"ready {version}")
        for line in sys.stdin:
            if line.strip() != "run":
                raise ValueError(f"no such request: {line.strip()}")
            answer(f"seconds {run():.9g}")
    except BrokenPipeError:
        return
    except Exception as error:  # whatever a library throws, we are asked for one line
        answer(f"error {describe(error)}")
