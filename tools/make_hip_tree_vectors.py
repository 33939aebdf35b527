#!/usr/bin/env python3
# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""Writes tests/select/testdata/hip_tree_vectors.txt: what HiP's tree search picks, by a model in NumPy.

The model is independent of src/select/hip_tree.cc: it scores every block in advance and walks the
tree over those numbers. Inputs are not stored. Both sides make them from a seed with an integer
hash: eight-bit integers times a power of two, exact in f32, f16 and bf16 alike, whose dot products
are exact in f32 in any order of summation. A seed with a tie at a cut is passed over, so one answer
alone is right.

    tools/make_hip_tree_vectors.py            write the file
    tools/make_hip_tree_vectors.py --check    exit 1 if the file differs from what would be written
"""
import argparse
import dataclasses
import pathlib
import sys

import numpy as np

VECTORS = pathlib.Path(__file__).resolve().parent.parent / "tests/select/testdata/hip_tree_vectors.txt"
QUERY_SCALE, KEY_SCALE = 1 / 128, 1 / 16
KNOT_SPACING = 32  # tokens; "smooth" keys are interpolated between random knots
QUERIES, KEYS, KNOTS, DRAWS = range(4)  # streams of the hash


def random_bytes(seed, stream, index):
    """Integers in [-128, 128): the high byte of a splitmix64 finaliser. index: array of int."""
    x = (np.asarray(index, np.uint64)
         ^ np.uint64(stream << 32) ^ np.uint64(seed << 40)) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(56)).astype(np.int64) - 128


@dataclasses.dataclass
class Case:
    """Tokens but for `heads` and `dim`; the fields stand in the file in this order."""
    representative: str  # "first" or "center"
    keys: str            # "random" or "smooth"
    dim: int
    visible: int
    tokens: int
    heads: int
    budget: int
    block_k: int
    stride: int
    sink: int
    window: int
    seed: int = 0


class Tie(Exception):
    """Two candidates at a cut score alike."""


def make_queries(case):
    """[tokens, heads, dim], integers."""
    shape = (case.tokens, case.heads, case.dim)
    return random_bytes(case.seed, QUERIES, np.arange(np.prod(shape))).reshape(shape)


def make_keys(case):
    """[visible, dim], integers."""
    token, channel = np.ogrid[:case.visible, :case.dim]
    noise = random_bytes(case.seed, KEYS, token * case.dim + channel)
    if case.keys == "random":
        return noise
    knot, step = token // KNOT_SPACING, token % KNOT_SPACING
    before = random_bytes(case.seed, KNOTS, knot * case.dim + channel)
    after = random_bytes(case.seed, KNOTS, (knot + 1) * case.dim + channel)
    mean = (before * (KNOT_SPACING - step) + after * step) // KNOT_SPACING
    return np.clip(mean + noise // 16, -128, 127)


def block_scores(case, blocks):
    """Of every searched block: the highest dot product of a scoring row and a key. Integers."""
    offset = min(case.tokens, case.stride) - 1
    rows = make_queries(case)[offset::case.stride].reshape(-1, case.dim)
    best = (make_keys(case)[case.sink:] @ rows.T).max(axis=1)
    return np.array([best[b * case.block_k:(b + 1) * case.block_k].max() for b in range(blocks)])


def tree_search(scores, slots, representative):
    """The first blocks of the branches that are left, ascending."""
    blocks = len(scores)
    edges = np.trunc(blocks / slots * np.arange(slots + 1)).astype(int)
    first, size = edges[:-1], np.diff(edges)
    for _ in range(int(np.ceil(np.log2(blocks / slots)))):
        half = size // 2
        first = np.concatenate([first, first + half])
        size = np.concatenate([half, size - half])
        first, size = first[size > 0], size[size > 0]
        stand_in = first + (size // 2 if representative == "center" else 0)
        ranked = scores[stand_in]
        order = np.argsort(-ranked)
        if len(order) > slots and ranked[order[slots - 1]] == ranked[order[slots]]:
            raise Tie
        first, size = first[order[:slots]], size[order[:slots]]
    assert (size == 1).all()
    return np.sort(first)


def select(case):
    """Sorted first tokens of the blocks that are kept, or None when the budget covers all."""
    searched = case.visible - case.window - case.sink
    if searched <= case.budget:
        return None
    blocks, slots = -(-searched // case.block_k), -(-case.budget // case.block_k)
    kept = tree_search(block_scores(case, blocks), slots, case.representative)
    return case.sink + kept * case.block_k


# representative, keys, dim, visible, tokens, heads, budget, block_k, stride, sink, window
CORNERS = [
    ("first", "random", 64, 1024, 32, 1, 128, 2, 2, 0, 0),     # every number a power of two
    ("first", "random", 64, 1000, 16, 1, 128, 8, 2, 0, 64),
    ("first", "random", 64, 1001, 16, 1, 128, 8, 2, 0, 64),    # the last block is ragged
    ("first", "random", 64, 997, 16, 1, 128, 8, 2, 0, 0),      # and cut at `visible`
    ("first", "random", 64, 700, 1, 1, 64, 8, 2, 0, 64),       # decode
    ("center", "random", 64, 700, 1, 1, 64, 8, 2, 0, 64),
    ("first", "smooth", 64, 3000, 1, 4, 256, 8, 2, 32, 256),   # decode, four heads share
    ("center", "smooth", 64, 3000, 1, 4, 256, 8, 2, 32, 256),
    ("first", "random", 32, 900, 3, 2, 64, 4, 4, 0, 32),       # fewer tokens than a stride
    ("center", "random", 32, 900, 7, 2, 64, 4, 4, 16, 32),     # a short last stride
    ("first", "random", 32, 900, 5, 3, 64, 4, 1, 0, 32),       # every token scores
    ("first", "random", 32, 400, 16, 1, 512, 8, 2, 0, 0),      # the budget covers all
    ("first", "random", 32, 100, 16, 1, 64, 8, 2, 0, 128),     # nothing to search
    ("center", "random", 32, 20, 4, 1, 64, 8, 2, 32, 0),       # all of it is sink
    ("first", "random", 32, 128, 8, 1, 128, 8, 2, 0, 0),       # exactly the budget
    ("first", "random", 32, 129, 8, 1, 128, 8, 2, 0, 0),       # one key more than the budget
    ("center", "random", 32, 257, 8, 1, 128, 8, 2, 64, 64),    # the same behind sink and window
    ("first", "random", 32, 66, 4, 1, 61, 8, 2, 0, 0),         # more than the budget, B == M
    ("first", "random", 32, 500, 4, 1, 8, 8, 2, 0, 0),         # one slot
    ("center", "random", 32, 500, 4, 1, 5, 8, 2, 0, 0),        # a budget below one block
    ("first", "random", 32, 500, 4, 1, 20, 8, 2, 0, 0),        # a budget of two blocks and a half
    ("first", "random", 16, 600, 8, 1, 32, 1, 2, 0, 0),        # blocks of one key
    ("center", "random", 16, 600, 8, 1, 32, 1, 2, 4, 16),
    ("first", "random", 16, 2048, 64, 1, 256, 64, 2, 0, 128),  # wide blocks
    ("center", "smooth", 128, 2100, 64, 1, 256, 64, 2, 64, 128),
    ("first", "random", 32, 61, 2, 1, 7, 1, 2, 0, 0),          # 61 / 7 * 7 falls short of 61
    ("center", "random", 32, 117, 2, 1, 7, 1, 2, 1, 1),
]


def drawn_cases(count):
    """Cases whose fields are drawn from short lists by the hash; every third has centres."""
    choices = {
        "keys": ("random", "smooth"), "dim": (16, 32, 64, 128), "tokens": (1, 2, 7, 16, 32, 64),
        "heads": (1, 2, 3, 4, 8), "budget": (48, 64, 100, 128, 256), "block_k": (1, 2, 4, 8, 16),
        "stride": (1, 2, 3, 8), "sink": (0, 0, 4, 32), "window": (0, 1, 64, 100, 256),
    }
    for number in range(count):
        draws = random_bytes(number, DRAWS, np.arange(len(choices) + 2)) + 128
        fields = {name: options[draw % len(options)]
                  for (name, options), draw in zip(choices.items(), draws)}
        searched = fields["budget"] + int(draws[-2]) * 8 + int(draws[-1])
        yield Case(representative="center" if number % 3 == 2 else "first",
                   visible=fields["sink"] + fields["window"] + searched, **fields)


def without_ties(case):
    """The case with the first seed that leaves no doubt, and its answer."""
    while True:
        try:
            return case, select(case)
        except Tie:
            case = dataclasses.replace(case, seed=case.seed + 1000)


def render(cases):
    lines = [
        "# What the tree search picks; tools/make_hip_tree_vectors.py writes this file.",
        "# " + " ".join(field.name for field in dataclasses.fields(Case)) + ":"
        " first tokens of the blocks, or everything",
    ]
    for number, case in enumerate(cases):
        case, starts = without_ties(dataclasses.replace(case, seed=number + 1))
        answer = "everything" if starts is None else " ".join(map(str, starts))
        lines.append(" ".join(map(str, dataclasses.astuple(case))) + ": " + answer)
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    text = render([Case(*fields) for fields in CORNERS] + list(drawn_cases(60)))
    if not arguments.check:
        VECTORS.write_text(text, encoding="ascii")
    elif not VECTORS.exists() or VECTORS.read_text(encoding="ascii") != text:
        sys.exit(f"{VECTORS} is not what {sys.argv[0]} writes: run it without --check")


if __name__ == "__main__":
    main()
