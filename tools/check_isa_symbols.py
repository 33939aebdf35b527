#!/usr/bin/env python3
# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""Checks that code of one instruction set cannot be linked in the place of ordinary code.

An inline function or template that an object exports weakly may be kept by the linker for the whole
program. If the kept copy was compiled for AVX-512, an older machine dies in it. So an object under
kernels/<isa>/ may export weak symbols only inside a namespace of that name.

    tools/check_isa_symbols.py BUILD_DIRECTORY
"""

import pathlib
import subprocess
import sys

PORTABLE = {"generic"}
WEAK = set("WVuwv")


def weak_symbols(path):
    """Defined weak and unique symbols of an object, demangled."""
    command = ["nm", "--demangle", "--defined-only", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for line in lines:
        _, kind, name = line.split(" ", 2)
        if kind in WEAK:
            yield name


def main(arguments):
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    objects = sorted(pathlib.Path(arguments[0]).glob("src/**/kernels/*/*.o"))
    if not objects:
        print(f"error: no objects of kernels under {arguments[0]}; build first", file=sys.stderr)
        return 1
    breaches = []
    for path in objects:
        isa = path.parent.name
        if isa not in PORTABLE:
            breaches += [
                f"{isa}/{path.name}: exports {name}"
                for name in weak_symbols(path)
                if f"::{isa}::" not in name
            ]
    print("\n".join(breaches) if breaches else f"{len(objects)} objects share no inline function")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
