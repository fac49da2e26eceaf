"""What every benchmark shares: a row of the table, runs in turn, memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import ROOT

Row = dict[str, Any]
NOTES: list[str] = []


def row(
    name: str,
    value: float,
    unit: str,
    peer: str = "",
    peer_value: float | None = None,
    more: bool = False,
) -> Row:
    """Return a figure beside its peer's, and print it; `more` where a higher value is better.

    `ratio` says how many times better Norma is; None without a peer.
    """
    ratio = None
    if value and peer_value:
        ratio = value / peer_value if more else peer_value / value
    figure = {
        "name": name,
        "value": _four_digits(value),
        "unit": unit,
        "peer": peer,
        "peer_value": _four_digits(peer_value),
        "ratio": _four_digits(ratio),
    }
    text = f"{name}: {figure['value']} {unit}"
    if peer:
        text += f"; {peer}: {figure['peer_value']}; ratio {figure['ratio']}"
    print(text, flush=True)
    return figure


def _four_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def seconds(function: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def laps() -> tuple[dict[str, float], Callable[[str], None]]:
    """Return seconds by name, and a function that enters what has passed since its last call."""
    taken: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        taken[name] = now - clock
        clock = now

    return taken, lap


def alternate(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each of several functions, called in turn.

    In turn, so that a change of the machine's load meets all of them.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            taken[name].append(seconds(function))
    return {name: statistics.median(values) for name, values in taken.items()}


def exponent(counts: Sequence[int], values: Sequence[float]) -> float:
    """Return the power of the count that fits the values best, least squares of logarithms."""
    return float(np.polyfit(np.log(counts), np.log(values), 1)[0])


def own_process(code: str, *arguments: str) -> Any:
    """Return what Python code prints last, as JSON, from a process of its own.

    SystemExit with what it wrote to stderr where it fails.
    """
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return json.loads(ended.stdout.splitlines()[-1])


def resident_mb() -> float:
    """Return the memory of this process in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yield a list whose one entry is the highest memory in MB while the block runs."""
    peak = [resident_mb()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], resident_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Show no progress bars of loops that are only timed."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
