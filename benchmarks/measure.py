"""What every benchmark shares: a row of the table, runs in turn, memory."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    """A figure and its peer's; `more` where a higher value is better."""
    ratio = (
        None
        if not peer_value or not value
        else (value / peer_value if more else peer_value / value)
    )
    shown = {"value": value, "peer_value": peer_value, "ratio": ratio}
    made = {
        "name": name,
        "unit": unit,
        "peer": peer,
        **{k: None if v is None else float(f"{v:.4g}") for k, v in shown.items()},
    }
    print(
        f"{name}: {made['value']} {unit}"
        + (f"; {peer}: {made['peer_value']}; ratio {made['ratio']}" if peer else ""),
        flush=True,
    )
    return {k: made[k] for k in ("name", "value", "unit", "peer", "peer_value", "ratio")}


def seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def laps() -> tuple[dict[str, float], Callable[[str], None]]:
    """Seconds by name, and a function that enters there what has passed since the last one."""
    taken, clock = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        taken[name], clock = now - clock, now

    return taken, lap


def alternate(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each of several functions, called in turn."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            taken[name].append(seconds(function))
    return {name: statistics.median(values) for name, values in taken.items()}


def resident_mb() -> float:
    """Memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The highest memory of this process while the block runs, in MB, as the one entry of a list."""
    peak, done = [resident_mb()], threading.Event()

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


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of loops that are only timed."""
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()):
        yield
