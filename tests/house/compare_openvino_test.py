# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""bench/end_to_end/compare_openvino.py with small programs in place of coppice and OpenVINO GenAI.

The modules `openvino` and `openvino_genai` of this test count a word as a token and make up times;
openvino_child.py is the real one.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = 50

COPPICE = """#!{python}
import json, pathlib, sys
arguments = dict(zip(sys.argv[2:], sys.argv[3:]))
if sys.argv[1] == "convert":
    pathlib.Path(arguments["-o"]).write_text("converted")
    print(json.dumps(dict(weights="q8_0")))
    sys.exit()
attention = arguments["--attention"]
with open("{log}", "a") as log:
    print(attention, file=log)
words = len(pathlib.Path(arguments["-f"]).read_text().split())
if attention == "streaming":
    sys.exit("error: no such thing")
print(json.dumps(dict(
    text="and it came", prompt_tokens=words + {more}, generated_tokens=int(arguments["-n"]),
    prefill_s=dict(off=16.0, dense=8.0, hip=4.0)[attention], decode_s=3.2,
    attention_prefill_s=None if attention == "off" else 1.0, keys_read_fraction=0.25,
    model=pathlib.Path(arguments["-m"]).read_text(),
    peak_rss_bytes=200 << 20, kv_type=arguments["--kv-type"], threads=int(arguments["--threads"]),
    attention=dict(method=attention))))
"""

GENAI = """
import enum, types
__version__ = "9.9"
log = open("{log}", "a", buffering=1)


class SparseAttentionMode(enum.Enum):
    XATTENTION = 1
    TRISHAPE = 2


class SchedulerConfig:
    use_sparse_attention = False


class SparseAttentionConfig:
    def __init__(self, mode):
        self.mode = mode


class GenerationConfig:
    pass


class Tokenizer:
    def __init__(self, model):
        pass

    def encode(self, text):
        return types.SimpleNamespace(input_ids=types.SimpleNamespace(shape=[1, len(text.split())]))

    def decode(self, tokens):
        return "and it was"


class LLMPipeline:
    def __init__(self, model, device, scheduler_config, **properties):
        print("something that libraries print")
        self.sparse = scheduler_config.use_sparse_attention
        mode = self.sparse and scheduler_config.sparse_attention_config.mode
        print("openvino", mode and mode.name, file=log)
        if mode == SparseAttentionMode.TRISHAPE:
            raise RuntimeError("not on\\nthis machine")

    def get_tokenizer(self):
        return Tokenizer("")

    def generate(self, prompt, config):
        first = 5000.0 if self.sparse else 12000.0
        times = [first + 200 * step for step in range(config.max_new_tokens)]
        raw = types.SimpleNamespace(m_new_token_times=times)
        metrics = types.SimpleNamespace(
            raw_metrics=raw, get_ttft=lambda: types.SimpleNamespace(mean=first))
        return types.SimpleNamespace(tokens=[times], perf_metrics=metrics)
"""

OPENVINO = """
import types


class Core:
    def set_property(self, device, properties):
        self.types = dict(INFERENCE_PRECISION_HINT="bf16", KV_CACHE_PRECISION="u8") | properties

    def get_property(self, device, name):
        return types.SimpleNamespace(get_type_name=lambda: self.types[name])
"""


class CompareOpenvinoTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.directory = pathlib.Path(scratch.name)
        self.log = self.directory / "log"
        (self.directory / "model.gguf").write_text("", encoding="utf-8")
        self.text = " ".join(f"word{i}" for i in range(WORDS * 3))
        (self.directory / "text.txt").write_text(self.text, encoding="utf-8")
        self.write_coppice(more=0)
        self.module("openvino_genai", GENAI.replace("{log}", str(self.log)))
        self.module("openvino", OPENVINO)

    def write_coppice(self, more):
        path = self.directory / "coppice"
        path.write_text(COPPICE.format(python=sys.executable, log=self.log, more=more), "utf-8")
        path.chmod(0o755)

    def module(self, name, source):
        (self.directory / f"{name}.py").write_text(source, encoding="utf-8")

    def compare(self, *arguments, **variables):
        environment = dict(os.environ, PYTHONPATH=str(self.directory), PYTHONDONTWRITEBYTECODE="1")
        environment["COPPICE_OPENVINO_PYTHON"] = sys.executable
        environment["XDG_CACHE_HOME"] = str(self.directory / "cache")
        environment.update(variables)
        command = [ROOT / "bench/end_to_end/compare_openvino.py", "--tokens", str(WORDS)]
        for name, file in (("model", "model.gguf"), ("text", "text.txt"), ("coppice", "coppice")):
            command += [f"--{name}", self.directory / file]
        return subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, check=False
        )

    def test_rounds_take_turns_and_ratios_are_theirs_over_ours(self):
        systems = ["off", "dense", "openvino", "hip", "openvino-xattention"]
        result = self.compare("--rounds", "2", "--systems", ",".join(systems), "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        order = ["off", "dense", "openvino False", "hip", "openvino XATTENTION"]
        self.assertEqual(self.log.read_text(encoding="utf-8").splitlines(), order * 2)
        self.assertEqual(len(result.stdout.splitlines()), 1)
        report = json.loads(result.stdout)
        self.assertEqual(list(report["systems"]), systems)
        self.assertEqual(report["prompt_tokens_difference"], 0)
        dense, pruned = report["ratios"]
        self.assertEqual((dense["ours"], dense["theirs"]), ("dense", "openvino"))
        self.assertAlmostEqual(dense["prefill_s_min_ratio"], 12 / 8)
        self.assertAlmostEqual(pruned["prefill_s_median_ratio"], 5 / 4)
        self.assertAlmostEqual(pruned["decode_token_s_min_ratio"], 0.2 / 0.1)
        openvino = report["systems"]["openvino"]
        self.assertEqual(openvino["rounds"], 2)
        self.assertEqual(openvino["prompt_tokens"], WORDS)
        self.assertGreater(openvino["peak_rss_bytes"], 0)

    def test_the_table_says_who_computed_in_what(self):
        result = self.compare("--rounds", "1", "--systems", "hip,openvino")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(f"All prompts have {WORDS} tokens.", result.stdout)
        self.assertIn("openvino: computes in bf16, keys and values in u8", result.stdout)
        for word in ("4.0 s", "100 ms", "25.0 %", "200 MiB", "11 of 11", "7 of 11"):
            self.assertIn(word, result.stdout)

    def test_properties_reach_openvino(self):
        wish = "KV_CACHE_PRECISION=f16"
        result = self.compare("--rounds", "1", "--systems", "openvino", "--openvino-property", wish)
        self.assertIn("keys and values in f16", result.stdout)

    def test_ours_reads_what_it_converted(self):
        ways = ("--rounds", "1", "--systems", "hip,openvino", "--json")
        for arguments, model, kv_type in (
            ((), "", "f16"),
            (("--convert", "--kv-type", "q8_0"), "converted", "q8_0"),
        ):
            result = self.compare(*ways, *arguments)
            self.assertEqual(result.returncode, 0, result.stderr)
            run = json.loads(result.stdout)["systems"]["hip"]["runs"][0]
            self.assertEqual((run["model"], run["kv_type"]), (model, kv_type))
            self.assertEqual("(ours as q8_0)" in result.stderr, bool(arguments))

    def test_prompts_that_differ_are_named(self):
        self.write_coppice(more=1)
        result = self.compare("--rounds", "1", "--systems", "hip,openvino")
        note = f"The prompts differ in tokens, by 1: hip {WORDS + 1}, openvino {WORDS}."
        self.assertIn(note, result.stdout)

    def test_one_that_fails_is_named_and_the_others_are_measured(self):
        systems = "hip,streaming,openvino-trishape,openvino-xattention"
        result = self.compare("--rounds", "2", "--systems", systems, "--json")
        self.assertEqual(result.returncode, 1)
        report = json.loads(result.stdout)
        self.assertEqual(list(report["systems"]), ["hip", "openvino-xattention"])
        expected = {
            "streaming": "no such thing",
            "openvino-trishape": "RuntimeError: not on this machine",
        }
        self.assertEqual(report["errors"], expected)
        self.assertEqual(self.log.read_text(encoding="utf-8").splitlines().count("streaming"), 1)

    def assert_one_line(self, result, *words):
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        for word in ("error: ", *words):
            self.assertIn(word, result.stderr)

    def test_without_openvino_it_names_the_step(self):
        line = "raise ModuleNotFoundError('no', name='openvino_genai')\n"
        self.module("openvino_genai", line)
        self.assert_one_line(self.compare(), "no module openvino_genai", "tools/setup openvino")

    def test_all_that_is_not_there_is_named_at_once(self):
        (self.directory / "model.gguf").unlink()
        result = self.compare("--coppice", "/nowhere/coppice", COPPICE_OPENVINO_PYTHON="")
        words = ["cmake --preset release", "tools/setup model", "tools/setup openvino"]
        self.assert_one_line(result, *words, str(self.directory / "cache"))
        self.assertNotIn("tools/setup text", result.stderr)

    def test_an_unknown_way_of_openvino_is_bad_usage(self):
        result = self.compare("--systems", "openvino-sparse")
        self.assertEqual(result.returncode, 2)
        self.assertIn("no openvino-sparse; there are openvino, ", result.stderr)


if __name__ == "__main__":
    unittest.main()
