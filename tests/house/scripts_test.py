# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""The scripts parse, can be run, and answer --help; the catalogue and the lock file are complete."""

import ast
import json
import os
import pathlib
import re
import shutil
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHELL = ["run", "test", ".ci/run", "tools/setup", "tools/check"]


class ScriptsTest(unittest.TestCase):
    def test_shell_scripts_parse_and_can_be_run(self):
        for name in [*SHELL, "tools/steps.sh"]:
            with self.subTest(name):
                subprocess.run(["bash", "-n", ROOT / name], check=True)
                if name in SHELL:
                    self.assertTrue(os.access(ROOT / name, os.X_OK))

    @unittest.skipUnless(shutil.which("shellcheck"), "shellcheck is not installed")
    def test_shellcheck_has_no_complaint(self):
        subprocess.run(["shellcheck", "-x", *SHELL], cwd=ROOT, check=True)

    def test_python_scripts_parse(self):
        for path in [
            *(ROOT / "tools").glob("*.py"),
            *(ROOT / "bench").rglob("*.py"),
            *(ROOT / "tests").rglob("*.py"),
        ]:
            with self.subTest(path.name):
                ast.parse(path.read_text(encoding="utf-8"))

    def test_help_needs_no_set_up(self):
        for name in ("run", "test", "tools/setup"):
            with self.subTest(name):
                result = subprocess.run(
                    [ROOT / name, "--help"], capture_output=True, text=True, check=True, timeout=10
                )
                self.assertIn("./run" if name == "run" else name, result.stdout)


class CatalogueTest(unittest.TestCase):
    def test_every_model_says_what_it_is_and_how_it_is_checked(self):
        models = json.loads((ROOT / "models/models.json").read_text(encoding="utf-8"))["models"]
        for name, model in models.items():
            with self.subTest(name):
                self.assertTrue(model["licence"])
                self.assertGreater(model["bytes"], 0)
                for part in [model, *model["wheels"]]:
                    self.assertRegex(part["sha256"], re.compile("^[0-9a-f]{64}$"))

    def test_the_lock_file_pins_by_content_and_names_no_registry(self):
        lock = json.loads((ROOT / "third_party/llama/package-lock.json").read_text("utf-8"))
        packages = {name: entry for name, entry in lock["packages"].items() if name}
        self.assertEqual(len(packages), 2)
        for name, entry in packages.items():
            with self.subTest(name):
                self.assertTrue(entry["integrity"].startswith("sha512-"))
                self.assertNotIn("resolved", entry)


if __name__ == "__main__":
    unittest.main()
