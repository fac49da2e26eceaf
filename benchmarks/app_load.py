"""Twenty readers in the app while a hundred scans come in: `python -m benchmarks.app_load`.

A server of its own on loopback, SQLite, scans of 1 mm made from the ICBM152 brain, and two workers
whose detector is a stand-in of half a second: what is measured is the app, and not the run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np

from benchmarks.app_kills import Worker
from benchmarks.app_server import Server
from pipelines import cli

WORKERS = 2
THINKS = 1.0  # seconds that a reader looks before the next click


class Clock:
    """Seconds by what was asked for, from many threads; and what went wrong."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.faults: list[str] = []
        self.lock = threading.Lock()

    def ask(self, client: httpx.Client, name: str, method: str, path: str, **more: object) -> None:
        """One request; an answer that is not 2xx is a fault."""
        begin = time.perf_counter()
        try:
            answer = client.request(method, path, **more)  # type: ignore[arg-type]
            fault = "" if answer.is_success else f"{name}: {answer.status_code}"
        except httpx.HTTPError as error:
            fault = f"{name}: {type(error).__name__}"
        with self.lock:
            self.seconds[name].append(time.perf_counter() - begin)
            if fault:
                self.faults.append(fault)


def made_scans(count: int) -> list[bytes]:
    """The ICBM152 brain at 1 mm with noise, as large as a real scan; no two are alike.

    They differ in the lowest slice alone: the rest is packed once, as a second part of the file.
    """
    from nilearn.datasets import load_mni152_template

    template = load_mni152_template(resolution=1)
    rng = np.random.default_rng(0)
    brain = template.get_fdata(dtype=np.float32) * 1000
    noisy = brain + rng.normal(0, 5, brain.shape) * (brain > 0)
    image = nib.Nifti1Image(noisy.astype(np.int16), template.affine)
    whole = image.to_bytes()
    begin = nib.Nifti1Header.single_vox_offset
    slice_end = begin + 2 * image.shape[0] * image.shape[1]
    rest = gzip.compress(whole[slice_end:], 1)
    scans = []
    for _ in range(count):
        lowest = rng.integers(0, 20, (slice_end - begin) // 2).astype(np.int16)
        scans.append(gzip.compress(whole[:begin] + lowest.tobytes(), 1) + rest)
    return scans


def read(address: str, clock: Clock, over: threading.Event, number: int) -> None:
    """A reader: the list, a study, its files, an opinion; again until it is over."""
    rng = np.random.default_rng(number)
    client = httpx.Client(base_url=address, timeout=60, headers={"Accept": "text/html"})
    # a program of one's own, as the cookie of a page would ask for its token
    program = httpx.Client(base_url=address, timeout=60)
    while not over.wait(rng.uniform(0, 2 * THINKS)):
        clock.ask(client, "list", "GET", "/?sort=score")
        done = program.get("/api/studies?state=done&size=200").json()["studies"]
        if not done:
            continue
        study = done[int(rng.integers(len(done)))]["id"]
        clock.ask(client, "study page", "GET", f"/studies/{study}")
        for name in ("scan", "map", "mask"):
            clock.ask(program, f"{name}.nii.gz", "GET", f"/api/studies/{study}/{name}.nii.gz")
        said = {"kind": "scan", "value": "uncertain", "seconds": 5}
        clock.ask(program, "opinion", "POST", f"/api/studies/{study}/opinions", json=said)


def send(address: str, clock: Clock, scans: list[bytes]) -> None:
    """Sends scans, one after the other."""
    client = httpx.Client(base_url=address, timeout=300)
    for scan in scans:
        files = [("file", ("scan.nii.gz", scan))]
        more = {"files": files, "data": {"run": "t1"}}
        clock.ask(client, "upload", "POST", "/api/studies", **more)


def measure(readers: int, uploads: int, senders: int) -> dict:
    """The whole trial; seconds of each kind of request, and how many failed."""
    clock = Clock()
    scans = made_scans(uploads)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        with Server(data, workers=0) as server:
            workers = [Worker(data) for _ in range(WORKERS)]
            over = threading.Event()
            reading = [
                threading.Thread(target=read, args=(server.address, clock, over, i))
                for i in range(readers)
            ]
            sending = [
                threading.Thread(target=send, args=(server.address, clock, scans[i::senders]))
                for i in range(senders)
            ]
            begin = time.perf_counter()
            for thread in reading + sending:
                thread.start()
            for thread in sending:
                thread.join()
            came_in = time.perf_counter() - begin
            while httpx.get(f"{server.address}/api/queue", timeout=60).json():
                time.sleep(0.5)
            all_done = time.perf_counter() - begin
            over.set()
            for thread in reading:
                thread.join()
            for worker in workers:
                worker.kill()
            total = httpx.get(f"{server.address}/api/studies?state=done").json()["total"]
    return {
        "readers": readers,
        "uploads": uploads,
        "bytes of a scan": len(scans[0]),
        "CPU cores": os.cpu_count(),
        "load of the machine at the end": round(os.getloadavg()[0], 1),
        "all came in after s": round(came_in, 1),
        "all were done after s": round(all_done, 1),
        "done": total,
        "faults": dict(Counter(clock.faults)),
        "requests": {name: summary(times) for name, times in sorted(clock.seconds.items())},
    }


def summary(times: list[float]) -> dict[str, float]:
    """How many requests, and their seconds: the middle, one in twenty, the slowest."""
    return {
        "count": len(times),
        "median s": round(float(np.median(times)), 3),
        "95 % within s": round(float(np.quantile(times, 0.95)), 3),
        "slowest s": round(max(times), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.app_load", description=__doc__)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--uploads", type=int, default=100)
    parser.add_argument("--senders", type=int, default=4, help="uploads at the same time")
    parser.add_argument("--out", type=Path, default=Path("docs/results/app_load.json"))
    arguments = parser.parse_args()
    found = measure(arguments.readers, arguments.uploads, arguments.senders)
    text = json.dumps(found, indent=1)
    arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    cli.leave(main)
