"""The worker processes of a server: started with it, started again when they end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from app.settings import Settings, shared_arguments
from app.worker import PARENT

PAUSE = 1.0  # seconds between two looks
PATIENCE = 5.0  # seconds that a worker has to hand its study back


class Workers:
    """Keeps a number of worker processes alive until `stop`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.processes: list[subprocess.Popen] = []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        """Start the workers, and the thread that looks after them."""
        self.processes = [self._new() for _ in range(self.settings.workers)]
        self.thread.start()

    def stop(self) -> None:
        """End the workers: they hand their studies back, or are killed."""
        self.stopping.set()
        for process in self.processes:
            process.terminate()
        end = time.monotonic() + PATIENCE
        for process in self.processes:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _new(self) -> subprocess.Popen:
        line = [sys.executable, "-m", "app.worker", *shared_arguments(self.settings)]
        return subprocess.Popen(line, env={**os.environ, PARENT: str(os.getpid())})

    def _keep(self) -> None:
        while not self.stopping.wait(PAUSE):
            for i, process in enumerate(self.processes):
                if process.poll() is not None and not self.stopping.is_set():
                    self.processes[i] = self._new()
