"""How long a page of the app's list takes with 10,000 studies: `python -m benchmarks.app_list`.

A server of its own on loopback, SQLite in a temporary folder or the data base that is named. Each
page is asked for 20 times; the slowest counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
from sqlmodel import Session

from app.store import Study, now, open_current
from benchmarks.app_server import Server
from pipelines import cli

PAGES = {
    "first page": "/",
    "last page": "/?page=200",
    "sorted by score": "/?sort=score",
    "sorted by status, page 100": "/?sort=status&order=asc&page=100",
    "search that meets 1 in 16": "/?search=P-a",
    "search that meets none": "/?search=nothing-like-this",
    "with flags, CT, done": "/?flagged=yes&modality=ct&state=done",
    "API, 200 a page": "/api/studies?size=200&sort=percentile",
}


def fill(address: str, count: int, seed: int = 0) -> None:
    """Studies as they stand after a year: most are done, some wait or were refused."""
    rng = np.random.default_rng(seed)
    engine = open_current(address)
    begin = now() - timedelta(days=365)
    with Session(engine) as session:
        for i in range(count):
            digest = rng.bytes(32).hex()
            state = str(rng.choice(["done", "queued", "refused"], p=[0.94, 0.03, 0.03]))
            done = state == "done"
            flags = int(rng.integers(0, 4)) if done else 0
            session.add(
                Study(
                    id=digest[:20],
                    digest=digest,
                    subject=f"P-{digest[20:32]}",
                    modality=str(rng.choice(["ct", "t1"])),
                    run="t1",
                    state=state,
                    created=begin + timedelta(minutes=50 * i),
                    score=float(rng.gamma(4)) if done else None,
                    percentile=float(rng.uniform(0, 100)) if done else None,
                    anomalous_ml=float(rng.exponential(5)) if done else None,
                    n_components=int(rng.integers(0, 9)) if done else None,
                    n_flags=flags,
                    flags="\n".join(["noise is unlike the training scans"] * flags),
                    reason="" if done else "the brain is too small." * (state == "refused"),
                )
            )
        session.commit()


def measure(count: int, repeats: int, database: str = "") -> dict[str, dict[str, float]]:
    """Milliseconds of each page: the middle and the slowest of `repeats`."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        address = database or f"sqlite:///{data / 'norma.db'}"
        fill(address, count)
        with Server(data, workers=0, database=database) as server:
            client = httpx.Client(base_url=server.address, headers={"Accept": "text/html"})
            client.get("/")
            for name, path in PAGES.items():
                times = []
                for _ in range(repeats):
                    begin = time.perf_counter()
                    client.get(path).raise_for_status()
                    times.append(1000 * (time.perf_counter() - begin))
                found[name] = {"median_ms": float(np.median(times)), "slowest_ms": max(times)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.app_list", description=__doc__)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--database", default="", help="an empty data base; default: SQLite")
    parser.add_argument("--out", type=Path, default=Path("docs/results/app_list.json"))
    arguments = parser.parse_args()
    pages = measure(arguments.studies, arguments.repeats, arguments.database)
    kind = "Postgres" if arguments.database else "SQLite"
    result = {"studies": arguments.studies, "data base": kind, "pages": pages}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, times in pages.items():
        print(f"{name:30} {times['median_ms']:7.1f} ms, slowest {times['slowest_ms']:7.1f} ms")


if __name__ == "__main__":
    cli.leave(main)
