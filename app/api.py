"""The JSON API: studies, their files, the queue, opinions. `/openapi.json` describes it."""

from __future__ import annotations

import asyncio
import json
import math
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from app import intake, opinions, runs, studies, users
from app.headers import contradicts
from app.opinions import NewOpinion, OpinionOut
from app.security import Admin, Reader, Visitor
from app.store import Opinion, Result, Study
from app.uploads import Form, described, sent_form

router = APIRouter(prefix="/api")

StudyId = Annotated[str, InPath(pattern="^[0-9a-f]{20}$")]
GZIP = "application/gzip"
KINDS = {".nii.gz": GZIP, ".json": "application/json", ".png": "image/png"}
FileName = Literal[
    "map.nii.gz", "mask.nii.gz", "reconstruction.nii.gz", "reference.json", "first.png"
]

# of an upload whose files all had this outcome; 201 where something new came in
STATUS_OF = {frozenset({"refused"}): 422, frozenset({"known"}): 200}

BINARY = {"type": "string", "format": "binary"}
MULTIPART = described(
    {
        "file": {"type": "array", "items": BINARY},
        "modality": {"type": "string"},
        "run": {"type": "string"},
        "label": {"type": "string"},
    },
    required=["file"],
)
CORRECTION = described(
    {
        "file": BINARY,
        "comment": {"type": "string"},
        "threshold": {"type": "number"},
        "seconds": {"type": "number"},
    },
    required=["file"],
)


