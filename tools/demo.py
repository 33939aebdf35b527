#!/usr/bin/env python3
# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""The main job on real input: a fact hidden in a long text, a question, and what it costs.

First table: the same prompt through llama.cpp's own attention, ours dense, and ours pruned, each in
a process of its own. Second table: the attention of one layer alone, at lengths that the model's
other layers would make us wait for. Calls build/coppice and prints; it measures nothing itself.
"""

import argparse
import json
import os
import pathlib
import random
import sys
import tempfile

from demo_progress import Progress
from demo_tables import attention_table, layer_table
from fetch_model import ROOT, cache_directory

ATTENTIONS = ("off", "dense", "hip")
LAYER_TOKENS = (8 << 10, 128 << 10, 1 << 20)
LONG_WORK = 1 << 28  # tokens x queries; a dense round beyond takes 10 s on 2 cores
PHASES = (("decode", 1), ("prefill", 512))
# One layer of the model: query heads, KV heads, dim.
SHAPES = {"smollm2-135m": (9, 3, 64), "gemma-3-270m": (4, 1, 256)}
KEY_DIGITS = 5
ANSWER_TOKENS = KEY_DIGITS + 1  # some models spend one on the space before
# Room for the question, the answer and the error of counting tokens by characters.
MARGIN = 0.03
CHARACTERS_PER_TOKEN = 4  # roughly, in English; only to find the slices below
SLICES = 16
SLICE_CHARACTERS = 250
NOTE = f"""
The answer is the first {KEY_DIGITS} digits. Models so small chat unless their answer is restricted to digits; it is,
alike for all three.
"""
LAYER_NOTE = """
Times hold for any values. Quality does not: made-up keys give a search little to find (rel_error_vs_dense in
coppice bench attention --json), so judge it by the answers above and by coppice eval.
"search" is its share of the pruned time.
"""
INSTRUCTION = "There is a pass key hidden in the following text. Find it and remember it.\n\n"
QUESTION = "What is the pass key?\nThe pass key is"


class Demo:
    def __init__(self, options, progress):
        self.options = options
        self.progress = progress
        self.model = json.loads((ROOT / "models/models.json").read_text("utf-8"))["models"][
            options.name
        ]

    def coppice(self, label, *arguments):
        """Runs one command and gives its JSON."""
        return self.progress.run(label, [str(self.options.coppice), *map(str, arguments), "--json"])

    def ask(self, label, text, *arguments):
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            return self.coppice(
                label, "run", "-m", self.options.model, "-f", file.name, "-p", QUESTION,
                "--raw", "--answer", "digits", *arguments,
            )

    def characters_per_token(self, text):
        """From a short run on slices of the whole text. Cut words and the question's tokens count
        too, so the prompt becomes a little too short rather than too long."""
        stride = len(text) // SLICES
        sample = "".join(text[i * stride :][:SLICE_CHARACTERS] for i in range(SLICES))
        report = self.ask("counting tokens", sample, "-n", 1, "--attention", "off")
        return len(sample) / report["prompt_tokens"]

    def prompt(self, text):
        """The text of the model's trained length with the fact at two fifths, and the fact."""
        least = 10 ** (KEY_DIGITS - 1)
        key = str(random.Random(self.options.seed).randrange(least, 10 * least))
        fact = f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
        tokens = (self.options.tokens or self.model["trained_tokens"]) * (1 - MARGIN)
        about = text[: int(tokens * CHARACTERS_PER_TOKEN)]
        length = int(tokens * self.characters_per_token(about))
        cut = text.rindex("\n", 0, int(length * 0.4))
        return INSTRUCTION + text[:cut] + fact + text[cut:length], key

    def answers(self, prompt):
        for attention in ATTENTIONS:
            yield attention, self.ask(
                f"answering with --attention {attention}", prompt,
                "-n", ANSWER_TOKENS, "--attention", attention,
            )

    def layers(self):
        heads, kv_heads, dim = SHAPES[self.options.name]
        for tokens in LAYER_TOKENS:
            for phase, queries in PHASES:
                for method in ("dense", "hip"):
                    report = self.coppice(
                        f"one layer, {phase}, {tokens >> 10} Ki tokens, {method}",
                        "bench", "attention", "--phase", phase, "--method", method,
                        "--tokens", tokens, "--queries", queries, "--heads", heads,
                        "--kv-heads", kv_heads, "--head-dim", dim, "--seconds", 0,
                        "--rounds", 1 if tokens * queries > LONG_WORK else 3,
                    )
                    yield (tokens, phase, method), report


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the GGUF file")
    parser.add_argument("--name", choices=sorted(SHAPES), default="smollm2-135m")
    parser.add_argument("--text", type=pathlib.Path, default=cache_directory() / "texts/kjv.txt")
    parser.add_argument("--coppice", type=pathlib.Path, default=ROOT / "build/coppice")
    parser.add_argument("--tokens", type=int, help="of the prompt; default: the trained length")
    parser.add_argument("--seed", type=int, default=7, help="of the hidden number")
    return parser.parse_args(arguments)


def main(arguments):
    options = parse_arguments(arguments)
    steps = 1 + len(ATTENTIONS) + len(LAYER_TOKENS) * len(PHASES) * 2
    with Progress(steps) as progress:
        demo = Demo(options, progress)
        prompt, key = demo.prompt(options.text.read_text(encoding="utf-8", errors="replace"))
        answers = dict(demo.answers(prompt))
        progress.clear()
        print(
            f"\n{demo.model['title']}, {answers['off']['prompt_tokens']:,} tokens of a real text "
            f"with a number hidden in it; {os.cpu_count()} processors.\n"
        )
        print(attention_table(answers, key), flush=True)
        print(NOTE, flush=True)
        layers = dict(demo.layers())
    heads, kv_heads, dim = SHAPES[options.name]
    print(
        f"\nOne layer's attention alone, {heads} query heads over {kv_heads} KV heads x {dim}, "
        "f16 keys and values, smooth random input.\n"
    )
    print(layer_table(layers, LAYER_TOKENS, PHASES))
    print(LAYER_NOTE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
