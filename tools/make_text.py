#!/usr/bin/env python3
# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""Writes a text of models/models.json into the cache directory, once, and prints its path.

The text comes from an installed program. A sha256 other than the recorded one is said and accepted:
another release may word or wrap it differently, and then the figures in the documents differ a bit.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from fetch_model import ROOT, cache_directory


def make(text, target):
    try:
        result = subprocess.run(text["command"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{text['command'][0]} does not run ({error}); install Debian's package bible-kjv"
    if len(result.stdout) < text["minimum_bytes"]:
        return (
            f"{' '.join(text['command'])} wrote {len(result.stdout)} bytes, "
            f"fewer than {text['minimum_bytes']}; install Debian's package bible-kjv again"
        )
    if hashlib.sha256(result.stdout).hexdigest() != text["sha256"]:
        print("note: not the release of the text that the documents' figures were measured on")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as out:
        out.write(result.stdout)
    os.chmod(out.name, 0o644)
    os.replace(out.name, target)
    return None


def main(name):
    texts = json.loads((ROOT / "models/models.json").read_text(encoding="utf-8"))["texts"]
    if name not in texts:
        print(f"error: no text named {name}; there are: {', '.join(texts)}", file=sys.stderr)
        return 2
    target = cache_directory() / "texts" / texts[name]["file"]
    if not target.is_file():
        failure = make(texts[name], target)
        if failure:
            print(f"error: {failure}", file=sys.stderr)
            return 1
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "kjv"))
