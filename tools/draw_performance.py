#!/usr/bin/env python3
# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""Draws docs/performance/*.svg and fills the tables of docs/performance.md, from the JSON there.

  tools/draw_performance.py            writes them
  tools/draw_performance.py --check    only says which are not what the JSON makes, and exits with 1

A table stands in docs/performance.md between <!-- table: NAME --> and <!-- end -->, where NAME.json
is one machine's. end_to_end.json is no machine's but the times of whole models:

  [{"model": ..., "tokens": ..., "machine": ..., "command": ...,
    "bars": [{"name": ..., "prefill_s": ..., "attention_s": seconds or null}, ...]}, ...]
"""

import argparse
import json
import pathlib
import re
import sys

import performance_figures
import performance_tables

ROOT = pathlib.Path(__file__).resolve().parent.parent
END_TO_END = "end_to_end"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


class Mistake(Exception):
    pass


def load(folder):
    paths = sorted(folder.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def with_tables(text, machines):
    """The document with its tables made anew. Every machine has one place in it."""
    places = [name for _, name, _ in MARKED.findall(text)]
    for name in machines:
        if places.count(name) != 1:
            raise Mistake(f"{name}.json wants one <!-- table: {name} --> in docs/performance.md")
    for name in places:
        if name not in machines:
            raise Mistake(f"<!-- table: {name} --> has no {name}.json")
    return MARKED.sub(
        lambda match: match[1]
        + "\n" + "\n".join(performance_tables.tables(machines[match[2]])) + "\n" + match[3],
        text,
    )


def made(root):
    """{path: text} of everything that is made of the JSON."""
    folder = root / "docs/performance"
    data = load(folder)
    end_to_end = data.pop(END_TO_END, None)
    document = root / "docs/performance.md"
    files = {document: with_tables(document.read_text("utf-8"), data)}
    if data:
        files[folder / "roofline.svg"] = performance_figures.roofline(data.values())
    if end_to_end:
        files[folder / "time.svg"] = performance_figures.time(end_to_end)
    return files


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="of the repository")
    options = parser.parse_args(arguments)
    try:
        files = made(options.root)
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 1
    stale = [
        path for path, text in files.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        name = path.relative_to(options.root)
        if options.check:
            print(f"{name} is not what the JSON makes; tools/draw_performance.py", file=sys.stderr)
        else:
            path.write_text(files[path], encoding="utf-8")
            print(f"wrote {name}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
