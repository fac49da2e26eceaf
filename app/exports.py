"""All opinions as a table, and what they say of scans as decathlon datalists with their files.

Whose word counts: a reviewer's or an admin's before a reader's, and then the latest. Of that person
a drawn correction is the truth; else the components that are true, where all were judged; else the
mask as it stands, where the person agreed. A scan without anything true has label 0. All else says
nothing certain, and is left out of the datalist; `truth.tsv` says why.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from scipy import ndimage
from sqlalchemy import Engine
from sqlmodel import Session, col, select
from starlette.background import BackgroundTask

import norma
from app.api import log
from app.detect import save
from app.security import Reviewer
from app.store import Opinion, Result, Study, User
from app.studies import result_folder, scan_path

router = APIRouter(prefix="/api/export")

OPINIONS = (
    *("study", "subject", "modality", "run", "run_digest", "score", "percentile"),
    *("user", "role", "created", "kind", "value", "component", "place", "volume_mm3", "peak"),
    *(
        "mean",
        "strength",
        "peak_voxel",
        "peak_atlas_mm",
        "threshold",
        "seconds",
        "comment",
        "correction",
    ),
)
TRUTH = ("study", "subject", "modality", "label", "decided_by", "why")
FORMULA = ("=", "+", "-", "@")  # what a spreadsheet takes for the start of a formula


@dataclass(frozen=True)
class Said:
    """The opinions of one study, oldest first, each with its user, and the result they are of."""

    study: Study
    result: Result
    opinions: list[tuple[Opinion, User]] = field(default_factory=list)

    @property
    def components(self) -> list[dict[str, Any]]:
        return json.loads(self.result.report).get("components", [])


@dataclass(frozen=True)
class Truth:
    """What is true of a scan: `marked` (X, Y, Z) bool, or None where that is not known."""

    why: str
    decided_by: str
    marked: np.ndarray | None = None
    false: np.ndarray | None = None


@router.get("/opinions.tsv", response_class=FileResponse)
def opinions_table(request: Request, visitor: Reviewer) -> FileResponse:
    """All opinions as a table, for a reviewer."""
    path = request.app.state.settings.data / "incoming" / f"{uuid.uuid4().hex}.tsv"
    write_rows(path, OPINIONS, opinion_rows(request.app.state.engine))
    log(request, visitor, "export of the opinions")
    return FileResponse(
        path,
        media_type="text/tab-separated-values",
        filename="opinions.tsv",
        background=BackgroundTask(path.unlink),
    )


@router.get("/all.zip", response_class=FileResponse)
def everything(request: Request, visitor: Reviewer) -> FileResponse:
    """The table, the datalists and their scans and masks as a zip file, for a reviewer."""
    data = request.app.state.settings.data
    folder = data / "incoming" / f"{uuid.uuid4().hex}.export"
    path = folder.with_suffix(".zip")
    try:
        export(request.app.state.engine, data, folder)
        with zipfile.ZipFile(path, "w") as archive:  # its files are compressed already
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    log(request, visitor, "export of opinions and scans")
    task = BackgroundTask(path.unlink)
    return FileResponse(path, media_type="application/zip", filename="norma.zip", background=task)


def export(engine: Engine, data: Path, out: Path) -> dict[str, int]:
    """Write opinions.tsv, truth.tsv and datalist_<modality>.json with their files into a folder.

    Gives the number of scans in each datalist. FileExistsError where `out` is there already.
    """
    (out / "scans").mkdir(parents=True)
    (out / "truth").mkdir()
    (out / "false").mkdir()
    write_rows(out / "opinions.tsv", OPINIONS, opinion_rows(engine))
    lists: dict[str, list[dict[str, Any]]] = {}
    rows: list[dict[str, Any]] = []
    for said in all_said(engine):
        truth = truth_of(said, data)
        label = _write_scan(said, truth, data, out)
        study = said.study
        row = {"study": study.id, "subject": study.subject, "modality": study.modality}
        rows.append(row | {"label": label, "decided_by": truth.decided_by, "why": truth.why})
        if label is not None:
            entry = {"image": f"scans/{study.id}.nii.gz", "label": label, "subject": study.subject}
            lists.setdefault(study.modality, []).append(entry)
    write_rows(out / "truth.tsv", TRUTH, rows)
    for modality, entries in lists.items():
        content = {
            "name": f"Norma review, {modality}",
            "description": norma.NOTICE,
            "test": entries,
        }
        (out / f"datalist_{modality}.json").write_text(json.dumps(content, indent=1) + "\n")
    return {modality: len(entries) for modality, entries in lists.items()}


def _write_scan(said: Said, truth: Truth, data: Path, out: Path) -> str | int | None:
    """The files of a scan; its label in a datalist: a mask, 0, or None where nothing is known."""
    name = f"{said.study.id}.nii.gz"
    if truth.false is not None and truth.false.any():
        save(_like(truth.false, said, data), out / "false" / name)
    if truth.marked is None:
        return None
    scan = scan_path(data, said.study.id)
    try:
        os.link(scan, out / "scans" / name)
    except OSError:  # another disk
        shutil.copyfile(scan, out / "scans" / name)
    if not truth.marked.any():
        return 0
    save(_like(truth.marked, said, data), out / "truth" / name)
    return f"truth/{name}"


def _like(marked: np.ndarray, said: Said, data: Path) -> nib.Nifti1Image:
    """A mask with the header of the study's own mask."""
    image = nib.Nifti1Image.from_filename(result_folder(data, said.result.id) / "mask.nii.gz")
    return nib.Nifti1Image(marked.astype(np.uint8), image.affine, image.header)


