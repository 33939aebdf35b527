# Copyright The Coppice authors. SPDX-License-Identifier: Apache-2.0
"""Runs the demonstration's commands and shows how far it is.

On a terminal one line is redrawn: a bar, the step, its time and the newest word of the command. In a
log each step is one plain line when it begins.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

BAR = 20
REDRAW_SECONDS = 0.5


class Progress:
    def __init__(self, steps):
        self.steps = steps
        self.done = 0
        self.terminal = sys.stderr.isatty()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.clear()

    def clear(self):
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def run(self, label, command):
        """The JSON object that the command prints last. Ends the program when the command fails."""
        if not self.terminal:
            print(f"{self.done + 1}/{self.steps} {label}", file=sys.stderr, flush=True)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as messages:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=messages
            )
            try:
                self.wait(process, label, messages)
            except KeyboardInterrupt:
                process.wait()
                self.clear()
                sys.exit(130)
            out.seek(0)
            lines = out.read().decode("utf-8", "replace").strip().splitlines()
            if process.returncode != 0 or not lines:
                self.clear()
                print(newest_line(messages) or "error: no answer", file=sys.stderr)
                print(f"error: {label} failed: {' '.join(command)}", file=sys.stderr)
                sys.exit(1)
        self.done += 1
        return json.loads(lines[-1])

    def wait(self, process, label, messages):
        began = time.monotonic()
        while True:
            try:
                process.wait(REDRAW_SECONDS)
                return
            except subprocess.TimeoutExpired:
                if self.terminal:
                    self.draw(label, time.monotonic() - began, newest_line(messages))

    def draw(self, label, seconds, message):
        full = BAR * self.done // self.steps
        bar = "#" * full + "." * (BAR - full)
        line = f"[{bar}] {self.done + 1}/{self.steps} {label}, {seconds:.0f} s  {message}"
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\033[K{line[:width]}", end="", file=sys.stderr, flush=True)


def newest_line(file):
    """The last words in a file that another process writes."""
    size = os.fstat(file.fileno()).st_size
    tail = os.pread(file.fileno(), 2000, max(0, size - 2000)).decode("utf-8", "replace")
    words = [line.strip() for line in tail.replace("\r", "\n").splitlines() if line.strip()]
    return words[-1] if words else ""
