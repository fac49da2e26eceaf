"""A server of the app on loopback as a process of its own, for the benchmarks of the app."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx

PATIENCE = 60.0  # seconds until a server must answer


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`python -m app.main` without login, until the end of a `with`, or of `kill`."""

    def __init__(self, data: Path, workers: int = 0, database: str = "", solo: bool = True) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.line = [sys.executable, "-m", "app.main", "--data", str(data)]
        self.line += ["--port", str(self.port), "--workers", str(workers)]
        self.line += ["--solo"] if solo else []
        self.line += ["--database", database] if database else []
        self.log = open(data / "server.log", "ab")  # noqa: SIM115 (closed at the end)
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        self.log.close()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            self.line, stdout=self.log, stderr=self.log, env=environment
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                httpx.get(f"{self.address}/login")
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise RuntimeError("the server does not answer; see server.log")

    def kill(self) -> None:
        """Kill the server as a power cut would: it has no time to tidy up."""
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