def all_said(engine: Engine) -> list[Said]:
    """The opinions of every study that has a result, by study."""
    opinions = (
        select(Opinion, User)
        .join(User, col(User.id) == col(Opinion.user_id))
        .order_by(col(Opinion.id))
    )
    results = select(Study, Result).join(Result, col(Result.id) == col(Study.result_id))
    with Session(engine) as session:
        found = {study.id: Said(study, result) for study, result in session.exec(results)}
        for opinion, user in session.exec(opinions):
            if opinion.study_id in found:
                found[opinion.study_id].opinions.append((opinion, user))
        session.expunge_all()
    return [found[name] for name in sorted(found) if found[name].opinions]


def truth_of(said: Said, data: Path) -> Truth:
    """What the person whose word counts says of a scan."""
    decider = deciding(said.opinions)
    own = [opinion for opinion, user in said.opinions if user.id == decider.id]
    drawn = [opinion for opinion in own if opinion.kind == "correction"]
    # of another result's mask one may have said something else
    of_this = [opinion for opinion in own if opinion.result_id == said.result.id]
    scan = [opinion.value for opinion in of_this if opinion.kind == "scan"]
    judged: dict[int, str] = {}
    for opinion in of_this:
        if opinion.component is not None:
            judged[opinion.component + 1] = opinion.value
    labels = component_labels(said, data)
    false = np.isin(labels, [n for n, value in judged.items() if value == "false"])

    if scan and scan[-1] == "uncertain":
        return Truth("the reader is uncertain", decider.name, None, false)
    if drawn:
        path = data / "corrections" / f"{drawn[-1].file}.nii.gz"
        marked = np.asarray(nib.Nifti1Image.from_filename(path).dataobj) > 0
        return Truth("a drawn correction", decider.name, marked, false)
    count = json.loads(said.result.report).get("n_components") or 0
    if count and set(judged.values()) <= {"true", "false"} and len(judged) == count:
        true = np.isin(labels, [n for n, value in judged.items() if value == "true"])
        return Truth("every component was judged", decider.name, true, false)
    if scan and scan[-1] == "agree" and not judged:
        return Truth("the reader agrees with the mask", decider.name, labels != 0, false)
    if scan and scan[-1] == "disagree":
        return Truth("the reader disagrees and drew nothing", decider.name, None, false)
    return Truth("not every component was judged", decider.name, None, false)


def deciding(opinions: Sequence[tuple[Opinion, User]]) -> User:
    """Whose word counts: the latest reviewer or admin, else the latest reader."""
    seniors = [user for opinion, user in opinions if opinion.role != "reader"]
    return seniors[-1] if seniors else opinions[-1][1]


def component_labels(said: Said, data: Path) -> np.ndarray:
    """The mask with its components numbered as in the report, from 1; others have -1."""
    path = result_folder(data, said.result.id) / "mask.nii.gz"
    marked = np.asarray(nib.Nifti1Image.from_filename(path).dataobj) > 0
    pieces, _ = ndimage.label(marked, np.ones((3, 3, 3)))  # 26-connected, as in the report
    labels = np.where(marked, -1, 0)
    for number, component in enumerate(said.components, start=1):
        labels[pieces == pieces[tuple(component["peak_voxel"])]] = number
    labels[~marked] = 0
    return labels


def opinion_rows(engine: Engine) -> Iterable[dict[str, Any]]:
    """A row of the table for every opinion, oldest first, with the component that it is of."""
    query = (
        select(Opinion, User.name, Study, Result)
        .join(User, col(User.id) == col(Opinion.user_id))
        .join(Study, col(Study.id) == col(Opinion.study_id))
        .join(Result, col(Result.id) == col(Opinion.result_id))
        .order_by(col(Opinion.id))
    )
    with Session(engine) as session:
        for opinion, user, study, result in session.exec(query):
            report = json.loads(result.report)
            row = {name: getattr(opinion, name, None) for name in OPINIONS}
            row |= {name: report.get(name) for name in ("score", "percentile")}
            row |= {"study": study.id, "subject": study.subject, "modality": study.modality}
            row |= {"run": result.run, "user": user, "peak": None}
            row |= {"created": opinion.created.isoformat(timespec="seconds")}
            row |= {"correction": opinion.file and f"{opinion.file}.nii.gz"}
            if opinion.component is not None:
                found = report["components"][opinion.component]
                known = (
                    "place",
                    "volume_mm3",
                    "peak",
                    "mean",
                    "strength",
                    "peak_voxel",
                    "peak_atlas_mm",
                )
                row |= {name: found.get(name) for name in known}
                row |= {"component": opinion.component + 1}
            yield row


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """A table with tabs; text that a spreadsheet would run is quoted."""
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row.get(name)) for name in columns])


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    text = "" if value is None else " ".join(str(value).split())
    is_text = isinstance(value, str)
    return f"'{text}" if is_text and text.startswith(FORMULA) else text
