# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""The pictures and tables of docs/performance.md are what its JSON makes, and the scripts work."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest
import unittest.mock
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import draw_performance  # noqa: E402
import measure_performance  # noqa: E402
import performance_figures  # noqa: E402
import performance_tables  # noqa: E402
from performance_rows import ROWS  # noqa: E402

# Answers as `coppice bench attention --json` does; knows neither q8_0 nor random.
STAND_IN = """#!PYTHON -IS
import json, sys
flags = dict(zip(sys.argv, sys.argv[1:]))
if flags["--method"] == "random" or flags["--kv-type"] == "q8_0":
    print("coppice bench attention: error: unknown to this build", file=sys.stderr)
    sys.exit(REFUSAL)
queries = 1 if flags["--phase"] == "decode" else 512
fast = "--fast" in sys.argv
peers = {"ggml": {"version": "1", "seconds_min": 0.75, "seconds_median": 1, "rounds": 3,
                  "ratio_min": 3.0},
         "absent": {"error": "not installed"}}
print("a note")
print(json.dumps({
    "method": flags["--method"], "settings": {"block_q": 16}, "isa": flags.get("--isa", "avx512"),
    "kernel": "tile bf16 bf16" if fast else "tile f32 f32", "arithmetic": "bf16" if fast else "f32",
    "threads": int(flags["--threads"]), "tokens": int(flags["--tokens"]), "queries": queries,
    "head_dim": int(flags["--head-dim"]), "kv_type": flags["--kv-type"], "rounds": 3,
    "seconds_min": 0.25, "seconds_median": 0.5, "seconds_p99": 1,
    "gflops": 100 + 80 * fast if queries > 1 else 50,
    "gbytes_per_s": 0.05 if queries > 1 else 12.5, "peak_gflops": 232 if fast else 116,
    "stream_gbytes_per_s": 25, "selected_fraction": 1, "select_s": 0, "attend_s": 0.25,
    "rel_error_vs_float64": 1.23456789e-6, "peers": peers if "--peers" in sys.argv else {},
}))
"""


