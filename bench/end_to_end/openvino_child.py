# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI's end of compare_openvino.py: one prompt, one way of attention, one process.

  openvino_child.py cut --model GGUF --text FILE --tokens N
      the longest beginning of the text that has at most N tokens
  openvino_child.py run --model GGUF --text FILE --generate N --threads N --batch N
      --attention dense|xattention|trishape --property NAME=VALUE
      reads the whole file and answers

Prints one JSON object as the last line of stdout; an error is {"error": LINE} and status 1. Knows
nothing of Coppice, and imports what `tools/setup openvino` installs.

`run` answers twice: one token, which compiles kernels for the shapes at hand (1.3 s on a Zen 4,
whatever the length) and is reported as first_prefill_s, then all of them, which is what counts:
prefill_s is OpenVINO's own time to the first token, decode_s that from the first to the last. The
prompt is tokenized before, so that neither holds any of it, as in `coppice run`.
"""

import argparse
import bisect
import json
import os
import pathlib
import sys
import time

INSTALL = "install it with tools/setup openvino"
CHARACTERS_PER_TOKEN = 8  # at most, in running text; only bounds what `cut` looks at


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("cut", "run"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=int, help="cut: of the prompt")
    parser.add_argument("--generate", type=int)
    parser.add_argument("--attention", choices=("dense", "xattention", "trishape"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int, help="prompt tokens that are computed together")
    parser.add_argument("--property", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args(arguments)


def read(path):
    return path.read_text(encoding="utf-8", errors="replace")


def token_count(tokenizer, text):
    return tokenizer.encode(text).input_ids.shape[1]


def cut(options):
    import openvino_genai

    tokenizer = openvino_genai.Tokenizer(options.model)
    text = read(options.text)[: CHARACTERS_PER_TOKEN * options.tokens]
    # How many of the lengths 1, 2, ... do not have too many tokens, which is the longest of them.
    longest = bisect.bisect_right(
        range(1, len(text) + 1),
        options.tokens,
        key=lambda length: token_count(tokenizer, text[:length]),
    )
    return {"text": text[:longest], "version": openvino_genai.__version__}


def scheduler(options):
    import openvino_genai

    config = openvino_genai.SchedulerConfig()
    config.max_num_batched_tokens = options.batch
    config.enable_prefix_caching = False  # the second answer would find its prompt computed
    if options.attention != "dense":
        mode = getattr(openvino_genai.SparseAttentionMode, options.attention.upper())
        config.use_sparse_attention = True
        config.sparse_attention_config = openvino_genai.SparseAttentionConfig(mode=mode)
    return config


def greedy(tokens):
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = tokens
    config.do_sample = False
    config.ignore_eos = True
    config.apply_chat_template = False
    return config


def precisions(properties):
    """What the CPU plug-in computes in and keeps keys and values in, when given the properties."""
    import openvino

    core = openvino.Core()
    core.set_property("CPU", properties)
    names = {"compute_type": "INFERENCE_PRECISION_HINT", "kv_type": "KV_CACHE_PRECISION"}
    return {key: core.get_property("CPU", name).get_type_name() for key, name in names.items()}


def peak_bytes():
    """Of this program alone: getrusage() would count what forked it."""
    for line in pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def run(options):
    import openvino_genai

    properties = dict(pair.split("=", 1) for pair in options.property)
    properties["INFERENCE_NUM_THREADS"] = options.threads
    start = time.perf_counter()
    pipeline = openvino_genai.LLMPipeline(
        options.model, "CPU", scheduler_config=scheduler(options), **properties
    )
    load_s = time.perf_counter() - start
    tokenizer = pipeline.get_tokenizer()
    prompt = tokenizer.encode(read(options.text))

    start = time.perf_counter()
    pipeline.generate(prompt, greedy(1))
    first_prefill_s = time.perf_counter() - start
    answer = pipeline.generate(prompt, greedy(options.generate))

    times = answer.perf_metrics.raw_metrics.m_new_token_times  # milliseconds
    return {
        "text": tokenizer.decode(answer.tokens[0]),
        "prompt_tokens": prompt.input_ids.shape[1],
        "generated_tokens": len(times),
        "prefill_s": answer.perf_metrics.get_ttft().mean / 1e3,
        "first_prefill_s": first_prefill_s,
        "decode_s": (times[-1] - times[0]) / 1e3,
        "load_s": load_s,
        "peak_rss_bytes": peak_bytes(),
        "threads": options.threads,
        "batch": options.batch,
        "version": openvino_genai.__version__,
        **precisions(properties),
    }


def describe(error):
    if isinstance(error, ModuleNotFoundError):
        return f"{sys.executable} has no module {error.name}; {INSTALL}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def main(arguments):
    # What libraries print must not get before our line.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    options = parse_arguments(arguments)
    try:
        report = {"cut": cut, "run": run}[options.task](options)
    except Exception as error:  # whatever a library throws, we are asked for one line
        report = {"error": describe(error)}
    print(json.dumps(report), file=channel, flush=True)
    return 1 if "error" in report else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