class StudyOut(BaseModel):
    """A study as it is told. `guess` is the modality that its header looks like."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    subject: str
    label: str
    source: str
    modality: str
    guess: str
    run: str
    shape: str
    spacing: str
    created: datetime
    state: str
    reason: str
    stage: str
    progress: float
    queued: datetime | None
    started: datetime | None
    finished: datetime | None
    score: float | None
    percentile: float | None
    anomalous_ml: float | None
    n_components: int | None
    flags: str
    result_id: str | None


class Page(BaseModel):
    """A page of the list of studies, and how many there are in all."""

    total: int
    page: int
    size: int
    studies: list[StudyOut]


class Arrived(BaseModel):
    """What became of a file that was sent: the studies in it, or why there is none."""

    file: str
    status: Literal["received", "queued", "known", "refused"]
    reason: str = ""
    study: StudyOut | None = None


class Start(BaseModel):
    """By which run a study is to be scored; without one by the first of its modality."""

    modality: str = Field(default="", max_length=40)
    run: str = Field(default="", max_length=400)


class RunOut(BaseModel):
    name: str
    modality: str


def database(request: Request) -> Session:
    """A session on the data base, for a `with`."""
    return Session(request.app.state.engine, expire_on_commit=False)


def study_or_404(session: Session, study_id: str) -> Study:
    study = session.get(Study, study_id)
    if study is None:
        raise HTTPException(404, "There is no such study.")
    return study


@router.get("/runs")
def list_runs(request: Request, visitor: Reader) -> list[RunOut]:
    """The runs that a study can be scored by."""
    choices = runs.runs_of(request.app.state.settings)
    return [RunOut(name=c.name, modality=c.modality) for c in choices.values()]


@router.get("/studies")
def list_studies(
    request: Request, visitor: Reader, wanted: Annotated[studies.Wanted, Query()]
) -> Page:
    """A page of the studies: filtered, searched, sorted."""
    with database(request) as session:
        found, total = studies.list_studies(session, wanted)
    told = [StudyOut.model_validate(study) for study in found]
    return Page(total=total, page=wanted.page, size=wanted.size, studies=told)


@router.post("/studies", openapi_extra=MULTIPART)
async def upload(request: Request, response: Response, visitor: Reader) -> list[Arrived]:
    """Take in NIfTI files and zipped DICOM, several at once.

    With `modality` or `run` they are queued; else they wait until somebody confirms what they are,
    and so does a scan whose header speaks against the modality.
    The status is 201 where something new came in, 200 where all was known, 422 where all is
    refused.
    """
    async with sent_form(request) as form:
        if not form.files:
            raise HTTPException(422, "Send at least one file, in the field 'file'.")
        async with intake_slot(request):
            arrived = await run_in_threadpool(take_in, request, visitor, form)
    response.status_code = STATUS_OF.get(frozenset(one.status for one in arrived), 201)
    return arrived


def intake_slot(request: Request) -> asyncio.Semaphore:
    """Room for one more file that is unpacked: few at once, as each takes memory."""
    return request.app.state.intake


def take_in(request: Request, visitor: Visitor, form: Form) -> list[Arrived]:
    """Every file of a form as studies."""
    settings = request.app.state.settings
    modality = form.fields.get("modality", "").strip()
    run = form.fields.get("run", "").strip()
    choice = None
    if modality or run:
        try:
            choice = runs.choose(runs.runs_of(settings), modality, run)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
    label = " ".join(form.fields.get("label", "").replace("\0", "").split())[:64]
    arrived: list[Arrived] = []
    for name, path in form.files:
        try:
            taken, lost = intake.take(path, name, settings, request.app.state.secret)
        except intake.Refused as error:
            arrived.append(Arrived(file=name, status="refused", reason=str(error)))
            continue
        for one in taken:
            arrived.append(_arrive(request, visitor, name, one, label, choice))
        arrived += [Arrived(file=name, status="refused", reason=reason) for reason in lost]
    return arrived


def _arrive(
    request: Request,
    visitor: Visitor,
    name: str,
    taken: intake.Taken,
    label: str,
    choice: runs.RunChoice | None,
) -> Arrived:
    """One scan that was taken in: a new study, queued where its run was chosen, or a known one."""
    engine = request.app.state.engine
    settings = request.app.state.settings
    study, new = studies.register(engine, taken, settings.data, visitor.user.id, label)
    log(request, visitor, "upload" if new else "upload of a known scan", study.id)
    # of several scans that are sent for one run some may be others: somebody has to confirm those
    wanted = choice is not None and not contradicts(study.guess, choice.modality)
    if choice and wanted and study.state == "received":
        start_by(request, study.id, choice)
    with database(request) as session:
        told = StudyOut.model_validate(session.get_one(Study, study.id))
    if not new:
        return Arrived(file=name, status="known", study=told, reason="It is here already.")
    return Arrived(file=name, status="queued" if wanted else "received", study=told)


def log(request: Request, visitor: Visitor, action: str, about: str = "") -> None:
    """A line of the audit log, by itself."""
    with database(request) as session:
        users.audit(session, visitor.user.name, action, about, visitor.address)
        session.commit()


@router.get("/queue")
def queue(request: Request, visitor: Reader) -> list[StudyOut]:
    """What is computed and what waits, in the order in which it will be taken."""
    busy = (
        select(Study)
        .where(col(Study.state).in_(["running", "queued"]))
        .order_by(col(Study.state).desc(), col(Study.queued))
        .limit(studies.MOST)
    )
    with database(request) as session:
        return [StudyOut.model_validate(study) for study in session.exec(busy)]


@router.get("/studies/{study_id}")
def one_study(request: Request, visitor: Reader, study_id: StudyId) -> StudyOut:
    """One study: where it stands, and the figures of its result."""
    with database(request) as session:
        return StudyOut.model_validate(study_or_404(session, study_id))


@router.post("/studies/{study_id}/start")
def start(request: Request, visitor: Reader, study_id: StudyId, wanted: Start) -> StudyOut:
    """Confirm what a study is, and put it into the queue; 409 where it is there already."""
    with database(request) as session:
        study = study_or_404(session, study_id)
        modality = wanted.modality or ("" if wanted.run else study.modality or study.guess)
    try:
        choice = runs.choose(runs.runs_of(request.app.state.settings), modality, wanted.run)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    try:
        start_by(request, study_id, choice)
    except studies.Conflict as error:
        raise HTTPException(409, str(error)) from None
    log(request, visitor, "start", study_id)
    return one_study(request, visitor, study_id)


def start_by(request: Request, study_id: str, choice: runs.RunChoice) -> None:
    """Put a study into the queue for a run; studies.Conflict where that cannot be."""
    state = request.app.state
    studies.start(state.engine, state.settings.data, study_id, choice.modality, choice.name)


@router.post("/studies/{study_id}/cancel")
def cancel(request: Request, visitor: Reader, study_id: StudyId) -> StudyOut:
    """Take a study out of the queue, or end its computation: by its uploader or a reviewer."""
    with database(request) as session:
        study = study_or_404(session, study_id)
        if not users.may_cancel(visitor.user, study.uploader_id):
            raise HTTPException(403, "Who uploaded it may cancel it, or a reviewer.")
    try:
        studies.cancel(request.app.state.engine, study_id)
    except studies.Conflict as error:
        raise HTTPException(409, str(error)) from None
    log(request, visitor, "cancel", study_id)
    return one_study(request, visitor, study_id)


@router.post("/studies/{study_id}/remove")
def remove(request: Request, visitor: Admin, study_id: StudyId) -> StudyOut:
    """Delete the scan and all results of a study, by an admin; opinions and drawings stay."""
    with database(request) as session:
        study_or_404(session, study_id)
    try:
        studies.remove(request.app.state.engine, request.app.state.settings.data, study_id)
    except studies.Conflict as error:
        raise HTTPException(409, str(error)) from None
    log(request, visitor, "remove", study_id)
    return one_study(request, visitor, study_id)


@router.get("/studies/{study_id}/report.json")
def report(
    request: Request,
    visitor: Reader,
    study_id: StudyId,
    result: Annotated[str, Query(max_length=32)] = "",
) -> dict[str, Any]:
    """The report of a study; of an older result, where that is named."""
    with database(request) as session:
        found = result_or_404(session, study_or_404(session, study_id), result)
        return json.loads(found.report) | {"run_digest": found.run_digest, "result": found.id}


@router.get("/studies/{study_id}/scan.nii.gz", response_class=FileResponse)
def scan(request: Request, visitor: Reader, study_id: StudyId) -> FileResponse:
    """The scan itself, as it is kept: voxels and geometry."""
    with database(request) as session:
        study_or_404(session, study_id)
    log(request, visitor, "open", study_id)
    return send(studies.scan_path(request.app.state.settings.data, study_id), f"{study_id}_scan")


def result_or_404(session: Session, study: Study, result: str = "") -> Result:
    """The result that a study shows, or an older one of it by its id."""
    found = session.get(Result, result or study.result_id or "")
    if found is None or found.study_id != study.id:
        raise HTTPException(404, "This study has no such result.")
    return found


class Download(FileResponse):
    """A file in large pieces: a scan has megabytes."""

    chunk_size = 2**20


def send(path: Path, name: str) -> FileResponse:
    """A file of ours; 404 where there is none, as of a model that reconstructs nothing."""
    if not path.is_file():
        raise HTTPException(404, "There is no such file.")
    ending = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
    # kept by the browser of one user, and asked for again each time
    headers = {"Cache-Control": "private, no-cache"}
    return Download(path, media_type=KINDS[ending], filename=f"{name}{ending}", headers=headers)


@router.get("/studies/{study_id}/opinions")
def list_opinions(request: Request, visitor: Reader, study_id: StudyId) -> list[OpinionOut]:
    """Opinions of a study with their history: a reader's own ones, all to a reviewer."""
    with database(request) as session:
        study_or_404(session, study_id)
        return opinions.history(session, study_id, visitor)


