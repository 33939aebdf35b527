#!/usr/bin/env python3
# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""Checks that rooms include only what docs/map.md lets them include, and nothing points back.

Quoted includes must name a file of this repository; angled ones of other projects are let in room by
room. Prints one line for each breach, "file:line: what is wrong", and exits with 1 if there is any.
"""

import pathlib
import re
import sys

# Room: (its folder, the rooms that it may include besides itself).
ROOMS = {
    "api": ("include/coppice", set()),
    "core": ("src/core", {"api"}),
    "kernels": ("src/kernels", {"api", "core"}),
    "select": ("src/select", {"api", "core", "kernels"}),
    "attention": ("src/attention", {"api", "core", "kernels", "select"}),
    "c_api": ("src", {"api", "core", "attention"}),
    "door llama": ("doors/llama", {"api", "core", "attention"}),
    "door ggml": ("doors/ggml", {"api"}),
    "door python": ("doors/python", {"api"}),
    "apps": ("apps", {"api", "core", "attention", "door llama", "bench"}),
    "bench": ("bench", {"api", "core", "kernels", "select", "attention", "door llama"}),
}
# Folders of one instruction set: named by dispatch and by themselves alone, and the only places for
# intrinsics. simd/ is what the vector ones are written over.
ISA_FOLDER = re.compile(r"src/kernels/(generic|avx2|avx512\w*|amx|neon|cuda)/")
DISPATCH = "src/kernels/dispatch.cc"

# Headers of other projects: where they may be included.
THIRD_PARTY = [
    (re.compile(r"^(llama|ggml|gguf)[\w-]*\.h$"), ("doors/llama", "doors/ggml", "apps", "bench")),
    (re.compile(r"^(CLI/|nlohmann/)"), ("apps", "bench")),
    (re.compile(r"^(gtest|gmock)/|^rapidcheck"), ()),
    (re.compile(r"^\w*intrin\.h$|^arm_neon\.h$"), ("src/kernels", "src/core/cpu.cc", "bench/ceilings.cc")),
]
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
SUFFIXES = {".h", ".cc", ".c"}


def room_of(path):
    """The room whose folder holds the path, or None. src/ itself holds files, no further folder."""
    for room, (folder, _) in ROOMS.items():
        inside = path.removeprefix(folder + "/")
        if inside != path and (folder != "src" or "/" not in inside):
            return room
    return None


def resolve(root, file, name):
    """A quoted include as a path from the root, or None."""
    for base in (file.parent, root / "src", root / "include", root / "bench", root):
        candidate = base / name
        if candidate.is_file():
            return candidate.resolve().relative_to(root).as_posix()
    return None


def check_quoted(path, target):
    source, wanted = room_of(path), room_of(target)
    if wanted is None:
        return f"includes {target}, which is in no room"
    if source != wanted and wanted not in ROOMS[source][1]:
        return f"room '{source}' must not include room '{wanted}' ({target})"
    isa = ISA_FOLDER.match(target)
    if isa and path != DISPATCH and not path.startswith(isa.group(0)):
        return f"only {DISPATCH} may include the instruction-set folder of {target}"
    return None


def check_angled(path, name):
    for pattern, places in THIRD_PARTY:
        if pattern.search(name) and not path.startswith(places):
            return f"<{name}> has no place here; it may be included in: {', '.join(places) or 'tests'}"
    return None


def check_file(root, file):
    path = file.relative_to(root).as_posix()
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        match = INCLUDE.match(line)
        if not match:
            continue
        if match.group(1) == "<":
            breach = check_angled(path, match.group(2))
        else:
            target = resolve(root, file, match.group(2))
            breach = check_quoted(path, target) if target else f"no such file: {match.group(2)}"
        if breach:
            yield f"{path}:{number}: {breach}"


def check(root):
    for top in ("include", "src", "doors", "apps", "bench"):
        for file in sorted((root / top).rglob("*")):
            if file.suffix in SUFFIXES:
                if room_of(file.relative_to(root).as_posix()) is None:
                    yield f"{file.relative_to(root)}: lies in no room of docs/map.md"
                else:
                    yield from check_file(root, file)


def main(arguments):
    root = pathlib.Path(arguments[0] if arguments else pathlib.Path(__file__).parent.parent)
    breaches = list(check(root.resolve()))
    print("\n".join(breaches) if breaches else "includes: every room keeps to its own")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
