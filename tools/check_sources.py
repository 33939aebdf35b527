#!/usr/bin/env python3
# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""Checks what every file of ours must have: the copyright line, a last newline, no tab, no long file.

Prints one line for each breach and exits with 1 if there is any.
"""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPYRIGHT = "Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0"
SUFFIXES = {".h", ".cc", ".c", ".py", ".sh", ".cmake"}
SCRIPTS = {"run", "test", ".ci/run", "tools/setup", "tools/check"}
LONGEST = 800


def sources():
    """What git knows or would take in; in an archive without git, everything."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        names = result.stdout.splitlines()
    else:
        names = [file.relative_to(ROOT).as_posix() for file in ROOT.rglob("*")]
    for name in sorted(set(names)):
        path = pathlib.PurePosixPath(name)
        ours = path.suffix in SUFFIXES or path.name == "CMakeLists.txt" or name in SCRIPTS
        if ours and not name.startswith("build") and (ROOT / name).is_file():
            yield name


def check(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = text.splitlines()
    if not any(COPYRIGHT in line for line in lines[:2]):
        yield "no copyright line at the top"
    if not text.endswith("\n"):
        yield "no newline at the end"
    if "\t" in text:
        yield "a tab"
    if len(lines) > LONGEST:
        yield f"{len(lines)} lines; above {LONGEST} a file wants a new design"


def main():
    breaches = [f"{name}: {breach}" for name in sources() for breach in check(name)]
    print("\n".join(breaches) if breaches else "sources: all in order")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
