"""A labelled cohort where nobody drew a mask: synthetic lesions in healthy scans."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from skimage import io, util
from tqdm import tqdm

from pipelines import cli
from pipelines.cohort.cases import Case, read_cases
from pipelines.study.plant import Head, Plan, kinds_of, load_head, plant_one, volumes_of
from pipelines.versions import versions
from preprocessing.files import atomic, write_json, write_table
from preprocessing.images import is_nifti, save_nifti
from preprocessing.scans import InputError, ScanError

log = logging.getLogger("norma")

COLUMNS = ("id", "image", "subject", "split", "label", "pathology", "mask", "brain_mask")
FAILED = ("id", "image", "split", "reason")

Rows = list[dict[str, Any]]


def synthesise(data: Path, cases: Sequence[Case], out: Path, plan: Plan) -> tuple[Rows, Rows]:
    """Write the healthy cases and their synthetic copies as a cohort to `out`.

    Gives the rows of its table, and those of the scans left out.
    """
    table: Rows = []
    lesions: Rows = []
    failures: Rows = []
    with tqdm(total=len(cases) * plan.per_scan, desc="synthetic lesions", unit="copy") as bar:
        for index, case in enumerate(cases):
            try:
                rows, records = copies(load_head(case), index, plan, cases, out)
            except ScanError as error:
                reason = cli.error_sentence(error)
                failures.append(
                    {"id": case.id, "image": case.image, "split": "test", "reason": reason}
                )
                log.warning("left out: %s", reason)
            else:
                table += [_healthy_row(case), *rows]
                lesions += records
            bar.update(plan.per_scan)

    write_table(out / "failures.tsv", failures, FAILED)
    if table:
        write_table(out / "cohort.tsv", table, COLUMNS)
        content = {"synthetic": True, "settings": _settings(plan, data), "versions": versions()}
        write_json(out / "synthetic.json", {**content, "lesions": lesions})
    return table, failures


def _healthy_row(case: Case) -> dict[str, Any]:
    return {
        "id": case.id,
        "subject": case.subject,
        "split": "test",
        "brain_mask": case.brain_mask,
        "label": "healthy",
        "image": case.image.resolve(),
    }


def _settings(plan: Plan, data: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {"seed": plan.seed, "per_scan": plan.per_scan, "kinds": plan.kinds}
    settings["data"] = data.name
    if plan.masks:
        settings["masks"] = [path.name for path in plan.masks]
    else:
        settings["volumes_ml"] = plan.volumes
    return settings


def copies(
    head: Head, index: int, plan: Plan, cases: Sequence[Case], out: Path
) -> tuple[Rows, Rows]:
    """Write a scan's synthetic copies and their masks; rows of the table, records of lesions."""
    rows: Rows = []
    records: Rows = []
    case = head.case
    others = [other for other in cases if other.subject != case.subject]
    for number in range(plan.per_scan):
        rng = np.random.default_rng([plan.seed, index, number])
        kind = plan.kinds[(index * plan.per_scan + number) % len(plan.kinds)]
        donor = load_head(others[rng.integers(len(others))]) if kind == "blend" else None
        image, lesion, record = plant_one(head, kind, plan, rng, donor)
        if isinstance(record["shape"], Path):
            record["shape"] = record["shape"].name

        name = f"{case.id}_synthetic-{number + 1:02d}-{kind}"
        files = _write(head, image, lesion, out / case.subject / name, kind)
        paths = {what: str(path.relative_to(out)) for what, path in files.items()}
        row = {
            "id": name,
            "subject": case.subject,
            "split": "test",
            "label": "abnormal",
            "pathology": f"synthetic {kind}",
        }
        rows.append(row | paths | {"brain_mask": case.brain_mask})
        records.append({"id": name, "original": case.id, **paths, **record})
    return rows, records


