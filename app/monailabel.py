"""The two routes of MONAI Label's server that its clients need to let Norma mark a scan.

`GET /info/` says what there is; `POST /infer/{model}` marks a study (`image`, its id) or a file
that is sent along, and answers with the mask. A model is a run; its name has "+" for "/".
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool

import norma
from app import intake, runs, studies
from app.api import (
    BINARY,
    GZIP,
    database,
    intake_slot,
    log,
    result_or_404,
    start_by,
    study_or_404,
)
from app.security import Reader, Visitor
from app.store import Study
from app.uploads import Form, described, sent_form

router = APIRouter(tags=["MONAI Label"])

LABELS = {"anomaly": 1}
PATIENCE = 900.0  # seconds that a client waits for a mask
LOOK = 0.5  # seconds between two looks at the study

FORM = described({"params": {"type": "string"}, "file": BINARY}, needed=False)


@router.get("/info/")
def info(request: Request, visitor: Reader) -> dict[str, Any]:
    """What a MONAI Label client shows: the runs as models that segment an anomaly."""
    models = {}
    for choice in runs.runs_of(request.app.state.settings).values():
        models[model_name(choice)] = {
            "type": "segmentation",
            "labels": LABELS,
            "dimension": 3,
            "description": f"anomalies in {choice.modality} scans, by the run {choice.name}",
            "config": {},
        }
    return {
        "name": "Norma",
        "description": norma.NOTICE,
        "version": norma.__version__,
        "labels": list(LABELS),
        "models": models,
        "trainers": {},
        "strategies": {},
        "scoring": {},
        "train_stats": {},
        "datastore": {},
    }


def model_name(choice: runs.RunChoice) -> str:
    """The name of a run as a part of an address."""
    return choice.name.replace("/", "+")


@router.post("/infer/{model}", openapi_extra=FORM)
async def infer(
    request: Request,
    visitor: Reader,
    model: Annotated[str, InPath(max_length=400)],
    image: Annotated[str, Query(max_length=40)] = "",
    output: Literal["", "image", "json", "all"] = "",
    wait: Annotated[float, Query(ge=0, le=PATIENCE)] = PATIENCE,
) -> Response:
    """Mark a study or a file; `output` says whether the mask, its report or both are wanted.

    422 for an image that is refused, 504 where it is not marked within `wait` seconds.
    """
    choices = {model_name(c): c for c in runs.runs_of(request.app.state.settings).values()}
    if model not in choices:
        raise HTTPException(404, "There is no such model; GET /info/ lists them.")
    study_id = image or await _sent(request, visitor)
    await run_in_threadpool(_queue, request, visitor, study_id, choices[model])
    study = await _done(request, study_id, wait)
    return await run_in_threadpool(_answer, request, study, output)


async def _sent(request: Request, visitor: Visitor) -> str:
    """The study of the file that was sent along; 422 without one."""
    if not request.headers.get("Content-Type", "").startswith("multipart/form-data"):
        raise HTTPException(422, "Name an image by its id, or send a file.")
    async with sent_form(request) as form:
        if len(form.files) != 1:
            raise HTTPException(422, "Name an image by its id, or send one file.")
        async with intake_slot(request):
            return await run_in_threadpool(_taken, request, visitor, form)


def _taken(request: Request, visitor: Visitor, form: Form) -> str:
    state = request.app.state
    name, path = form.files[0]
    try:
        taken, _ = intake.take(path, name, state.settings, state.secret)
    except intake.Refused as error:
        raise HTTPException(422, str(error)) from None
    study, _ = studies.register(state.engine, taken[0], state.settings.data, visitor.user.id)
    for other in taken[1:]:
        other.path.unlink(missing_ok=True)
    log(request, visitor, "upload", study.id)
    return study.id


def _queue(request: Request, visitor: Visitor, study_id: str, choice: runs.RunChoice) -> None:
    """Queue a study, unless its result is of this run already or it is under way."""
    with database(request) as session:
        study = study_or_404(session, study_id)
    if study.state in ("queued", "running") or (study.state, study.run) == ("done", choice.name):
        return
    try:
        start_by(request, study_id, choice)
    except studies.Conflict:
        return  # somebody else has just queued it
    log(request, visitor, "start", study_id)


async def _done(request: Request, study_id: str, wait: float) -> Study:
    """The study when its result is there."""
    clock = asyncio.get_running_loop().time
    end = clock() + wait
    while True:
        study = await run_in_threadpool(_state, request, study_id)
        if study.state == "done":
            return study
        if study.state in ("refused", "failed", "received"):
            raise HTTPException(422, study.reason or "It was taken out of the queue.")
        if clock() >= end or await request.is_disconnected():
            raise HTTPException(504, "The scan is not marked yet; ask again for the same image.")
        await asyncio.sleep(LOOK)


def _state(request: Request, study_id: str) -> Study:
    with database(request) as session:
        return study_or_404(session, study_id)


def _answer(request: Request, study: Study, output: str) -> Response:
    with database(request) as session:
        result = result_or_404(session, study)
    params = {"label_names": LABELS, "image": study.id, "report": json.loads(result.report)}
    if output == "json":
        return Response(json.dumps(params), media_type="application/json")
    path = studies.result_folder(request.app.state.settings.data, result.id) / "mask.nii.gz"
    mask = path.read_bytes()
    name = f"{study.id}_mask.nii.gz"
    if output == "image":
        shown = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(mask, media_type=GZIP, headers=shown)
    return _both(params, name, mask)


def _both(params: dict[str, Any], name: str, mask: bytes) -> Response:
    """Report and mask as a form, which is what a client reads by default."""
    mark = secrets.token_hex(16)
    body = (
        f'--{mark}\r\nContent-Disposition: form-data; name="params"\r\n'
        f"Content-Type: application/json\r\n\r\n{json.dumps(params)}\r\n"
        f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        f"Content-Type: {GZIP}\r\n\r\n"
    )
    content = body.encode() + mask + f"\r\n--{mark}--\r\n".encode()
    return Response(content, media_type=f"multipart/form-data; boundary={mark}")
