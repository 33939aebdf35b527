# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""The two pictures of docs/performance.md, as SVG text: the roofline of each machine, and where the
time of a model's prefill goes.

The same JSON makes the same bytes. The fonts are the reader's, so widths of text are guessed, a
little too large.
"""

import dataclasses
import html
import math

from performance_rows import ROWS
from performance_tables import done_gflops, number, roofs, stream

WIDTH = 880
FONT = "font-family='Helvetica, Arial, sans-serif'"
TEXT = 13  # pixels
CHARACTER = 0.57 * TEXT
INK, GREY, FAINT = "#22272e", "#6b7480", "#e3e6ea"
COLOURS = {
    "prefill": ("#1f5fa8", "dense prefill"),
    "block-sparse": ("#2b8a4b", "block-sparse prefill"),
    "pruned prefill": ("#7d3fa0", "pruned prefill (hip)"),
    "decode": ("#c2571a", "dense decode"),
}
SHARES = {"attention_s": ("#1f5fa8", "attention"), "rest_s": ("#b9c2cc", "the rest of the model")}
UNTOLD = ("#8fa3ba", "both: its own attention is not timed apart")


def text(x, y, words, anchor="start", colour=INK, size=TEXT, more=""):
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{colour}' "
        f"font-size='{size}'{more}>{html.escape(words, quote=False)}</text>"
    )


def line(x1, y1, x2, y2, colour, width=1.0):
    return (
        f"<path d='M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}' stroke='{colour}' "
        f"stroke-width='{width}' fill='none'/>"
    )


def document(height, title, parts):
    body = "\n".join(parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' "
        f"width='{WIDTH}' height='{height}' role='img' {FONT}>\n"
        f"<title>{html.escape(title)}</title>\n"
        f"<rect width='{WIDTH}' height='{height}' fill='#ffffff'/>\n{body}\n</svg>\n"
    )


# ---- Roofline ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    kind: str
    intensity: float  # FLOP for each byte of keys and values
    gflops: float
    label: str


def points(rows):
    """Dense rows read keys and values once; the others once for each query block."""
    for row in ROWS:
        if not row.label or row.name not in rows or row.kind not in COLOURS:
            continue
        figures = rows[row.name]
        intensity = figures["gflops"] / figures["gbytes_per_s"]
        gflops = figures["gflops"]
        if "block_q" in figures:
            intensity *= figures["block_q"] / figures["queries"]
            gflops = done_gflops(figures)
        yield Point(row.kind, intensity, gflops, row.label)


class Box:
    def __init__(self, left, top, right, bottom):
        self.left, self.top, self.right, self.bottom = left, top, right, bottom

    def meets(self, other):
        return (
            self.left < other.right and other.left < self.right
            and self.top < other.bottom and other.top < self.bottom
        )

    def within(self, other):
        return (
            self.left >= other.left and self.right <= other.right
            and self.top >= other.top and self.bottom <= other.bottom
        )


def box_of_text(x, y, words, anchor="start"):
    width = CHARACTER * len(words)
    left = x - width if anchor == "end" else x
    return Box(left, y - TEXT, left + width, y + 3)


def boxes_of_line(x1, y1, x2, y2, above=3.0):
    """Along a line, and as far above it as a label on it reaches."""
    steps = max(1, int(math.hypot(x2 - x1, y2 - y1) / 6))
    for i in range(steps + 1):
        x, y = x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps
        yield Box(x - 3, y - above, x + 3, y + 3)


class Panel:
    """The roofline of one machine."""

    HEIGHT = 470
    LEFT, RIGHT, TOP, BOTTOM = 66, WIDTH - 20, 78, 470 - 56
    RADIUS = 5

    def __init__(self, data, offset):
        self.data = data
        self.offset = offset
        rows = data["rows"]
        self.points = list(points(rows))
        self.roofs = roofs(rows)
        self.stream = stream(rows)
        rates = [point.gflops for point in self.points] + list(self.roofs.values())
        intensities = [point.intensity for point in self.points]
        self.x_range = (min(intensities) / 2, max(intensities) * 4)
        self.y_range = (min(rates) / 1.6, max(rates) * 1.5)

    def x(self, intensity):
        low, high = map(math.log, self.x_range)
        return self.LEFT + (math.log(intensity) - low) / (high - low) * (self.RIGHT - self.LEFT)

    def y(self, gflops):
        low, high = map(math.log, self.y_range)
        share = (math.log(gflops) - low) / (high - low)
        return self.offset + self.BOTTOM - share * (self.BOTTOM - self.TOP)

    def axes(self):
        top, bottom = self.offset + self.TOP, self.offset + self.BOTTOM
        for power in range(-4, 24, 2):
            if self.x_range[0] <= 2.0**power <= self.x_range[1]:
                at = self.x(2.0**power)
                yield line(at, top, at, bottom, FAINT)
                words = f"{2**power:,}" if power >= 0 else f"1/{2**-power}"
                yield text(at, bottom + 18, words, "middle", GREY)
        for power in range(-2, 6):
            for step in (1, 2, 5):
                rate = step * 10.0**power
                if self.y_range[0] <= rate <= self.y_range[1]:
                    yield line(self.LEFT, self.y(rate), self.RIGHT, self.y(rate), FAINT)
                    yield text(self.LEFT - 8, self.y(rate) + 4, f"{rate:g}", "end", GREY)
        yield text(
            (self.LEFT + self.RIGHT) / 2, bottom + 40, "FLOP for each byte of keys and values",
            "middle", GREY,
        )
        middle = (top + bottom) / 2
        yield text(
            20, middle, "GFLOP/s, one thread", "middle", GREY,
            more=f" transform='rotate(-90 20 {middle:.1f})'",
        )

    def legend(self):
        machine = self.data["machine"]
        y = self.offset + 24
        yield text(
            self.LEFT, y, f"{machine['class']}: rate against arithmetic intensity", size=16,
            more=" font-weight='bold'",
        )
        at = self.LEFT
        for kind, (colour, words) in COLOURS.items():
            if any(point.kind == kind for point in self.points):
                yield f"<circle cx='{at + 5:.1f}' cy='{y + 24}' r='{self.RADIUS}' fill='{colour}'/>"
                yield text(at + 15, y + 28, words)
                at += 15 + 0.9 * CHARACTER * len(words) + 18

    def ceilings(self, taken):
        """The slope of the memory and the flat roofs. No label may lie on them or on theirs."""
        highest = max(self.roofs.values())
        first = max(self.x_range[0], self.y_range[0] / self.stream)
        ridge = highest / self.stream
        ends = (self.x(first), self.y(first * self.stream), self.x(ridge), self.y(highest))
        yield line(*ends, INK, 1.6)
        taken.extend(boxes_of_line(*ends, above=26))
        words = f"{number(self.stream)} GB/s from memory"
        at = math.sqrt(first * ridge)
        x, y = self.x(at), self.y(at * self.stream)
        slope = math.degrees(math.atan2(self.y(highest) - y, self.x(ridge) - x))
        yield text(
            x, y - 8, words, "middle", INK,
            more=f" transform='rotate({slope:.1f} {x:.1f} {y:.1f})'",
        )
        for name, peak in self.roofs.items():
            from_x = self.x(peak / self.stream)
            ends = (from_x, self.y(peak), self.RIGHT, self.y(peak))
            yield line(*ends, INK, 1.6)
            taken.extend(boxes_of_line(*ends))
            words = f"{number(peak)} GFLOP/s ({name})"
            yield text(from_x + 14, self.y(peak) - 7, words)
            taken.append(box_of_text(from_x + 14, self.y(peak) - 7, words))

    def place(self, point, taken):
        """Where its label goes: the nearest place, right before left, that nothing else has."""
        x, y = self.x(point.intensity), self.y(point.gflops)
        bounds = Box(self.LEFT, self.offset + self.TOP, self.RIGHT, self.offset + self.BOTTOM)
        for step in range(40):
            for side, anchor in ((1, "start"), (-1, "end")):
                for up in (1, -1) if step else (1,):
                    at = (x + side * (self.RADIUS + 6 + min(step, 3)), y + 4 - up * 4 * step)
                    box = box_of_text(*at, point.label, anchor)
                    if box.within(bounds) and not any(box.meets(other) for other in taken):
                        return at, anchor, box
        return (x + 9, y + 4), "start", box_of_text(x + 9, y + 4, point.label)

    def marks(self, taken):
        taken.extend(
            Box(x - 6, y - 6, x + 6, y + 6)
            for x, y in ((self.x(p.intensity), self.y(p.gflops)) for p in self.points)
        )
        halo = " paint-order='stroke' stroke='#ffffff' stroke-width='3'"
        labels = []
        for point in sorted(self.points, key=lambda p: (-p.gflops, p.intensity, p.label)):
            x, y = self.x(point.intensity), self.y(point.gflops)
            colour = COLOURS[point.kind][0]
            (label_x, label_y), anchor, box = self.place(point, taken)
            taken.append(box)
            if abs(label_y - 4 - y) > 9:
                end = label_x + (-2 if anchor == "start" else 2)
                yield line(x, y, end, label_y - 4, colour, 0.8)
            yield f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{self.RADIUS}' fill='{colour}'/>"
            labels.append(text(label_x, label_y, point.label, anchor, colour, more=halo))
        yield from labels

    def draw(self):
        taken = []
        return [*self.axes(), *self.legend(), *self.ceilings(taken), *self.marks(taken)]


def roofline(machines):
    """One panel for each machine's JSON, below each other."""
    drawn = [data for data in machines if any(points(data["rows"]))]
    parts = [part for i, data in enumerate(drawn) for part in Panel(data, i * Panel.HEIGHT).draw()]
    return document(max(1, len(drawn)) * Panel.HEIGHT, "Roofline of the attention kernels", parts)


