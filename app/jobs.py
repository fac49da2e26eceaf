"""The queue: who computes which study, and how a killed worker's study is taken again.

A worker holds a study by a lease that it renews while it lives. A result counts from the moment
that its row is committed; its files are on the disk by then. So nothing that was finished is lost,
and what was not is computed again.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, and_, or_, update
from sqlmodel import Session, col, select

from app.store import Audit, Result, Study, change, now

LEASE = timedelta(seconds=60)  # how long a silent worker is believed to live
BEAT = 10.0  # seconds between two signs of life
ATTEMPTS = 5  # a study that kills its worker so often is not tried again


class Lost(Exception):
    """The study is no longer this worker's: it was cancelled, or another one took it."""


@dataclass(frozen=True)
class Job:
    """A study that a worker holds: what to compute, and under which name it holds it."""

    study_id: str
    run: str
    modality: str
    notes: str
    worker: str


@dataclass(frozen=True)
class Scored:
    """What a detector gives: the report as JSON, the digest of all that shaped it, the seconds."""

    report: dict[str, Any]
    run_digest: str
    seconds: float


Say = Callable[[str, float], None]
"""Tells the stage that a detector is in, and the share of its work that is done."""

Detect = Callable[[Path, Job, Path, Say], Scored]
"""Scores the scan at a path, writes its files into a folder, tells its stages."""


def worker_name() -> str:
    """This process, by machine and number."""
    return f"{socket.gethostname()}:{os.getpid()}"


def claim(engine: Engine, worker: str) -> Job | None:
    """The longest waiting study, now this worker's; None where none waits.

    A study whose worker has been silent for too long waits again.
    """
    free_dead(engine)
    give_up(engine)
    time = now()
    free = or_(
        col(Study.state) == "queued",
        and_(col(Study.state) == "running", col(Study.lease) < time),
    )
    with Session(engine) as session:
        first = session.exec(select(Study.id).where(free).order_by(col(Study.queued)).limit(1))
        study_id = first.first()
        if study_id is None:
            return None
        # asked again in one statement: another worker may have been quicker
        took = (
            update(Study)
            .where(col(Study.id) == study_id, free)
            .values(
                state="running",
                worker=worker,
                lease=time + LEASE,
                started=time,
                attempts=Study.attempts + 1,
                stage="",
                progress=0.0,
            )
        )
        changed = change(session, took)
        session.commit()
        if not changed:
            return None
        study = session.get_one(Study, study_id)
        return Job(study.id, study.run, study.modality, study.notes, worker)


def free_dead(engine: Engine) -> None:
    """End the leases of workers of this machine that are no more: nobody need wait for them."""
    running = select(Study.worker).where(col(Study.state) == "running").distinct()
    with Session(engine) as session:
        workers = list(session.exec(running))
    for worker in workers:
        host, _, pid = worker.rpartition(":")
        if host == socket.gethostname() and pid.isdigit() and not is_alive(int(pid)):
            over = update(Study).where(col(Study.state) == "running", col(Study.worker) == worker)
            with Session(engine) as session:
                session.execute(over.values(lease=now() - LEASE))
                session.commit()


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def give_up(engine: Engine) -> None:
    """A study that has killed its worker again and again fails."""
    hopeless = and_(
        col(Study.state) == "running",
        col(Study.lease) < now(),
        col(Study.attempts) >= ATTEMPTS,
    )
    reason = f"its worker ended {ATTEMPTS} times without a word; see the log of the worker."
    values = {"state": "failed", "reason": reason, "worker": "", "lease": None, "finished": now()}
    with Session(engine) as session:
        # looked up first: a change, even of no row, makes other workers wait on SQLite
        if session.exec(select(Study.id).where(hopeless).limit(1)).first():
            session.execute(update(Study).where(hopeless).values(**values))
            session.commit()


