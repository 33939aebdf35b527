# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""Makes a source file of the example in a public header's opening comment.

    make_example.py HEADER AROUND OUTPUT

The example is what the comment indents by three spaces. AROUND has the includes and declarations that
it takes for granted; its line @EXAMPLE@ is where the example goes. An ellipsis stands for the reader's
own code and is dropped.
"""

import pathlib
import re
import sys

# "//   code" or " *   code"
EXAMPLE_LINE = re.compile(r"^(?://| \*) {3}(.*)$")


def example_of(header):
    lines = []
    for line in header.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            break
        match = EXAMPLE_LINE.match(line)
        if match:
            lines.append(match.group(1).replace("...", ""))
    return lines


def main(header, around, output):
    lines = example_of(pathlib.Path(header))
    if not lines:
        print(f"error: {header}: no example in the opening comment", file=sys.stderr)
        return 1
    text = pathlib.Path(around).read_text(encoding="utf-8")
    include = f'#include "coppice/{pathlib.Path(header).name}"\n'
    body = "\n".join(lines)
    pathlib.Path(output).write_text(include + text.replace("@EXAMPLE@", body), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