# ---- Where the time goes -------------------------------------------------------------------------


def segments(bar):
    """Pairs of seconds and (colour, meaning)."""
    if bar.get("attention_s") is None:
        return [(bar["prefill_s"], UNTOLD)]
    rest = bar["prefill_s"] - bar["attention_s"]
    return [(bar["attention_s"], SHARES["attention_s"]), (rest, SHARES["rest_s"])]


def bars(group, offset):
    """One model's bars; returns the parts and their height."""
    left, right, pitch, thick = 170, WIDTH - 150, 40, 26
    longest = max(bar["prefill_s"] for bar in group["bars"])
    parts = [
        text(
            20, offset + 24, f"{group['model']}, {group['tokens']:,} tokens: seconds of prefill",
            size=16, more=" font-weight='bold'",
        ),
        text(20, offset + 44, group["machine"], colour=GREY),
    ]
    for i, bar in enumerate(group["bars"]):
        top = offset + 60 + i * pitch
        x = float(left)
        parts.append(text(left - 10, top + 18, bar["name"], "end"))
        for seconds, (colour, _) in segments(bar):
            width = seconds / longest * (right - left)
            parts.append(
                f"<rect x='{x:.1f}' y='{top}' width='{width:.1f}' height='{thick}' "
                f"fill='{colour}'/>"
            )
            words = f"{seconds:.1f}"
            if len(segments(bar)) > 1 and width > CHARACTER * len(words) + 4:
                ink = "#ffffff" if colour == SHARES["attention_s"][0] else INK
                parts.append(text(x + width / 2, top + 18, words, "middle", ink))
            x += width
        against = group["bars"][0]["prefill_s"] / bar["prefill_s"]
        parts.append(text(x + 8, top + 18, f"{bar['prefill_s']:.1f} s, {against:.1f}x"))
    return parts, 60 + len(group["bars"]) * pitch + 12


def time(groups):
    """`groups`: of end_to_end.json. The first bar of each is what the others are compared with."""
    parts, height = [], 0
    for group in groups:
        drawn, taken = bars(group, height)
        parts += drawn
        height += taken
    shown = dict.fromkeys(
        meaning for group in groups for bar in group["bars"] for _, meaning in segments(bar)
    )
    at = 20.0
    for colour, words in shown:
        parts.append(f"<rect x='{at:.1f}' y='{height}' width='12' height='12' fill='{colour}'/>")
        parts.append(text(at + 18, height + 11, words))
        at += 18 + CHARACTER * len(words) + 22
    return document(height + 28, "Where the time of a prefill goes", parts)
