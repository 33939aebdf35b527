# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""tools/setup when something is missing: one line that says what to do, and the right status.

Small programs at the head of PATH stand in for the machine: a dpkg-query that knows no package, an id
that names another user, an npm without a registry.
"""

import os
import pathlib
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]


class SetupTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.directory = pathlib.Path(scratch.name)
        self.programs = self.directory / "bin"
        self.programs.mkdir()

    def stand_in(self, name, body):
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    def setup(self, *arguments, **variables):
        environment = dict(os.environ, XDG_CACHE_HOME=str(self.directory / "cache"))
        environment.pop("COPPICE_LLAMA_DIR", None)
        environment["PATH"] = f"{self.programs}:{environment['PATH']}"
        environment["COPPICE_LOG_DIR"] = str(self.directory / "log")
        environment.update(variables)
        command = [ROOT / "tools/setup", *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )

    def assert_one_line(self, result, status, *words):
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        self.assertTrue(result.stderr.startswith("error: "), result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)
        self.assertEqual(result.stdout, "")

    def test_without_root_it_names_the_command(self):
        self.stand_in("dpkg-query", "exit 1")
        self.stand_in("id", "echo 1000")
        self.stand_in("apt-get", "echo it must not be called; exit 7")
        self.assert_one_line(self.setup("system"), 1, "apt-get install", "cmake", "bible-kjv")

    def test_without_the_debian_registry_it_names_the_command(self):
        self.stand_in("dpkg-query", "exit 1")
        self.stand_in("id", "echo 0")
        self.stand_in("apt-get", "echo no route; exit 100")
        self.assert_one_line(self.setup("system"), 1, "registry", "apt-get install", "cmake")

    def test_apt_is_asked_for_the_missing_packages_alone(self):
        asked = self.directory / "asked"
        self.stand_in("dpkg-query", 'case "$*" in *ninja-build) exit 1;; esac; echo installed')
        self.stand_in("id", "echo 0")
        self.stand_in("npm", "exit 0")
        self.stand_in("apt-get", f'echo "$*" >>{asked}')
        self.assertEqual(self.setup("system").returncode, 0)
        lines = asked.read_text(encoding="utf-8").splitlines()
        self.assertEqual(lines[0], "update")
        self.assertEqual(lines[1].split()[-1], "ninja-build")
        self.assertNotIn("cmake", lines[1])

    def test_apt_is_not_called_when_nothing_is_missing(self):
        self.stand_in("dpkg-query", "echo installed")
        self.stand_in("npm", "exit 0")
        self.stand_in("apt-get", "exit 7")
        result = self.setup("system")
        self.assertEqual((result.returncode, result.stderr), (0, ""))

    def test_without_npms_registry_it_names_the_way_out(self):
        self.stand_in("npm", "echo no route; exit 1")
        self.assert_one_line(self.setup("llama"), 1, "npm", "registry", "COPPICE_LLAMA_DIR")
        left = list((self.directory / "cache/coppice/libllama").iterdir())
        self.assertEqual(left, [])

    def test_ones_own_llama_needs_no_npm(self):
        self.stand_in("npm", "exit 1")
        result = self.setup("llama", COPPICE_LLAMA_DIR="/somewhere")
        self.assertEqual((result.returncode, result.stderr), (0, ""))

    def test_without_pips_registry_it_names_the_way_out(self):
        self.stand_in("python3", 'case "$*" in *venv*) mkdir -p "$4";; *) echo no route; exit 1;; esac')
        words = ["pip", "registry", "bench/peers/requirements.txt", "COPPICE_PEERS_PYTHON"]
        self.assert_one_line(self.setup("peers"), 1, *words)
        self.assertFalse((self.directory / "cache/coppice/peers/stamp").exists())
        words = ["pip", "bench/end_to_end/requirements.txt", "COPPICE_OPENVINO_PYTHON"]
        self.assert_one_line(self.setup("openvino"), 1, *words)

    def test_peers_are_installed_once_and_again_when_the_pins_change(self):
        asked = self.directory / "asked"
        self.stand_in("python3", f'case "$*" in *venv*) mkdir -p "$4";; *) echo "$*" >>{asked};; esac')
        for _ in range(2):
            self.assertEqual(self.setup("peers").returncode, 0)
        self.assertEqual(len(asked.read_text(encoding="utf-8").splitlines()), 1)
        (self.directory / "cache/coppice/peers/stamp").write_text("of other pins", encoding="utf-8")
        self.assertEqual(self.setup("peers").returncode, 0)
        self.assertEqual(len(asked.read_text(encoding="utf-8").splitlines()), 2)

    def test_the_tests_do_not_install_peers(self):
        script = (ROOT / "tools/setup").read_text(encoding="utf-8")
        all_of_it = script[script.index("  run | test)") : script.index("  system | llama")]
        self.assertIn("setup_text", all_of_it)
        self.assertNotIn("setup_peers", all_of_it)
        self.assertNotIn("setup_openvino", all_of_it)

    def test_gemma_needs_its_terms(self):
        self.assert_one_line(self.setup("model", "gemma-3-270m"), 2, "Gemma Terms of Use", "--accept")

    def test_an_unknown_step_lists_the_steps(self):
        self.assert_one_line(self.setup("nonsense"), 2, "nonsense", "system llama model text peers openvino")


if __name__ == "__main__":
    unittest.main()
