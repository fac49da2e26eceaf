"""The inbox: a folder of the admin's that is looked at for new scans. Nothing in it is changed.

A file, or a folder of DICOM, is taken once its size has stood still between two looks. What was
looked at is known by a keyed digest of name, size and time, so that no name is stored.
"""

from __future__ import annotations

import hmac
import logging
import threading
from pathlib import Path

from sqlalchemy import Engine
from sqlmodel import Session

from app import intake, studies
from app.settings import Settings
from app.store import Seen
from app.users import audit

PAUSE = 10.0  # seconds between two looks

log = logging.getLogger("norma.app")


class Inbox:
    """Looks into the inbox until `stop`."""

    def __init__(self, settings: Settings, engine: Engine, secret: bytes) -> None:
        assert settings.inbox
        self.folder = settings.inbox
        self.settings = settings
        self.engine = engine
        self.secret = secret
        self.before: set[str] = set()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(timeout=30)

    def _watch(self) -> None:
        while True:
            try:
                self.look()
            except FileNotFoundError as error:  # a folder that is away for a moment, say
                log.warning("the inbox could not be read: %s", error)
            except Exception:
                log.exception("the inbox could not be read")
            if self.stopping.wait(PAUSE):
                return

    def look(self) -> int:
        """Take what has stood still since the last look; how many entries were taken."""
        entries = {self.key(path): path for path in sorted(self.folder.iterdir())}
        with Session(self.engine) as session:
            new = {key: path for key, path in entries.items() if not session.get(Seen, key)}
        ready = [key for key in new if key in self.before]
        self.before = set(new)
        for key in ready:
            self.take(key, new[key])
        return len(ready)

    def key(self, path: Path) -> str:
        """A digest that another name, size or time changes; it tells none of them."""
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        told = [path.name]
        for file in files:
            status = file.stat()
            told.append(f"{status.st_size} {status.st_mtime_ns}")
        return hmac.digest(
            self.secret, "\n".join(told).encode("utf-8", "surrogateescape"), "sha256"
        ).hex()

    def take(self, key: str, path: Path) -> None:
        """Take one entry; what became of it is remembered, without its name."""
        try:
            if path.is_dir():
                taken, _ = intake.from_folder(path, "the folder", self.settings, self.secret)
            else:
                taken, _ = intake.take(path, path.name, self.settings, self.secret)
            outcome = f"{len(taken)} scans"
        except intake.Refused as error:
            taken = []
            outcome = str(error).replace(path.name, "the file")
        for one in taken:
            studies.register(self.engine, one, self.settings.data, None)
        with Session(self.engine) as session:
            session.merge(Seen(id=key, outcome=outcome))
            audit(session, "inbox", "inbox", outcome)
            session.commit()
