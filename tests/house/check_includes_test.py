# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""tools/check_includes.py finds what it is there for, in small trees made for it."""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

import check_includes  # noqa: E402


class CheckIncludesTest(unittest.TestCase):
    def breaches(self, files):
        with tempfile.TemporaryDirectory() as scratch:
            root = pathlib.Path(scratch).resolve()
            for name, text in files.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            return list(check_includes.check(root))

    def test_forward_is_fine(self):
        files = {
            "src/core/half.h": "",
            "src/kernels/table.h": '#include "core/half.h"\n#include <vector>\n',
            "src/attention/plan.cc": '#include "kernels/table.h"\n',
        }
        self.assertEqual(self.breaches(files), [])

    def test_backward_is_named_with_its_line(self):
        files = {
            "src/attention/plan.h": "",
            "src/kernels/table.h": '\n#include "attention/plan.h"\n',
        }
        self.assertEqual(len(self.breaches(files)), 1)
        self.assertIn("src/kernels/table.h:2: room 'kernels'", self.breaches(files)[0])

    def test_the_api_includes_nothing_of_src(self):
        files = {"src/core/half.h": "", "include/coppice/tensor.h": '#include "core/half.h"\n'}
        self.assertIn("room 'api'", self.breaches(files)[0])

    def test_only_dispatch_names_an_instruction_set(self):
        files = {
            "src/kernels/avx2/attend.h": "",
            "src/kernels/dispatch.cc": '#include "kernels/avx2/attend.h"\n',
            "src/kernels/table.cc": '#include "kernels/avx2/attend.h"\n',
        }
        self.assertEqual(len(self.breaches(files)), 1)
        self.assertIn("src/kernels/table.cc:1", self.breaches(files)[0])

    def test_other_projects_stay_in_their_rooms(self):
        files = {"src/attention/plan.cc": "#include <ggml.h>\n#include <nlohmann/json.hpp>\n"}
        self.assertEqual(len(self.breaches(files)), 2)

    def test_intrinsics_stay_in_the_kernels(self):
        files = {
            "src/kernels/avx2/attend.cc": "#include <immintrin.h>\n",
            "src/select/hip_tree.cc": "#include <immintrin.h>\n",
        }
        self.assertEqual(len(self.breaches(files)), 1)

    def test_a_file_outside_all_rooms_is_named(self):
        self.assertIn("lies in no room", self.breaches({"src/misc/util.h": ""})[0])

    def test_a_missing_file_is_named(self):
        self.assertIn("no such file", self.breaches({"src/core/a.cc": '#include "gone.h"\n'})[0])


if __name__ == "__main__":
    unittest.main()
