# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""What docs/performance.md measures: one row for each call of `coppice bench attention`.

measure_performance.py runs the rows, performance_tables.py and performance_figures.py show them.
All have one thread, f16 keys and values and heads of 128 unless their arguments say otherwise.
"""

import dataclasses

KI = 1 << 10
MI = 1 << 20
# A quarter of Llama 3 8B: enough tiles to share between threads, and a row takes seconds.
PREFILL = ("--phase", "prefill", "--queries", 512, "--heads", 8, "--kv-heads", 2)
# One layer of Llama 3 8B.
DECODE = ("--phase", "decode", "--heads", 32, "--kv-heads", 8)


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    # "prefill", "decode", "block-sparse", "pruned prefill", "pruned decode", or "disturbed": decode,
    # measured again while another process keeps a processor busy
    kind: str
    shape: tuple
    options: tuple
    label: str = ""  # in the roofline figure; rows without one are left out of it
    peers: bool = False  # measured beside peers with --peers

    def arguments(self):
        defaults = {"--head-dim": 128, "--kv-type": "f16", "--threads": 1}
        given = [
            str(word)
            for flag, value in defaults.items()
            if flag not in self.options
            for word in (flag, value)
        ]
        return [*map(str, self.shape), *given, *map(str, self.options)]


def prefill(name, *options, **more):
    options = ("--method", "dense", "--tokens", 16 * KI, *options)
    return Row(f"prefill {name}", "prefill", PREFILL, options, **more)


def decode(name, tokens, *options, **more):
    options = ("--method", "dense", "--tokens", tokens, *options)
    return Row(f"decode {name}", "decode", DECODE, options, **more)


def block_sparse(block, name="f16", *options, **more):
    """A tenth of the keys, in random blocks: what a list of blocks costs, without any search."""
    return Row(
        f"block-sparse {name} blocks of {block}", "block-sparse", PREFILL,
        (
            "--method", "random", "--tokens", 16 * KI, "--budget", 1638, "--sink", 0,
            "--window", 0, "--block-q", 64, "--block-k", block, *options,
        ),
        **more,
    )


def pruned(phase, shape, length, tokens, *more, label=""):
    options = ("--method", "hip", "--tokens", tokens, *more)
    return Row(f"pruned {phase} {length}", f"pruned {phase}", shape, options, label=label)


def disturbed(length, tokens):
    options = ("--method", "dense", "--tokens", tokens, "--threads", 2)
    return Row(f"disturbed decode {length}", "disturbed", DECODE, options)


ROWS = (
    prefill("f16", label="f16", peers=True),
    prefill("f16 fast", "--fast"),
    prefill("f32", "--kv-type", "f32", label="f32"),
    prefill("bf16", "--kv-type", "bf16", peers=True),
    prefill("bf16 fast", "--kv-type", "bf16", "--fast", label="bf16 --fast", peers=True),
    prefill("q8_0", "--kv-type", "q8_0", label="q8_0", peers=True),
    prefill("q8_0 fast", "--kv-type", "q8_0", "--fast", label="q8_0 --fast"),
    prefill("f16 avx512", "--isa", "avx512"),
    prefill("f16 avx2", "--isa", "avx2", label="f16, AVX2"),
    prefill("f16 2 threads", "--threads", 2),
    prefill("bf16 fast 2 threads", "--kv-type", "bf16", "--fast", "--threads", 2),
    prefill("f16 dim 64", "--head-dim", 64),
    prefill("f16 dim 80", "--head-dim", 80),
    prefill("f16 dim 96", "--head-dim", 96),
    prefill("f16 dim 256", "--head-dim", 256),
    decode("f16 4 Ki", 4 * KI, label="f16, 4 Ki keys", peers=True),
    decode("f16 16 Ki", 16 * KI, label="16 Ki", peers=True),
    decode("f16 64 Ki", 64 * KI, label="64 Ki", peers=True),
    decode("f16 128 Ki", 128 * KI, label="128 Ki"),
    decode("f16 fast 4 Ki", 4 * KI, "--fast"),
    decode("f16 fast 16 Ki", 16 * KI, "--fast"),
    decode("f16 fast 64 Ki", 64 * KI, "--fast", label="f16 --fast, 64 Ki"),
    decode("f16 fast 128 Ki", 128 * KI, "--fast"),
    decode("bf16 64 Ki", 64 * KI, "--kv-type", "bf16"),
    decode("bf16 fast 4 Ki", 4 * KI, "--kv-type", "bf16", "--fast"),
    decode("bf16 fast 16 Ki", 16 * KI, "--kv-type", "bf16", "--fast"),
    decode("bf16 fast 64 Ki", 64 * KI, "--kv-type", "bf16", "--fast", label="bf16 --fast, 64 Ki"),
    decode("bf16 fast 128 Ki", 128 * KI, "--kv-type", "bf16", "--fast"),
    decode("f32 16 Ki", 16 * KI, "--kv-type", "f32"),
    decode("q8_0 fast 4 Ki", 4 * KI, "--kv-type", "q8_0", "--fast"),
    decode("q8_0 fast 16 Ki", 16 * KI, "--kv-type", "q8_0", "--fast"),
    decode("q8_0 fast 64 Ki", 64 * KI, "--kv-type", "q8_0", "--fast", label="q8_0 --fast, 64 Ki"),
    decode("f16 64 Ki 2 threads", 64 * KI, "--threads", 2),
    decode("f16 16 Ki dim 64", 16 * KI, "--head-dim", 64),
    decode("f16 16 Ki dim 256", 16 * KI, "--head-dim", 256),
    Row(
        "decode f16 16 Ki 8/8 heads dim 64", "decode",
        ("--phase", "decode", "--heads", 8, "--kv-heads", 8),
        ("--method", "dense", "--tokens", 16 * KI, "--head-dim", 64),
        label="f16, no groups, 16 Ki",
    ),
    Row(
        "decode q8_0 fast 64 Ki 8/8 heads", "decode",
        ("--phase", "decode", "--heads", 8, "--kv-heads", 8),
        ("--method", "dense", "--tokens", 64 * KI, "--kv-type", "q8_0", "--fast"),
    ),
    *(
        Row(
            f"decode f16 {name}16 Ki {heads}/{kv_heads} heads", "decode",
            ("--phase", "decode", "--heads", heads, "--kv-heads", kv_heads),
            ("--method", "dense", "--tokens", 16 * KI, *options),
        )
        for name, options in (("", ()), ("fast ", ("--fast",)))
        for heads, kv_heads in ((40, 8), (28, 4), (64, 8))
    ),
    *(block_sparse(block, label=f"blocks of {block}") for block in (8, 16, 32, 64)),
    *(
        block_sparse(block, "bf16 fast", "--kv-type", "bf16", "--fast")
        for block in (8, 16, 32, 64)
    ),
    pruned("prefill", PREFILL, "8 Ki", 8 * KI, label="hip, 8 Ki"),
    pruned("prefill", PREFILL, "128 Ki", 128 * KI, label="128 Ki"),
    pruned("prefill", PREFILL, "1 Mi", MI, label="1 Mi"),
    pruned("prefill", PREFILL, "8 Ki fast", 8 * KI, "--fast"),
    pruned("prefill", PREFILL, "8 Ki bf16 fast", 8 * KI, "--kv-type", "bf16", "--fast"),
    pruned("prefill", PREFILL, "128 Ki fast", 128 * KI, "--fast"),
    pruned("decode", DECODE, "8 Ki", 8 * KI),
    pruned("decode", DECODE, "128 Ki", 128 * KI),
    pruned("decode", DECODE, "1 Mi", MI),
    disturbed("4 Ki", 4 * KI),
    disturbed("16 Ki", 16 * KI),
    disturbed("64 Ki", 64 * KI),
)
