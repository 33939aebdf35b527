#!/usr/bin/env python3
# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""One model, one long prompt, end to end: `coppice run` beside OpenVINO GenAI, in the same run.

  bench/end_to_end/compare_openvino.py                       minutes a round
  bench/end_to_end/compare_openvino.py --rounds 1 --json
  bench/end_to_end/compare_openvino.py --systems dense:fast=true,openvino
  bench/end_to_end/compare_openvino.py --convert --kv-type q8_0

A system is `openvino`, `openvino-xattention` or `openvino-trishape`, or else what `coppice run
--attention` takes, settings and all. Each run is a process of its own, one at a time; a round is
one run of every system, in turn. All read the same GGUF (with --convert, ours as `coppice convert`
writes it; OpenVINO turns what it reads into weights of its own, too) and the beginning of the same
text as plain text, take the likeliest token, and have the same number of threads and of prompt
tokens a batch.

What differs: OpenVINO chooses bf16 and 8-bit keys and values where the machine is fast at them;
ours computes in f32 on f16 unless told otherwise, and what was used stands below the table.
OpenVINO has read the prompt once before it is timed (see openvino_child.py), ours has not. Ours may
end its answer early, where the model does; times are for each token.

Calls and prints; what is measured is measured by build/coppice and openvino_child.py.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from demo_tables import per_token, percent, render, seconds, size, times  # noqa: E402
from fetch_model import cache_directory  # noqa: E402

CHILD = pathlib.Path(__file__).with_name("openvino_child.py")
OPENVINO = {
    "openvino": "dense",
    "openvino-xattention": "xattention",
    "openvino-trishape": "trishape",
}
# Ours and theirs that do the same: everything is read; a search; sink and window alone.
PAIRS = (("dense", "openvino"), ("hip", "openvino-xattention"), ("streaming", "openvino-trishape"))
SYSTEMS = "off,dense,openvino,hip,openvino-xattention,openvino-trishape"
TOKENS = 7900  # the prompt and the answer stay below the 8,192 that SmolLM2 was trained for
GENERATE = 33  # the first comes out of the prefill, so 32 steps
# `coppice run` has no other. OpenVINO's own default is 256; of 256, 512 and 8,192 none was faster
# than the others on a busy Zen 4 (27, 27 and 26 s dense; 25, 24 and 25 s with XATTENTION).
BATCH = 512
BUILD = "cmake --preset release && cmake --build --preset release"
PATIENCE_S = 3600  # of one run
TIMES = ("prefill_s_min", "prefill_s_median", "decode_token_s_min", "decode_token_s_median")
NOTE = """
"same text": characters that the answer has in common with the first row's, from its beginning on.
Peak memory is that of the whole process; OpenVINO's holds the conversion of the GGUF.
""".strip()


class Failure(Exception):
    """What went wrong, in one line."""