def is_forsaken(session: Session) -> bool:
    """Whether a study has waited for longer than a lease while no worker computes anything."""
    waits = select(Study.id).where(col(Study.state) == "queued", col(Study.queued) < now() - LEASE)
    computed = select(Study.id).where(col(Study.state) == "running", col(Study.lease) > now())
    some_wait = session.exec(waits.limit(1)).first() is not None
    return some_wait and session.exec(computed.limit(1)).first() is None


def still_mine(job: Job) -> Any:
    """The condition that a worker's study is still its own."""
    return and_(
        col(Study.id) == job.study_id,
        col(Study.state) == "running",
        col(Study.worker) == job.worker,
    )


def beat(engine: Engine, job: Job, stage: str | None = None, progress: float = 0.0) -> None:
    """A sign of life, and maybe a new stage; Lost where the study is no longer this worker's."""
    values: dict[str, Any] = {"lease": now() + LEASE}
    if stage is not None:
        values |= {"stage": stage, "progress": progress}
    with Session(engine) as session:
        changed = change(session, update(Study).where(still_mine(job)).values(**values))
        session.commit()
    if not changed:
        raise Lost


def finish(engine: Engine, job: Job, scored: Scored, folder: Path) -> None:
    """Commit a result whose files are in `folder`; Lost where the study is another's by now."""
    report = scored.report
    flags = [*job.notes.splitlines(), *report.get("flags", [])]
    result = Result(
        id=folder.name,
        study_id=job.study_id,
        run=job.run,
        run_digest=scored.run_digest,
        threshold=report.get("threshold"),
        seconds=scored.seconds,
        report=json.dumps(report | {"flags": flags}),
    )
    done = {
        "state": "done",
        "reason": "",
        "finished": now(),
        "worker": "",
        "lease": None,
        "stage": "",
        "progress": 1.0,
        "result_id": result.id,
        "score": report.get("score"),
        "percentile": report.get("percentile"),
        "anomalous_ml": (report.get("anomalous_mm3") or 0) / 1000,
        "n_components": report.get("n_components"),
        "n_flags": len(flags),
        "flags": "\n".join(flags),
    }
    with Session(engine) as session:
        if not change(session, update(Study).where(still_mine(job)).values(**done)):
            session.rollback()
            raise Lost
        session.add(result)
        session.add(Audit(who="worker", action="done", about=job.study_id))
        session.commit()


def end(engine: Engine, job: Job, state: str, reason: str) -> None:
    """A study that could not be scored: refused for what it is, or failed by what went wrong."""
    values = {
        "state": state,
        "reason": reason,
        "finished": now(),
        "worker": "",
        "lease": None,
        "stage": "",
        "progress": 0.0,
    }
    with Session(engine) as session:
        if change(session, update(Study).where(still_mine(job)).values(**values)):
            session.add(Audit(who="worker", action=state, about=job.study_id))
        session.commit()


def hand_back(engine: Engine, job: Job) -> None:
    """A worker that is told to end leaves its study to the next one; the attempt does not count."""
    values = {"state": "queued", "worker": "", "lease": None, "stage": "", "progress": 0.0}
    with Session(engine) as session:
        session.execute(
            update(Study).where(still_mine(job)).values(**values, attempts=Study.attempts - 1)
        )
        session.commit()


def new_folder(data: Path) -> Path:
    """A folder for the files of one result."""
    folder = data / "results" / uuid.uuid4().hex
    folder.mkdir(parents=True)
    return folder


def sweep(engine: Engine, data: Path, older: timedelta = timedelta(days=1)) -> None:
    """Remove what a killed server left: files that came in halfway, and results without a row.

    A folder of results may be a worker's that still lives, so only old ones go.
    """
    with Session(engine) as session:
        known = set(session.exec(select(Result.id)))
    limit = (now() - older).timestamp()
    for folder in (data / "results").glob("*"):
        if folder.name not in known and folder.stat().st_mtime < limit:
            shutil.rmtree(folder, ignore_errors=True)
    for path in (data / "incoming").glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