def quietly(function, *arguments):
    """What it returns, and what it wrote to stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        result = function(*arguments)
    return result, errors.getvalue()


class CommittedTest(unittest.TestCase):
    def test_pictures_and_tables_are_what_the_json_makes(self):
        self.assertEqual(quietly(draw_performance.main, ["--check"]), (0, ""))

    def test_every_measured_row_is_still_asked_for(self):
        names = {row.name for row in ROWS}
        self.assertEqual(len(names), len(ROWS))
        for path in (ROOT / "docs/performance").glob("*.json"):
            if path.stem != draw_performance.END_TO_END:
                with self.subTest(path.name):
                    data = json.loads(path.read_text(encoding="utf-8"))
                    self.assertLessEqual(data["rows"].keys(), names)
                    self.assertEqual(path.stem, measure_performance.slug(data["machine"]["class"]))


class ScriptsTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.root = pathlib.Path(scratch.name)
        (self.root / "docs/performance").mkdir(parents=True)
        self.document = self.root / "docs/performance.md"
        self.document.write_text("Text.\n\n<!-- table: test -->\n<!-- end -->\n\nMore text.\n")
        self.json = self.root / "docs/performance/test.json"
        self.stand_in(2)

    def stand_in(self, refusal):
        """`refusal`: exit status for what it does not know."""
        program = STAND_IN.replace("PYTHON", sys.executable).replace("REFUSAL", str(refusal))
        self.coppice = self.root / "coppice"
        self.coppice.write_text(program)
        self.coppice.chmod(0o755)

    def measure(self, *arguments):
        common = ["--machine", "Test", "--coppice", str(self.coppice), "--output", str(self.json)]
        return quietly(measure_performance.main, [*common, *arguments])

    def rows(self):
        return json.loads(self.json.read_text())["rows"]

    def draw(self, *arguments):
        return quietly(draw_performance.main, ["--root", str(self.root), *arguments])

    def test_what_the_build_does_not_know_is_skipped(self):
        status, words = self.measure()
        self.assertEqual(status, 0)
        self.assertIn("skipped: unknown to this build", words)
        self.assertIn(f"1/{len(ROWS)} prefill f16\n", words)
        known = [
            row.name for row in ROWS if row.kind != "block-sparse" and "q8_0" not in row.options
        ]
        self.assertEqual(list(self.rows()), known)

    def test_what_fails_is_said_at_the_end(self):
        self.stand_in(1)
        status, words = self.measure("--only", "q8_0 fast 64")
        self.assertEqual(status, 1)
        self.assertIn("failed: unknown to this build", words)

    def test_other_rows_stay(self):
        self.measure("--only", "prefill f16 dim", "--quick")
        self.measure("--only", "prefill bf16 fast", "--peers")
        rows = self.rows()
        self.assertEqual(len(rows), 6)
        self.assertTrue(rows["prefill f16 dim 80"]["quick"])
        self.assertFalse(rows["prefill bf16 fast"]["quick"])
        self.assertEqual(rows["prefill bf16 fast"]["rel_error_vs_float64"], 1.2346e-6)

    def test_peers_that_work_are_kept(self):
        self.measure("--only", "prefill f16", "--peers")
        self.assertEqual([peer["name"] for peer in self.rows()["prefill f16"]["peers"]], ["ggml"])
        self.assertNotIn("peers", self.rows()["prefill f16 dim 64"])
        self.draw()
        self.assertIn("| prefill f16 | ggml 1 | 750 | 3.00 |", self.document.read_text())

    def test_peers_stay_where_the_row_is_measured_again_without_them(self):
        self.measure("--only", "prefill f16", "--peers")
        beside = self.rows()["prefill f16"]["peers"]
        self.assertEqual(beside[0]["ratio_min"], 3.0)
        faster = self.coppice.read_text().replace('"seconds_min": 0.25', '"seconds_min": 0.2')
        self.coppice.write_text(faster)
        self.measure("--only", "prefill f16")
        again = self.rows()["prefill f16"]
        self.assertEqual(again["seconds_min"], 0.2)
        self.assertEqual(again["peers"], beside)
        self.draw()
        self.assertIn("| prefill f16 | ggml 1 | 750 | 3.00 |", self.document.read_text())

    def test_beside_a_busy_process(self):
        @contextlib.contextmanager
        def slower():
            self.coppice.write_text(self.coppice.read_text().replace("_p99\": 1", "_p99\": 3"))
            yield

        with unittest.mock.patch.object(measure_performance, "busy_process", slower):
            self.measure("--only", "disturbed decode 4 Ki")
        self.draw()
        line = "| 4 Ki | 500 | 1,000 | 500 | 3,000 | 1.00 | 6.00 |"
        self.assertIn(line, self.document.read_text())

    def test_the_busy_process_ends(self):
        with measure_performance.busy_process() as other:
            self.assertIsNone(other.poll())
        self.assertIsNotNone(other.poll())

    def test_no_such_row(self):
        status, words = self.measure("--only", "training")
        self.assertEqual(status, 2)
        self.assertIn("no row has 'training'", words)

    def test_drawn_once_and_checked(self):
        self.measure()
        self.assertEqual(self.draw("--check")[0], 1)
        self.assertEqual(self.draw()[0], 0)
        self.assertEqual(self.draw("--check"), (0, ""))
        text = self.document.read_text()
        self.assertTrue(text.startswith("Text.\n") and text.endswith("More text.\n"))
        self.assertIn("| f16 | f32 (avx512) | 250 | 100 | 116 | 86 % | 1.2e-06 |", text)
        self.assertNotIn("block-sparse", text)
        self.assertNotIn("q8_0", text)

    def test_a_machine_without_a_place_is_named(self):
        self.measure("--only", "prefill f16")
        self.document.write_text("No place.\n")
        status, words = self.draw()
        self.assertEqual(status, 1)
        self.assertIn("test.json wants one <!-- table: test -->", words)

    def test_peaks_that_are_the_same_are_one_roof(self):
        row = {"threads": 1, "arithmetic": "f32", "peak_gflops": 116}
        rows = {
            "a": {**row, "arithmetic": "bf16", "peak_gflops": 115},
            "b": row,
            "c": {**row, "arithmetic": "int8", "peak_gflops": 460},
            "d": {**row, "threads": 2, "peak_gflops": 230},
        }
        self.assertEqual(performance_tables.roofs(rows), {"f32": 116, "int8": 460})

    def test_labels_of_the_roofline_do_not_touch(self):
        self.measure()
        data = json.loads(self.json.read_text())
        panel = performance_figures.Panel(data, 0)
        taken = []
        list(panel.ceilings(taken))
        before = len(taken)
        list(panel.marks(taken))
        self.assertGreater(len(panel.points), 8)
        for i in range(before + len(panel.points), len(taken)):
            self.assertFalse(any(taken[i].meets(other) for other in taken[:i]))

    def test_pictures_are_well_formed(self):
        self.measure("--only", "prefill")
        data = json.loads(self.json.read_text())
        group = {"model": "A & B", "tokens": 1000, "machine": "<m>", "bars": [
            {"name": "theirs", "prefill_s": 10.0, "attention_s": None},
            {"name": "ours", "prefill_s": 5.0, "attention_s": 1.0},
        ]}
        pictures = [performance_figures.roofline([data, data]), performance_figures.time([group])]
        for picture in pictures:
            xml.etree.ElementTree.fromstring(picture)
        self.assertIn("5.0 s, 2.0x", pictures[1])


if __name__ == "__main__":
    unittest.main()
