"""Kill the app's server and worker at random moments, and count what is lost.

`python -m benchmarks.app_kills`: 50 times `kill -9`, while scans come in and opinions are given.
What the server had answered must be there at the end: every scan, every opinion, every result
that was seen as finished, and each with the figures of its own scan. `--real` lets the ready-made
run t1 score `--scans` real scans, and kills its workers.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np

from benchmarks.app_server import Server
from pipelines import cli

SHAPE = (24, 20, 16)
STEP = 0.05  # seconds between two things that the client does
PATIENCE = 3600.0  # seconds for the queue to run dry at the end


@dataclass
class Told:
    """What the server has answered: scans by study, opinions, finished results."""

    scores: dict[str, float | None] = field(default_factory=dict)
    opinions: list[tuple[str, str]] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)
    unanswered: int = 0


class Client:
    """Uploads, looks and gives opinions; what is not answered does not count, and is sent again."""

    def __init__(self, address: str, scans: Sequence[Path], run: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=20)
        self.scans = scans
        self.run = run
        self.sent = 0
        self.told = Told()

    def step(self, uploads: bool = True) -> None:
        """One upload, a look at what is finished, and an opinion on it."""
        try:
            if uploads:
                self._upload()
            self._look()
        except httpx.HTTPError:  # the server was killed
            self.told.unanswered += 1

    def _upload(self) -> None:
        if self.scans and self.sent >= len(self.scans):
            return
        score = None
        if self.scans:
            content = self.scans[self.sent].read_bytes()
        else:
            content, score = made_scan(self.sent)
        files = [("file", ("scan.nii", content))]
        answer = self.http.post("/api/studies", files=files, data={"run": self.run})
        answer.raise_for_status()
        self.told.scores[answer.json()[0]["study"]["id"]] = score
        self.sent += 1

    def _look(self) -> None:
        done = self.http.get("/api/studies?state=done&size=200&sort=date").raise_for_status().json()
        for study in done["studies"]:
            new = study["id"] not in self.told.results
            self.told.results.setdefault(study["id"], study["result_id"])
            if new:
                comment = f"opinion {len(self.told.opinions)}"
                said = {"kind": "scan", "value": "agree", "comment": comment}
                path = f"/api/studies/{study['id']}/opinions"
                self.http.post(path, json=said).raise_for_status()
                self.told.opinions.append((study["id"], comment))

    def waiting(self) -> int:
        """How many studies are not finished; -1 where the server does not answer."""
        try:
            return len(self.http.get("/api/queue").raise_for_status().json())
        except httpx.HTTPError:
            return -1


def made_scan(number: int) -> tuple[bytes, float]:
    """A small scan that no other is like, and the score that belongs to it."""
    voxels = np.random.default_rng(number).integers(0, 1000, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(voxels, np.diag([2.0, 2.5, 3.0, 1]))
    stream = io.BytesIO()
    image.file_map["image"].fileobj = stream
    image.to_file_map(image.file_map)
    return stream.getvalue(), float(voxels.mean())


class Worker:
    """A stand-in worker as a process of its own."""

    def __init__(self, data: Path) -> None:
        self.line = [sys.executable, "-m", "benchmarks.app_worker", "--data", str(data)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.line)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def children(pid: int) -> list[int]:
    """The processes that a process has started (Linux)."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()]


def kill_one(server: Server, worker: Worker | None, rng: random.Random) -> str:
    """Kill the server or a worker, and start it again where nobody else does."""
    if rng.random() < 0.5:
        server.kill()
        time.sleep(rng.uniform(0, 0.5))
        server.start()
        return "server"
    if worker:
        worker.kill()
        time.sleep(rng.uniform(0, 0.5))
        worker.start()
        return "worker"
    assert server.process
    for pid in children(server.process.pid):
        os.kill(pid, signal.SIGKILL)
    return "worker"


def click(client: Client, over: threading.Event) -> None:
    """What a client does, in a thread of its own: so a kill meets requests halfway."""
    while not over.is_set():
        client.step()
        time.sleep(STEP)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something holds; what does not by then is counted as lost."""
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)


def run(kills: int, scans: Sequence[Path], pause: tuple[float, float], seed: int) -> dict:
    """The whole trial; gives what was killed, what was answered, and what of it is lost."""
    rng = random.Random(seed)
    killed: dict[str, int] = {"server": 0, "worker": 0}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        with Server(data, workers=1 if scans else 0) as server:
            worker = None if scans else Worker(data)
            client = Client(server.address, scans, "t1")
            over = threading.Event()
            clicking = threading.Thread(target=click, args=(client, over))
            clicking.start()
            for _ in range(kills):
                time.sleep(rng.uniform(*pause))
                killed[kill_one(server, worker, rng)] += 1
            wait_for(lambda: not scans or client.sent == len(scans))
            over.set()
            clicking.join()
            wait_for(lambda: client.waiting() == 0)
            client.step(uploads=False)
            lost = losses(client, data)
            if worker:
                worker.kill()
        told = client.told
        return {
            "killed": killed,
            "answered": {
                "scans": len(told.scores),
                "results": len(told.results),
                "opinions": len(told.opinions),
            },
            "requests without an answer": told.unanswered,
            "lost": lost,
        }


def losses(client: Client, data: Path) -> dict[str, int]:
    """What was answered and is not there, or not as it should be."""
    http = client.http
    told = client.told
    lost = {"scans": 0, "unfinished": 0, "results": 0, "wrong scores": 0, "opinions": 0}
    for study_id, score in told.scores.items():
        answer = http.get(f"/api/studies/{study_id}")
        lost["scans"] += answer.status_code != 200
        study = answer.json()
        if study.get("state") != "done":
            lost["unfinished"] += 1
            continue
        if score is not None:
            lost["wrong scores"] += abs(study["score"] - score) > 1e-6
        for name in ("scan", "map", "mask"):
            content = http.get(f"/api/studies/{study_id}/{name}.nii.gz").content
            lost["results"] += not is_whole(content)
    for study_id, result in told.results.items():
        report = http.get(f"/api/studies/{study_id}/report.json?result={result}")
        lost["results"] += report.status_code != 200
    for study_id, comment in told.opinions:
        said = http.get(f"/api/studies/{study_id}/opinions").json()
        lost["opinions"] += comment not in [one["comment"] for one in said]
    with sqlite3.connect(data / "norma.db") as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        (twice,) = connection.execute(
            "SELECT count(*) FROM (SELECT study_id FROM results GROUP BY 1 HAVING count(*) > 1)"
        ).fetchone()
    return lost | {"damaged data base": int(verdict != "ok"), "finished twice": twice}


def is_whole(content: bytes) -> bool:
    """Whether a file is a NIfTI that can be read to its end."""
    try:
        np.asarray(nib.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(content))).dataobj)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError):
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.app_kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="T1 scans, for the run t1")
    parser.add_argument("--out", type=Path, default=Path("docs/results/app_kills.json"))
    arguments = parser.parse_args()
    pause = (5.0, 40.0) if arguments.real else (0.1, 3.0)
    found = run(arguments.kills, arguments.real, pause, arguments.seed)
    text = json.dumps(found, indent=1)
    arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    cli.leave(main)
