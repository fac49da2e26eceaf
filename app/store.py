"""The tables of the app, and the data base: SQLite or Postgres, by one set of statements.

Times are UTC. Opinions and the audit log are only ever added to: triggers of the
data base refuse to change them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from alembic import command
from alembic.config import Config
from sqlalchemy import Column, CursorResult, Engine, Index, Text, Update, event
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlmodel import Field, Session, SQLModel, create_engine

MIGRATIONS = Path(__file__).parent / "migrations"

State = Literal["received", "queued", "running", "done", "refused", "failed"]
STATES: tuple[State, ...] = ("received", "queued", "running", "done", "refused", "failed")
Role = Literal["reader", "reviewer", "admin"]
ROLES: tuple[Role, ...] = ("reader", "reviewer", "admin")  # each may do what those before it may


def now() -> datetime:
    """The time, UTC."""
    return datetime.now(UTC)


class StoreError(ValueError):
    """A data base that cannot be used; the message says why."""


def _text(default: str = "") -> Any:
    return Field(default=default, sa_column=Column(Text, nullable=False))


class User(SQLModel, table=True):
    """Somebody who may log in. `password` is an argon2id hash; "" for nobody's."""

    __tablename__ = "users"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True, max_length=64)
    password: str = ""
    role: str = "reader"
    language: str = "en"
    active: bool = True
    created: datetime = Field(default_factory=now)


class Login(SQLModel, table=True):
    """A session: `id` is the SHA-256 of what the cookie holds."""

    __tablename__ = "logins"

    id: str = Field(primary_key=True)
    user_id: int = Field(foreign_key="users.id", index=True)
    created: datetime = Field(default_factory=now)
    expires: datetime
    revoked: datetime | None = None
    address: str = ""


class Token(SQLModel, table=True):
    """What a program sends in place of a login: `digest` is its SHA-256."""

    __tablename__ = "tokens"

    id: int | None = Field(default=None, primary_key=True)
    user_id: int = Field(foreign_key="users.id", index=True)
    name: str = Field(max_length=64)
    digest: str = Field(unique=True)
    created: datetime = Field(default_factory=now)
    expires: datetime | None = None
    revoked: datetime | None = None


class Study(SQLModel, table=True):
    """One scan by its content, where it stands in the queue, and the figures of its result.

    received -> queued -> running -> done | refused(reason) | failed(reason)

    id: the first 20 digits of `digest`, which is of voxels and geometry.
    subject: a pseudonym; two scans of one DICOM patient share it.
    label: what the site calls the study, typed by a person.
    notes: what its conversion from DICOM flagged, one a line.
    worker, lease: who computes it, and until when it need not show that it lives.
    """

    __tablename__ = "studies"

    id: str = Field(primary_key=True, max_length=20)
    digest: str = Field(unique=True, max_length=64)
    subject: str = Field(max_length=64)
    label: str = Field(default="", max_length=64)
    source: str = "nifti"
    modality: str = ""
    guess: str = ""
    run: str = ""
    shape: str = ""
    spacing: str = ""
    notes: str = _text()
    created: datetime = Field(default_factory=now)
    uploader_id: int | None = Field(default=None, foreign_key="users.id")

    state: str = "received"
    reason: str = _text()
    queued: datetime | None = None
    started: datetime | None = None
    finished: datetime | None = None
    worker: str = ""
    lease: datetime | None = None
    attempts: int = 0
    stage: str = ""
    progress: float = 0.0

    result_id: str | None = None
    score: float | None = None
    percentile: float | None = None
    anomalous_ml: float | None = None
    n_components: int | None = None
    n_flags: int = 0
    flags: str = _text()

    __table_args__ = (
        Index("studies_created", "created"),
        Index("studies_state", "state", "queued"),
        Index("studies_by_state", "state", "id"),
        Index("studies_score", "score"),
        Index("studies_percentile", "percentile"),
        Index("studies_modality", "modality"),
    )


class Result(SQLModel, table=True):
    """A finished result: `id` names its folder below `results/`. Older results stay.

    `run_digest` is of all that shapes a result; `report` is the report as JSON.
    """

    __tablename__ = "results"

    id: str = Field(primary_key=True, max_length=32)
    study_id: str = Field(foreign_key="studies.id", index=True)
    created: datetime = Field(default_factory=now)
    run: str
    run_digest: str
    threshold: float | None = None
    seconds: float = 0.0
    report: str = _text()


class Opinion(SQLModel, table=True):
    """What a reader said of a study. Only ever added to: a later opinion does not hide its past.

    kind, value: "scan" agree | disagree | uncertain; "component" true | false | unsure;
        "correction" drawn, whose NIfTI is `corrections/<file>.nii.gz`.
    component: its number in the report, from 0; `peak` its peak voxel as "x,y,z".
    threshold: where the reader had cut the map. seconds: spent on the study until then.
    """

    __tablename__ = "opinions"

    id: int | None = Field(default=None, primary_key=True)
    study_id: str = Field(foreign_key="studies.id", index=True)
    result_id: str = Field(foreign_key="results.id")
    user_id: int = Field(foreign_key="users.id", index=True)
    role: str
    created: datetime = Field(default_factory=now)
    kind: str
    value: str
    component: int | None = None
    peak: str = ""
    comment: str = _text()
    run_digest: str
    threshold: float | None = None
    seconds: float | None = None
    file: str = ""


class Audit(SQLModel, table=True):
    """Who did what, when, from where. Only ever added to."""

    __tablename__ = "audit"

    id: int | None = Field(default=None, primary_key=True)
    created: datetime = Field(default_factory=now)
    who: str = ""
    action: str
    about: str = ""
    address: str = ""

    __table_args__ = (Index("audit_action", "action", "created"),)


class Seen(SQLModel, table=True):
    """A file of the inbox that was looked at: a keyed digest of its name, size and time."""

    __tablename__ = "seen"

    id: str = Field(primary_key=True, max_length=64)
    created: datetime = Field(default_factory=now)
    outcome: str = _text()


def open_current(address: str) -> Engine:
    """The engine of a data base with the tables of this version; StoreError where it has none."""
    try:
        engine = open_store(address)
        upgrade(engine)
    except (ArgumentError, ImportError):
        raise StoreError(
            "DATABASE is no address that is known; give postgresql+psycopg://user:password@host/name."
        ) from None
    except DatabaseError as error:
        said = str(error.orig).strip().partition("\n")[0]
        raise StoreError(f"the data base cannot be used ({said}); see that it runs.") from None
    return engine


def open_store(address: str) -> Engine:
    """The engine of a data base; SQLite waits for other processes and survives a killed one."""
    if not address.startswith("sqlite"):
        return create_engine(address, pool_pre_ping=True, pool_size=20)
    engine = create_engine(address, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _settings(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # what was answered is on the disk
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine


def change(session: Session, statement: Update) -> int:
    """Carry out a change; how many rows it met."""
    done = session.execute(statement)
    assert isinstance(done, CursorResult)
    return done.rowcount


def upgrade(engine: Engine) -> None:
    """Bring the tables to this version of the app."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
