# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""The markdown tables of docs/performance.md, of one machine's JSON.

What is not in the JSON has no line, column or table. The figures are those of the fastest round.
"""

from performance_rows import ROWS

SAME_PEAK = 0.05  # closer than this, two measured peaks are one


def of_kind(rows, *kinds):
    """Measured rows as pairs of name without its kind and figures."""
    return [
        (row.name.removeprefix(row.kind.split()[0]).strip(), rows[row.name])
        for row in ROWS
        if row.kind in kinds and row.name in rows
    ]


def roofs(rows):
    """{arithmetic: GFLOP/s} of one thread, lowest first.

    Peaks that are the same keep one name, f32's where it is among them."""
    highest = {}
    for row in rows.values():
        if row["threads"] == 1:
            name = row["arithmetic"]
            highest[name] = max(highest.get(name, 0), row["peak_gflops"])
    merged = {}
    for name in sorted(highest, key=lambda name: (not name.startswith("f32"), name)):
        peak = highest[name]
        if all(abs(peak / other - 1) > SAME_PEAK for other in merged.values()):
            merged[name] = peak
    return dict(sorted(merged.items(), key=lambda item: item[1]))


def stream(rows):
    """GB/s of one thread."""
    single = [row["stream_gbytes_per_s"] for row in rows.values() if row["threads"] == 1]
    return max(single, default=0)


def done_gflops(row):
    """Of the kernel alone: what it did (bench counts dense work) in its share of a call."""
    thread_seconds = row["select_s"] + row["attend_s"]
    share = row["attend_s"] / thread_seconds if thread_seconds else 1
    return row["gflops"] * row["selected_fraction"] / share


def number(value):
    """Three significant digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def milliseconds(row):
    return number(1e3 * row["seconds_min"])


def percent(value):
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def error(row):
    value = row.get("rel_error_vs_float64")
    return "" if value is None else f"{value:.1e}"


def table(heads, lines):
    if not lines:
        return []
    return [
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
        *(f"| {' | '.join(line)} |" for line in lines),
        "",
    ]


def titled(title, heads, lines):
    return [title, "", *table(heads, lines)] if lines else []


def prefill_table(rows):
    heads = ["prefill", "arithmetic", "ms", "GFLOP/s", "ceiling", "share", "error"]
    lines = [
        [
            name, f"{row['arithmetic']} ({row['isa']})", milliseconds(row),
            number(row["gflops"]), number(row["peak_gflops"]),
            percent(row["gflops"] / row["peak_gflops"]), error(row),
        ]
        for name, row in of_kind(rows, "prefill")
    ]
    return titled(
        "**Dense prefill**: 512 queries on 16 Ki keys, 8 query heads over 2 KV heads.", heads, lines
    )


def decode_table(rows):
    heads = ["decode", "ms", "GB/s", "stream", "share", "error"]
    lines = [
        [
            name, milliseconds(row), number(row["gbytes_per_s"]),
            number(row["stream_gbytes_per_s"]),
            percent(row["gbytes_per_s"] / row["stream_gbytes_per_s"]), error(row),
        ]
        for name, row in of_kind(rows, "decode")
    ]
    return titled(
        "**Dense decode**: one query, 32 query heads over 8 KV heads where nothing else is said.",
        heads, lines,
    )


def sparse_table(rows):
    def of_dense(name, row):
        dense = rows.get(f"prefill {name.partition(' blocks')[0]}")
        return percent(done_gflops(row) / dense["gflops"]) if dense else ""

    heads = ["block-sparse", "keys read", "ms", "GFLOP/s done", "of dense"]
    lines = [
        [
            name, percent(row["selected_fraction"]), milliseconds(row), number(done_gflops(row)),
            of_dense(name, row),
        ]
        for name, row in of_kind(rows, "block-sparse")
    ]
    return titled(
        "**Block-sparse prefill**: the same with a tenth of the keys, in random blocks that 64 "
        "query tokens share.",
        heads, lines,
    )


def pruned_table(rows):
    heads = ["pruned", "keys read", "ms", "of it search", "dense would need"]
    lines = []
    for name, row in of_kind(rows, "pruned prefill", "pruned decode"):
        rate = ("gbytes_per_s", "GB/s") if row["queries"] == 1 else ("gflops", "GFLOP/s")
        lines.append([
            name, percent(row["selected_fraction"]), milliseconds(row),
            percent(row["select_s"] / (row["select_s"] + row["attend_s"])),
            f"{number(row[rate[0]])} {rate[1]}",
        ])
    return titled(
        "**Pruned** (`hip`, its defaults), in the shapes of prefill and decode above. The last "
        "column is the rate at which dense attention would take as long.",
        heads, lines,
    )


def disturbed_table(rows):
    heads = [
        "decode", "idle median", "idle p99", "median, ms", "p99, ms", "median / idle", "p99 / idle",
    ]
    lines = []
    for name, row in of_kind(rows, "disturbed"):
        idle, other = row["seconds_median"], row["disturbed"]
        lines.append([
            name.removeprefix("decode "), number(1e3 * idle), number(1e3 * row["seconds_p99"]),
            number(1e3 * other["seconds_median"]), number(1e3 * other["seconds_p99"]),
            number(other["seconds_median"] / idle), number(other["seconds_p99"] / idle),
        ])
    return titled(
        "**Beside a busy process**: dense decode in the shape above on two threads, alone and "
        "while another process keeps a processor busy; the ratios are to the median when alone.",
        heads, lines,
    )


def peer_table(rows):
    heads = ["beside peers", "who", "ms", "time / ours", "error"]
    lines = []
    for row in ROWS:
        for peer in rows.get(row.name, {}).get("peers", []):
            lines.append([
                row.name, f"{peer['name']} {peer.get('version', '')}".strip(), milliseconds(peer),
                number(peer["ratio_min"]), error(peer),
            ])
    return titled("**Beside peers**: each round of theirs after one of ours.", heads, lines)


def span(values):
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def heading(machine, rows):
    every = list(rows.values())
    commits = {part["commit"] for row in every for part in [row, *row.get("peers", [])]}
    ceilings = [f"{number(peak)} GFLOP/s ({name})" for name, peak in roofs(rows).items()]
    facts = [
        f"{machine['cpu']}, {machine['processors']} processors",
        f"one thread: {', '.join(ceilings)}, {number(stream(rows))} GB/s read",
        f"measured {span([row['date'] for row in every])} at "
        + ", ".join(sorted(commits)),
        f"1-minute load before a row {span([row['load_average'] for row in every])}",
    ]
    busy = [row["others_busy"] for row in every if "others_busy" in row]
    if busy:
        facts.append(f"processors that others kept busy {span(busy)}")
    quick = sum(row["quick"] for row in every)
    if quick:
        facts.append(f"{quick} of {len(every)} rows with `--quick`")
    return ["; ".join(facts) + ".", ""]


def tables(data):
    """All of one machine, as lines."""
    machine, rows = data["machine"], data["rows"]
    if not rows:
        return [f"### {machine['class']}", "", "Nothing measured.", ""]
    return [
        f"### {machine['class']}", "",
        *heading(machine, rows),
        *prefill_table(rows),
        *decode_table(rows),
        *sparse_table(rows),
        *pruned_table(rows),
        *disturbed_table(rows),
        *peer_table(rows),
    ]
