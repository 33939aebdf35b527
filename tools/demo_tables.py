# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""The two tables of the demonstration, made of the JSON of `coppice run` and `coppice bench`."""

NAMES = {"off": "llama.cpp's own", "dense": "ours, dense", "hip": "ours, pruned (hip)"}


def render(rows):
    """Columns of equal width, the first to the left, the others to the right, a rule below."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def seconds(value):
    return f"{value:.1f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def size(value):
    return f"{value / (1 << 20):.0f} MiB"


def percent(value):
    return "-" if value is None else f"{100 * value:.1f} %"


def times(value):
    return f"{value:.2f}x"


def per_token(report):
    """The first generated token comes from the prefill."""
    return report["decode_s"] / max(1, report["generated_tokens"] - 1)


def attention_table(reports, key):
    stock = reports["off"]
    rows = [
        [
            "attention", "answer", "", "prefill", "speed-up", "of it attention", "decode/token",
            "speed-up", "keys read", "peak memory", "KV cache",
        ]
    ]
    for attention, report in reports.items():
        answer = report["text"].strip()[: len(key)]
        rows.append(
            [
                NAMES[attention],
                answer or "(none)",
                "right" if answer == key else "wrong",
                seconds(report["prefill_s"]),
                times(stock["prefill_s"] / report["prefill_s"]),
                seconds(report["attention_prefill_s"]) if attention != "off" else "-",
                seconds(per_token(report)),
                times(per_token(stock) / per_token(report)),
                percent(report.get("keys_read_fraction") if attention != "off" else 1.0),
                size(report["peak_rss_bytes"]),
                size(report["kv_bytes"]),
            ]
        )
    return render(rows)


def layer_table(reports, lengths, phases):
    rows = [["tokens", "queries", "dense", "pruned", "speed-up", "keys read", "search"]]
    for tokens in lengths:
        for phase, queries in phases:
            dense = reports[(tokens, phase, "dense")]
            pruned = reports[(tokens, phase, "hip")]
            both = pruned["select_s"] + pruned["attend_s"]
            rows.append(
                [
                    f"{tokens:,}",
                    f"{queries} ({phase})",
                    seconds(dense["seconds_min"]),
                    seconds(pruned["seconds_min"]),
                    times(dense["seconds_min"] / pruned["seconds_min"]),
                    percent(pruned["selected_fraction"]),
                    percent(pruned["select_s"] / both if both else None),
                ]
            )
    return render(rows)
