# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""tools/check_isa_symbols.py on objects compiled for it."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
INLINE = "inline int Twice(int x) { return 2 * x; }\n"
USE = "int (*use_{0})(int) = &{0};\n"


class CheckIsaSymbolsTest(unittest.TestCase):
    def run_on(self, isa, source):
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch, "src/coppice_objects.dir/kernels", isa)
            folder.mkdir(parents=True)
            command = ["c++", "-x", "c++", "-c", "-o", folder / "attend.cc.o", "-"]
            subprocess.run(command, input=source, text=True, check=True)
            return subprocess.run(
                [sys.executable, ROOT / "tools/check_isa_symbols.py", scratch],
                capture_output=True,
                text=True,
                check=False,
            )

    def test_an_inline_function_of_everybody_is_found(self):
        result = self.run_on("avx512", INLINE + USE.format("Twice"))
        self.assertEqual(result.returncode, 1)
        self.assertIn("avx512/attend.cc.o: exports Twice(int)", result.stdout)

    def test_one_in_the_namespace_of_the_instruction_set_is_fine(self):
        source = "namespace coppice::avx512 {\n" + INLINE + USE.format("Twice") + "}\n"
        self.assertEqual(self.run_on("avx512", source).returncode, 0)

    def test_an_unnamed_namespace_is_fine(self):
        source = "namespace {\n" + INLINE + "}\n" + USE.format("Twice")
        self.assertEqual(self.run_on("avx2", source).returncode, 0)

    def test_portable_code_is_not_asked(self):
        self.assertEqual(self.run_on("generic", INLINE + USE.format("Twice")).returncode, 0)

    def test_no_object_is_an_error(self):
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, ROOT / "tools/check_isa_symbols.py", scratch]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("build first", result.stderr)


if __name__ == "__main__":
    unittest.main()
