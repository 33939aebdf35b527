#!/usr/bin/env python3
# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""Measures the rows of performance_rows.py on this machine and writes docs/performance/CLASS.json.

The file is written after every row. Rows that were not asked for stay as they are in it, each with
the commit and the load that it was measured at, and so do the peers of a row that is measured again
without them: their ratios are to our times beside them. tools/draw_performance.py shows what is in it.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import time

from performance_rows import ROWS

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECONDS, QUICK_SECONDS = 5, 0.2
ROUNDS, QUICK_ROUNDS = 3, 1
# What decides which kernels run, and how fast.
FLAGS = (
    "avx2", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8",
    "asimddp", "bf16", "i8mm",
)
KEPT = (
    "isa", "kernel", "arithmetic", "kv_type", "tokens", "queries", "heads", "kv_heads", "head_dim",
    "threads", "rounds", "seconds_min", "seconds_median", "seconds_p99", "gflops", "gbytes_per_s",
    "peak_gflops", "stream_gbytes_per_s", "selected_fraction", "select_s", "attend_s",
    "rel_error_vs_dense", "rel_error_vs_float64",
)
KEPT_DISTURBED = ("rounds", "seconds_median", "seconds_p99")
KEPT_OF_PEER = (
    "version", "rounds", "seconds_min", "seconds_median", "ratio_min", "rel_error_vs_float64",
)
DIGITS = 5  # significant; the noise of a measurement is in the third
BAD_USAGE = 2  # exit status: this build does not know a method, a type or an instruction set


def slug(machine):
    return re.sub("[^a-z0-9]", "", machine.lower())


def shorten(value):
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def kept(report, keys):
    return {key: shorten(report[key]) for key in keys if report.get(key) is not None}


def row_json(report, commit):
    """What is kept of a report of `coppice bench attention --json`."""
    row = kept(report, KEPT)
    if report["method"] != "dense":
        row["block_q"] = report["settings"]["block_q"]
    peers = report.get("peers") or {}
    if isinstance(peers, dict):
        peers = [{"name": name, **peer} for name, peer in peers.items()]
    working = [
        {"name": peer["name"], "commit": commit, **kept(peer, KEPT_OF_PEER)}
        for peer in peers
        if "error" not in peer
    ]
    if working:
        row["peers"] = working
    return row


def processor():
    """Model and flags of the first processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return "unknown", []
    facts = dict(re.findall(r"^(.*?)\s*:[ \t]*(.*)$", lines, re.MULTILINE))
    known = (facts.get("flags") or facts.get("Features") or "").split()
    return facts.get("model name", "unknown"), [flag for flag in FLAGS if flag in known]


def busy_seconds():
    """Processor time that everybody has used since the start, None where nobody counts it."""
    try:
        first = pathlib.Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, first.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def child_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def git(*arguments):
    result = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    return result.stdout.strip()


def commit():
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!tools")
    name = git("rev-parse", "--short=10", "HEAD") or "unknown"
    return name + (" with changes" if changed else "")


@contextlib.contextmanager
def busy_process():
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield other
    finally:
        other.kill()
        other.wait()


def bench(command):
    """Its report, or a Refusal with the last words of the command."""
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        words = result.stderr.strip().splitlines() or ["no message"]
        raise Refusal(result.returncode, words[-1].split("error: ")[-1])
    return json.loads(result.stdout.strip().splitlines()[-1])


def measure(row, options):
    """The row's JSON, or a Refusal."""
    command = [str(options.coppice), "bench", "attention", *row.arguments()]
    command += ["--seconds", str(QUICK_SECONDS if options.quick else SECONDS)]
    command += ["--rounds", str(QUICK_ROUNDS if options.quick else ROUNDS), "--json"]
    if options.peers and row.peers:
        command.append("--peers")
    load = os.getloadavg()[0]
    began, busy, own = time.monotonic(), busy_seconds(), child_seconds()
    report = bench(command)
    measured = {
        "arguments": " ".join(command[1:]),
        "quick": options.quick,
        "commit": options.commit,
        "date": datetime.date.today().isoformat(),
        "load_average": round(load, 2),
    }
    if busy is not None:
        others = busy_seconds() - busy - (child_seconds() - own)
        measured["others_busy"] = round(max(0, others) / (time.monotonic() - began), 2)
    measured |= row_json(report, options.commit)
    if row.kind == "disturbed":
        with busy_process():
            measured["disturbed"] = kept(bench(command), KEPT_DISTURBED)
    return measured


class Refusal(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def old_rows(path):
    """Of an earlier run, as far as they are still asked for."""
    if not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {row.name: rows[row.name] for row in ROWS if row.name in rows}


def write(path, machine, rows):
    """One line for each row, in the order of ROWS, so that a difference can be read."""
    names = [row.name for row in ROWS if row.name in rows]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(rows[name])}" for name in names)
    text = f'{{\n "machine": {json.dumps(machine)},\n "rows": {{\n{lines}\n }}\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def in_short(row):
    decode = row["queries"] == 1
    rate = f"{row['gbytes_per_s']:.1f} GB/s" if decode else f"{row['gflops']:.1f} GFLOP/s"
    others = f", others {row['others_busy']}" if "others_busy" in row else ""
    return f"{1e3 * row['seconds_min']:.3f} ms, {rate} ({row['isa']}, {row['arithmetic']}){others}"


def say(text):
    print(text, file=sys.stderr, flush=True)


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", required=True, help='its class, for example "Zen 4"')
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="rows with it in the name")
    parser.add_argument("--peers", action="store_true", help="beside peers where that is foreseen")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS} s a row, one round")
    parser.add_argument("--coppice", type=pathlib.Path, default=ROOT / "build/coppice")
    parser.add_argument("--output", type=pathlib.Path, help="default: docs/performance/CLASS.json")
    options = parser.parse_args(arguments)
    if not slug(options.machine):
        parser.error("--machine needs a letter or a digit")
    if options.output is None:
        options.output = ROOT / f"docs/performance/{slug(options.machine)}.json"
    if not options.coppice.exists():
        parser.error(f"{options.coppice} is not there; cmake --build --preset release")
    options.commit = commit()
    return options


def main(arguments):
    options = parse_arguments(arguments)
    wanted = [row for row in ROWS if options.only in row.name]
    if not wanted:
        say(f"error: no row has '{options.only}' in its name: {', '.join(r.name for r in ROWS)}")
        return BAD_USAGE
    cpu, flags = processor()
    machine = {
        "class": options.machine, "cpu": cpu, "processors": os.cpu_count(), "flags": flags,
    }
    rows = old_rows(options.output)
    failed = False
    for at, row in enumerate(wanted, start=1):
        say(f"{at}/{len(wanted)} {row.name}")
        beside = rows.get(row.name, {}).get("peers")
        try:
            rows[row.name] = measure(row, options)
            if beside:
                rows[row.name].setdefault("peers", beside)
            say(f"    {in_short(rows[row.name])}")
        except Refusal as refusal:
            rows.pop(row.name, None)
            unknown = refusal.status == BAD_USAGE
            failed |= not unknown
            say(f"    {'skipped' if unknown else 'failed'}: {refusal}")
        write(options.output, machine, rows)
    say(f"wrote {options.output}; tools/draw_performance.py makes figures and tables of it")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