@router.post("/studies/{study_id}/opinions", status_code=201)
def add_opinion(
    request: Request, visitor: Reader, study_id: StudyId, new: NewOpinion
) -> OpinionOut:
    """Give an opinion of a scan or of a component; earlier ones stay."""
    with database(request) as session:
        study = study_or_404(session, study_id)
        try:
            opinion = opinions.give(session, study, new, visitor)
        except intake.Refused as error:
            raise HTTPException(422, str(error)) from None
        users.audit(session, visitor.user.name, "opinion", study_id, visitor.address)
        session.commit()
        return opinions.told(opinion, visitor.user.name, visitor)


@router.post("/studies/{study_id}/corrections", status_code=201, openapi_extra=CORRECTION)
async def add_correction(request: Request, visitor: Reader, study_id: StudyId) -> OpinionOut:
    """Give a drawn mask: a NIfTI in the field `file`, on the grid of the scan."""
    async with sent_form(request) as form:
        if len(form.files) != 1:
            raise HTTPException(422, "Send one file, in the field 'file'.")
        async with intake_slot(request):
            return await run_in_threadpool(_correct, request, visitor, study_id, form)


def _correct(request: Request, visitor: Visitor, study_id: str, form: Form) -> OpinionOut:
    said = {
        "comment": form.fields.get("comment", "").replace("\0", "")[:4000],
        "threshold": _number(form, "threshold"),
        "seconds": _number(form, "seconds"),
    }
    with database(request) as session:
        study = study_or_404(session, study_id)
        try:
            path = form.files[0][1]
            opinion = opinions.correct(
                session, study, path, said, visitor, request.app.state.settings
            )
        except intake.Refused as error:
            raise HTTPException(422, str(error)) from None
        users.audit(session, visitor.user.name, "correction", study_id, visitor.address)
        session.commit()
        return opinions.told(opinion, visitor.user.name, visitor)


def _number(form: Form, name: str) -> float | None:
    text = form.fields.get(name, "").strip()
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise HTTPException(422, f"'{name}' is a number.")
    return value


@router.get("/corrections/{opinion_id}.nii.gz", response_class=FileResponse)
def correction(
    request: Request, visitor: Reader, opinion_id: Annotated[int, InPath(ge=1, le=2**31 - 1)]
) -> FileResponse:
    """A drawn correction: one's own, any to a reviewer."""
    with database(request) as session:
        opinion = session.get(Opinion, opinion_id)
    own = opinion is not None and opinion.user_id == visitor.user.id
    if opinion is None or not opinion.file or not (own or users.may(visitor.user, "reviewer")):
        raise HTTPException(404, "There is no such correction.")
    path = request.app.state.settings.data / "corrections" / f"{opinion.file}.nii.gz"
    return send(path, f"{opinion.study_id}_correction")


# the last one: its path would take those of opinions too
@router.get("/studies/{study_id}/{name}", response_class=FileResponse)
def result_file(
    request: Request,
    visitor: Reader,
    study_id: StudyId,
    name: FileName,
    result: Annotated[str, Query(max_length=32)] = "",
) -> FileResponse:
    """A file of a result: map, mask, reconstruction, scores of healthy scans, first picture."""
    with database(request) as session:
        found = result_or_404(session, study_or_404(session, study_id), result)
    path = studies.result_folder(request.app.state.settings.data, found.id) / name
    return send(path, f"{study_id}_{name.partition('.')[0]}")