def _write(
    head: Head, image: np.ndarray, lesion: np.ndarray, base: Path, kind: str
) -> dict[str, Path]:
    """Write image and lesion mask on the scan's grid.

    A NIfTI with the scan's header, or for a picture 16-bit and 8-bit PNG.
    """
    base.parent.mkdir(parents=True, exist_ok=True)
    if image.shape[2] == 1:
        return _write_pictures(image, lesion, base)
    files = {
        "image": base.with_name(f"{base.name}.nii.gz"),
        "mask": base.with_name(f"{base.name}_mask.nii.gz"),
    }
    arrays = {"image": as_stored(image, head), "mask": lesion.astype(np.uint8)}
    for what, path in files.items():
        header = head.image.header.copy()
        header.set_data_dtype(arrays[what].dtype)
        header["descrip"] = f"synthetic lesion: {kind}"
        save_nifti(nib.Nifti1Image(arrays[what], head.image.affine, header), path)
    return files


def as_stored(image: np.ndarray, head: Head) -> np.ndarray:
    """Whole numbers where the scan has only those, otherwise float32.

    In the scan's own type, or the first that holds them all.
    """
    stored = head.image.header.get_data_dtype()
    if stored.kind not in "iu" or not (head.data == np.rint(head.data)).all():
        return image
    whole = np.rint(image)
    for dtype in (stored, np.dtype(np.int16), np.dtype(np.int32)):
        if np.iinfo(dtype).min <= whole.min() and whole.max() <= np.iinfo(dtype).max:
            return whole.astype(dtype)
    return whole


def _write_pictures(image: np.ndarray, lesion: np.ndarray, base: Path) -> dict[str, Path]:
    """The inverse of `read_picture`, atomically; what lies beyond black and white is cut there."""
    files = {
        "image": base.with_name(f"{base.name}.png"),
        "mask": base.with_name(f"{base.name}_mask.png"),
    }
    arrays = {"image": util.img_as_uint(np.clip(image, 0, 1)), "mask": util.img_as_ubyte(lesion)}
    for what, path in files.items():
        with atomic(path) as temporary:
            io.imsave(temporary, arrays[what][::-1, ::-1, 0].T, check_contrast=False)
    return files


def healthy_cases(data: Path, every: bool = False) -> list[Case]:
    """The cases of split "test", or `every` one, that are not labelled abnormal.

    InputError where there is none.
    """
    cases = [case for case in read_cases(data) if case.label != "abnormal" and not case.is_part]
    if not every:
        cases = [case for case in cases if case.split == "test"]
    if not cases:
        where = "" if every else " in split 'test'"
        raise InputError(
            f"{data / 'scans.tsv'}: no healthy scans{where}; "
            "synthetic lesions are planted in those alone."
        )
    unknown = sum(not case.label for case in cases)
    if unknown:
        log.info("%d scans without a label are taken as healthy.", unknown)
    return cases


def make_plan(
    kinds: str | None, per_scan: int, volumes: str | None, masks: str | None, seed: int
) -> Plan:
    """A plan from a user's words; InputError says which one cannot be used, and why."""
    known = kinds_of(kinds)
    if per_scan < 1:
        raise InputError(f"--per-scan: {per_scan}; expected at least one copy of each scan.")
    if volumes and masks:
        raise InputError(
            "--volumes and --masks: the lesions of --masks keep their own volumes; "
            "give one of the two."
        )
    files = _mask_files(Path(masks)) if masks else []
    return Plan(known, per_scan, volumes_of(volumes), files, cli.seed_of(seed))


def _mask_files(folder: Path) -> list[Path]:
    files = [p for p in folder.rglob("*") if is_nifti(p) and not p.name.startswith(".")]
    if not files:
        raise InputError(
            f"{folder}: no .nii or .nii.gz files; give --masks a folder of lesion masks."
        )
    return sorted(files)


def without_blend(plan: Plan, cases: Sequence[Case]) -> Plan:
    """The plan as it is, or for one subject alone, without the kind that needs two."""
    if "blend" not in plan.kinds or len({case.subject for case in cases}) > 1:
        return plan
    kinds = [kind for kind in plan.kinds if kind != "blend"]
    if not kinds:
        raise InputError(
            f"--kinds: there is one healthy test subject, '{cases[0].subject}'; "
            "kind 'blend' needs a second one, give other --kinds."
        )
    log.info("kind 'blend' is left out: it needs a second healthy test subject.")
    return replace(plan, kinds=kinds)
