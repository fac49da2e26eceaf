"""Opinions of readers: of a scan, of a component, or a drawn correction. Never overwritten."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from pydantic import BaseModel, Field, field_validator
from sqlmodel import Session, col, select

import norma
from app.detect import save
from app.intake import Refused
from app.security import Visitor
from app.settings import Settings
from app.store import Opinion, Result, Study, User
from app.studies import scan_path, sync_folder
from app.users import may

VALUES = {
    "scan": ("agree", "disagree", "uncertain"),
    "component": ("true", "false", "unsure"),
}
FAR = 0.01  # mm between the grids of a scan and of its correction, at a corner


class NewOpinion(BaseModel):
    """What a reader says: of the scan, or of the component of that number in the report."""

    kind: Literal["scan", "component"]
    value: Literal["agree", "disagree", "uncertain", "true", "false", "unsure"]
    component: int | None = Field(default=None, ge=0, le=10_000)
    comment: str = Field(default="", max_length=4000)
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    seconds: float | None = Field(default=None, ge=0, le=86_400)

    @field_validator("comment")
    @classmethod
    def _storable(cls, text: str) -> str:
        return text.replace("\0", "")  # which Postgres does not store


class OpinionOut(BaseModel):
    """An opinion as it is told: `mine` where the one who asks gave it."""

    id: int
    study: str
    result: str
    user: str
    role: str
    mine: bool
    created: str
    kind: str
    value: str
    component: int | None
    peak: str
    comment: str
    run_digest: str
    threshold: float | None
    seconds: float | None
    correction: str | None


def give(session: Session, study: Study, new: NewOpinion, visitor: Visitor) -> Opinion:
    """Add an opinion; Refused where it does not fit the study."""
    if new.value not in VALUES[new.kind]:
        raise Refused(f"of a {new.kind} one says {', '.join(VALUES[new.kind])}.")
    if (new.component is None) != (new.kind == "scan"):
        raise Refused("name a component in an opinion of a component, and in no other.")
    result = result_of(session, study)
    peak = ""
    if new.component is not None:
        components = json.loads(result.report).get("components", [])
        if new.component >= len(components):
            raise Refused(f"the report has {len(components)} components.")
        peak = ",".join(str(n) for n in components[new.component]["peak_voxel"])
    said = new.model_dump()
    return _add(session, result, visitor, **said, peak=peak)


def correct(
    session: Session,
    study: Study,
    drawn: Path,
    said: dict[str, Any],
    visitor: Visitor,
    settings: Settings,
) -> Opinion:
    """Add a correction: a NIfTI on the scan's grid, kept as 0 and 1; Refused says what is wrong."""
    result = result_of(session, study)
    marked = read_correction(drawn, scan_path(settings.data, study.id), settings.max_gb)
    name = uuid.uuid4().hex
    target = settings.data / "corrections" / f"{name}.nii.gz"
    save(marked, target)
    sync_folder(target.parent)
    return _add(session, result, visitor, kind="correction", value="drawn", file=name, **said)


def _add(session: Session, result: Result, visitor: Visitor, **said: Any) -> Opinion:
    assert visitor.user.id is not None
    opinion = Opinion(
        study_id=result.study_id,
        result_id=result.id,
        user_id=visitor.user.id,
        role=visitor.user.role,
        run_digest=result.run_digest,
        **said,
    )
    session.add(opinion)
    session.flush()
    return opinion


def result_of(session: Session, study: Study) -> Result:
    """The result that a study shows; Refused where it has none."""
    result = session.get(Result, study.result_id) if study.result_id else None
    if result is None:
        raise Refused("this study has no result yet.")
    return result


def read_correction(drawn: Path, scan: Path, max_gb: float) -> nib.Nifti1Image:
    """A drawn mask as uint8 on the scan's grid, 0 and 1; Refused where it lies elsewhere."""
    try:
        volume = norma.open_volume(drawn, max_gb)
        grid = norma.open_volume(scan, max_gb)
        shape = grid.shape[:3]
        if volume.shape[:3] != shape:
            raise Refused(
                f"the correction has {_sides(volume.shape)} voxels, the scan {_sides(shape)}."
            )
        corners = np.array([(*c, 1) for c in np.ndindex(2, 2, 2)]) * (*np.subtract(shape, 1), 1)
        apart = np.abs(corners @ (volume.affine - grid.affine).T).max()
        if apart > FAR:
            raise Refused(f"the correction lies {apart:.2f} mm beside the scan.")
        marked = (volume.voxels(shape) > 0.5).astype(np.uint8)
    except norma.ScanError as error:
        raise Refused(str(error).replace(str(drawn), "the correction")) from None
    image = nib.Nifti1Image(marked, grid.affine)
    image.header.set_xyzt_units("mm")
    for name in ("qform", "sform"):
        code = int(grid.header[f"{name}_code"])
        matrix = getattr(grid.header, f"get_{name}")() if code else grid.affine
        getattr(image, f"set_{name}")(matrix, code, update_affine=False)
    return image


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape[:3])


def history(session: Session, study_id: str, visitor: Visitor) -> list[OpinionOut]:
    """The opinions of a study, oldest first: to a reader the own ones, to a reviewer all.

    A reader who sees what others said is no second reader.
    """
    query = (
        select(Opinion, User.name)
        .join(User, col(User.id) == col(Opinion.user_id))
        .where(col(Opinion.study_id) == study_id)
        .order_by(col(Opinion.id))
    )
    if not may(visitor.user, "reviewer"):
        query = query.where(col(Opinion.user_id) == visitor.user.id)
    return [told(opinion, name, visitor) for opinion, name in session.exec(query)]


def told(opinion: Opinion, user: str, visitor: Visitor) -> OpinionOut:
    """An opinion as it is told."""
    assert opinion.id is not None
    address = f"/api/corrections/{opinion.id}.nii.gz" if opinion.file else None
    return OpinionOut(
        **opinion.model_dump(exclude={"study_id", "result_id", "user_id", "created", "file"}),
        study=opinion.study_id,
        result=opinion.result_id,
        user=user,
        mine=opinion.user_id == visitor.user.id,
        created=opinion.created.isoformat(timespec="seconds"),
        correction=address,
    )