def call(command):
    """The JSON object that a command prints last."""
    try:
        result = subprocess.run(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Failure(f"no answer in {PATIENCE_S} s") from error
    lines = result.stdout.decode("utf-8", "replace").strip().splitlines()
    try:
        report = json.loads(lines[-1])
    except (IndexError, ValueError):
        report = {}
    if "error" in report:
        raise Failure(report["error"])
    if result.returncode < 0:
        raise Failure(f"ended by signal {-result.returncode}")
    if result.returncode != 0 or not report:
        messages = result.stderr.decode("utf-8", "replace").strip().splitlines()
        last = (messages or [f"exit status {result.returncode}"])[-1]
        raise Failure(last.removeprefix("error: "))
    return report


class Comparison:
    def __init__(self, options, scratch):
        self.options = options
        self.prompt_file = scratch / "prompt.txt"
        self.our_model = options.model
        if options.convert:
            self.our_model = scratch / f"{options.model.stem}.q8_0.gguf"
            convert = ("convert", "-m", options.model, "-o", self.our_model, "--json")
            call([options.coppice, *convert])

    def child(self, task, text, *arguments):
        command = [self.options.python, CHILD, task, "--model", self.options.model, "--text", text]
        return call([*command, *arguments])

    def make_prompt(self):
        report = self.child("cut", self.options.text, "--tokens", self.options.tokens)
        with open(self.prompt_file, "w", encoding="utf-8", newline="") as file:
            file.write(report["text"])
        return report["version"]

    def measure(self, system):
        options = self.options
        load = os.getloadavg()[0]
        if system in OPENVINO:
            report = self.child(
                "run", self.prompt_file, "--generate", options.generate, "--batch", BATCH,
                "--attention", OPENVINO[system], "--threads", options.threads,
                *(f"--property={pair}" for pair in options.openvino_property),
            )
        else:
            report = call([
                options.coppice, "run", "-m", self.our_model, "-f", self.prompt_file, "--raw",
                "-n", options.generate, "--threads", options.threads, "--attention", system,
                "--kv-type", options.kv_type, "--json",
            ])
        return {**report, "load_average": load}

    def rounds(self):
        """{system: its runs} and {system: error}; what failed once is not tried again."""
        runs = {system: [] for system in self.options.systems}
        errors = {}
        for number in range(1, self.options.rounds + 1):
            for system in self.options.systems:
                if system in errors:
                    continue
                say(f"round {number} of {self.options.rounds}: {system}")
                try:
                    runs[system].append(self.measure(system))
                except Failure as error:
                    errors[system] = str(error)
                    say(f"{system} failed: {error}")
        return {system: found for system, found in runs.items() if found}, errors


def say(line):
    print(line, file=sys.stderr, flush=True)


def summarize(runs):
    """One system's row: times over its rounds, the rest as in its first."""
    first = runs[0]
    prefill = [run["prefill_s"] for run in runs]
    decode = [per_token(run) for run in runs]
    return {
        "rounds": len(runs),
        "prefill_s_min": min(prefill),
        "prefill_s_median": statistics.median(prefill),
        "decode_token_s_min": min(decode),
        "decode_token_s_median": statistics.median(decode),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
        "prompt_tokens": first["prompt_tokens"],
        "generated_tokens": first["generated_tokens"],
        "text": first["text"],
        "runs": runs,
    }


def pair_up(results):
    """Theirs over ours, where both were measured; above 1 ours is faster."""
    for method, theirs in PAIRS:
        for ours in results:
            if ours.split(":")[0] != method or theirs not in results:
                continue
            ratios = {f"{key}_ratio": results[theirs][key] / results[ours][key] for key in TIMES}
            yield {"ours": ours, "theirs": theirs, **ratios}


def token_note(results):
    """Whether all read the same number of tokens, in words."""
    counts = {system: result["prompt_tokens"] for system, result in results.items()}
    least, most = min(counts.values()), max(counts.values())
    if least == most:
        return f"All prompts have {most:,} tokens."
    several = ", ".join(f"{system} {count:,}" for system, count in counts.items())
    return f"The prompts differ in tokens, by {most - least:,}: {several}."


def load_note(results):
    loads = [run["load_average"] for result in results.values() for run in result["runs"]]
    return f"Load average before the runs: {min(loads):.1f} to {max(loads):.1f}."


def system_table(results):
    base = next(iter(results.values()))
    rows = [[
        "system", "prefill, min", "median", "of it attention", "decode/token, min", "median",
        "keys read", "peak memory", "same text",
    ]]
    for system, result in results.items():
        first = result["runs"][0]
        attention = [run.get("attention_prefill_s") for run in result["runs"]]
        same = len(os.path.commonprefix([base["text"], result["text"]]))
        rows.append([
            system,
            seconds(result["prefill_s_min"]),
            seconds(result["prefill_s_median"]),
            "-" if None in attention else seconds(min(attention)),
            seconds(result["decode_token_s_min"]),
            seconds(result["decode_token_s_median"]),
            percent(first.get("keys_read_fraction")),
            size(result["peak_rss_bytes"]),
            f"{same} of {len(base['text'])}",
        ])
    return render(rows)


def pair_table(pairs):
    rows = [["theirs / ours", "prefill, min", "median", "decode/token, min", "median"]]
    for pair in pairs:
        ratios = [times(value) for key, value in pair.items() if key.endswith("_ratio")]
        rows.append([f"{pair['theirs']} / {pair['ours']}", *ratios])
    return render(rows)


def precision_notes(results):
    for system, result in results.items():
        first = result["runs"][0]
        if system in OPENVINO:
            how = f"computes in {first['compute_type']}"
        elif system == "off":
            how = "llama.cpp's own attention"
        else:
            how = f"attention {json.dumps(first['attention'])}"
        yield f"{system}: {how}, keys and values in {first['kv_type']}"


def tables(report):
    results = report["systems"]
    model = report["model"] + (" (ours as q8_0)" if report["converted"] else "")
    parts = [
        f"{model}, threads: {report['threads']}, rounds: {report['rounds']}, OpenVINO "
        f"GenAI {report['openvino_genai']}. {token_note(results)} {load_note(results)}",
        system_table(results),
    ]
    if report["ratios"]:
        parts.append(pair_table(report["ratios"]))
    parts.append("\n".join(precision_notes(results)))
    parts.append(NOTE)
    parts += [f"{system} failed: {error}" for system, error in report["errors"].items()]
    return "\n\n".join(parts)


def openvino_python():
    own = os.environ.get("COPPICE_OPENVINO_PYTHON")
    return pathlib.Path(own) if own else cache_directory() / "openvino/bin/python3"


def default_model():
    catalogue = json.loads((ROOT / "models/models.json").read_text("utf-8"))
    return cache_directory() / "models" / catalogue["models"]["smollm2-135m"]["file"]


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, default=default_model(), help="a GGUF file")
    parser.add_argument("--convert", action="store_true", help="ours reads it as q8_0")
    parser.add_argument("--kv-type", default="f16", help="how ours keeps keys and values; f16")
    parser.add_argument("--text", type=pathlib.Path, default=cache_directory() / "texts/kjv.txt")
    parser.add_argument("--coppice", type=pathlib.Path, default=ROOT / "build/coppice")
    parser.add_argument("--systems", type=lambda names: names.split(","), default=SYSTEMS)
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"of the prompt; {TOKENS}")
    parser.add_argument("--generate", type=int, default=GENERATE, help=f"tokens; {GENERATE}")
    parser.add_argument("--threads", type=int, default=2, help="2")
    parser.add_argument("--rounds", type=int, default=3, help="3")
    parser.add_argument(
        "--openvino-property", action="append", default=[], metavar="NAME=VALUE",
        help="for example INFERENCE_PRECISION_HINT=f32 or KV_CACHE_PRECISION=f16",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object; tables to stderr")
    options = parser.parse_args(arguments)
    options.python = openvino_python()
    if min(options.tokens, options.threads, options.rounds) < 1 or options.generate < 2:
        parser.error("--tokens, --threads and --rounds are at least 1, --generate at least 2")
    for name in options.systems:
        if name.startswith("openvino") and name not in OPENVINO:
            parser.error(f"--systems: no {name}; there are {', '.join(OPENVINO)}")
    if not all("=" in pair for pair in options.openvino_property):
        parser.error("--openvino-property takes NAME=VALUE")
    return options


def missing(options):
    needed = (
        (options.coppice, "the command", BUILD),
        (options.model, "the model", "tools/setup model"),
        (options.text, "the text", "tools/setup text"),
        (options.python, "OpenVINO GenAI's Python", "tools/setup openvino"),
    )
    return [f"{what} {path} ({how})" for path, what, how in needed if not path.is_file()]


def compare(options):
    lacking = missing(options)
    if lacking:
        raise Failure(f"not there: {'; '.join(lacking)}")
    with tempfile.TemporaryDirectory() as scratch:
        comparison = Comparison(options, pathlib.Path(scratch))
        version = comparison.make_prompt()
        runs, errors = comparison.rounds()
    if not runs:
        raise Failure("; ".join(f"{system}: {error}" for system, error in errors.items()))
    results = {system: summarize(found) for system, found in runs.items()}
    counts = [result["prompt_tokens"] for result in results.values()]
    return {
        "model": options.model.name,
        "converted": options.convert,
        "openvino_genai": version,
        "threads": options.threads,
        "rounds": options.rounds,
        "prompt_tokens_difference": max(counts) - min(counts),
        "systems": results,
        "ratios": list(pair_up(results)),
        "errors": errors,
    }


def main(arguments):
    options = parse_arguments(arguments)
    try:
        report = compare(options)
    except Failure as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"\n{tables(report)}", file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(report))
    return 1 if report["errors"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
