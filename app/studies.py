"""Studies: taken in once by their content, listed, started, cancelled."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field
from sqlalchemy import Engine, func, or_, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from app.intake import Taken
from app.store import STATES, Result, Study, change, now

Sort = Literal["date", "score", "percentile", "volume", "flags", "status", "modality", "study"]
SORTS: dict[Sort, Any] = {
    "date": Study.created,
    "score": Study.score,
    "percentile": Study.percentile,
    "volume": Study.anomalous_ml,
    "flags": Study.n_flags,
    "status": Study.state,
    "modality": Study.modality,
    "study": Study.id,
}
PAGE = 50
MOST = 200  # studies a page


class Conflict(ValueError):
    """What was asked for does not fit the state of a study; the message says why."""


class Wanted(BaseModel):
    """Which studies to list: filters, a search, an order and a page (from 1)."""

    state: Literal["", "received", "queued", "running", "done", "refused", "failed"] = ""
    modality: str = Field(default="", max_length=40)
    flagged: Literal["", "yes", "no"] = ""
    search: str = Field(default="", max_length=100)
    sort: Sort = "date"
    order: Literal["asc", "desc"] = "desc"
    page: int = Field(default=1, ge=1, le=1_000_000)
    size: int = Field(default=PAGE, ge=1, le=MOST)


def register(
    engine: Engine, taken: Taken, data: Path, uploader: int | None, label: str = ""
) -> tuple[Study, bool]:
    """The study of a scan that was taken in, and whether it is new; the same content is one."""
    study = Study(
        id=taken.digest[:20],
        digest=taken.digest,
        subject=taken.subject or f"S-{taken.digest[:12]}",
        label=label,
        source=taken.source,
        guess=taken.guess,
        shape=" x ".join(str(n) for n in taken.shape),
        spacing=" x ".join(f"{s:.3g}" for s in taken.spacing),
        notes=taken.notes,
        uploader_id=uploader,
    )
    target = scan_path(data, study.id)
    with Session(engine, expire_on_commit=False) as session:
        known = session.get(Study, study.id)
        if known and target.is_file():
            taken.path.unlink(missing_ok=True)
            return known, False
        # the file first: a row without its scan must not be
        taken.path.replace(target)
        sync_folder(target.parent)
        if known:  # it was removed, and comes again
            known.state = "received"
            known.reason = ""
            known.label = label
            known.notes = taken.notes
            known.uploader_id = uploader
        else:
            session.add(study)
        try:
            session.commit()
        except IntegrityError:  # the same scan came in twice at once
            session.rollback()
            known = session.get(Study, study.id)
            assert known
            return known, False
        return known or study, True


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def scan_path(data: Path, study_id: str) -> Path:
    """The scan of a study: its id is hexadecimal, and never a name that somebody gave."""
    return data / "scans" / f"{study_id}.nii.gz"


def result_folder(data: Path, result_id: str) -> Path:
    """Where the files of a result lie."""
    return data / "results" / result_id


def start(engine: Engine, data: Path, study_id: str, modality: str, run: str) -> None:
    """Put a study into the queue; Conflict where it is there already, or was removed."""
    if not scan_path(data, study_id).is_file():
        raise Conflict("this study was removed; upload its scan again.")
    statement = (
        update(Study)
        .where(col(Study.id) == study_id, col(Study.state).not_in(["queued", "running"]))
        .values(
            state="queued",
            modality=modality,
            run=run,
            queued=now(),
            reason="",
            attempts=0,
            worker="",
            lease=None,
            stage="",
            progress=0.0,
        )
    )
    with Session(engine) as session:
        changed = change(session, statement)
        session.commit()
    if not changed:
        raise Conflict("this study is in the queue already.")


def cancel(engine: Engine, study_id: str) -> None:
    """Take a study out of the queue, or from its worker; an earlier result of it stands again."""
    with Session(engine) as session:
        study = session.get(Study, study_id)
        before = "done" if study and study.result_id else "received"
        statement = (
            update(Study)
            .where(col(Study.id) == study_id, col(Study.state).in_(["queued", "running"]))
            .values(state=before, worker="", lease=None, stage="", progress=0.0)
        )
        changed = change(session, statement)
        session.commit()
    if not changed:
        raise Conflict("this study is neither queued nor running.")


def remove(engine: Engine, data: Path, study_id: str) -> None:
    """Delete the files of a study; Conflict while it waits or is computed.

    Its row stays, as refused, for the opinions and the log that speak of it. The same scan can
    come in again.
    """
    statement = (
        update(Study)
        .where(col(Study.id) == study_id, col(Study.state).not_in(["queued", "running"]))
        .values(
            state="refused",
            reason=f"removed on {now():%Y-%m-%d}; opinions of it stay.",
            label="",
            notes="",
            result_id=None,
            score=None,
            percentile=None,
            anomalous_ml=None,
            n_components=None,
            n_flags=0,
            flags="",
        )
    )
    with Session(engine) as session:
        changed = change(session, statement)
        results = list(session.exec(select(Result.id).where(col(Result.study_id) == study_id)))
        session.commit()
    if not changed:
        raise Conflict("this study is queued or running; cancel it first.")
    scan_path(data, study_id).unlink(missing_ok=True)
    for result_id in results:
        shutil.rmtree(result_folder(data, result_id), ignore_errors=True)


def list_studies(session: Session, wanted: Wanted) -> tuple[list[Study], int]:
    """One page of the studies that are wanted, and how many there are in all."""
    wheres = _wheres(wanted)
    total = session.exec(select(func.count()).select_from(Study).where(*wheres)).one()
    key: Any = col(SORTS[wanted.sort])
    order = key.desc() if wanted.order == "desc" else key.asc()
    if wanted.sort in ("score", "percentile", "volume"):
        order = order.nulls_last()  # of studies without a result
    if total <= (wanted.page - 1) * wanted.size:
        return [], total
    # ids first: sorting whole rows takes several times as long
    query = (
        select(Study.id)
        .where(*wheres)
        .order_by(order, col(Study.id))
        .offset((wanted.page - 1) * wanted.size)
        .limit(wanted.size)
    )
    ids = list(session.exec(query))
    rows = {study.id: study for study in session.exec(select(Study).where(col(Study.id).in_(ids)))}
    return [rows[study_id] for study_id in ids], total


def _wheres(wanted: Wanted) -> list[Any]:
    wheres: list[Any] = []
    if wanted.state:
        wheres.append(col(Study.state) == wanted.state)
    if wanted.modality:
        wheres.append(col(Study.modality) == wanted.modality)
    if wanted.flagged:
        some = col(Study.n_flags) > 0
        wheres.append(some if wanted.flagged == "yes" else ~some)
    search = wanted.search.replace("\0", "").strip()
    if search:
        fields = (Study.id, Study.subject, Study.label)
        wheres.append(or_(*(col(f).icontains(search, autoescape=True) for f in fields)))
    return wheres


def count_states(session: Session) -> dict[str, int]:
    """How many studies are in each state."""
    rows = session.exec(select(Study.state, func.count()).group_by(Study.state))
    return dict.fromkeys(STATES, 0) | {state: count for state, count in rows}


def neighbours(session: Session, study: Study) -> tuple[str | None, str | None]:
    """The ids of the next newer and the next older study."""
    newer = select(Study.id).where(col(Study.created) > study.created).order_by(col(Study.created))
    older = (
        select(Study.id)
        .where(col(Study.created) < study.created)
        .order_by(col(Study.created).desc())
    )
    return session.exec(newer.limit(1)).first(), session.exec(older.limit(1)).first()
