"""Healthy test scans under graded shifts: what a detector takes for a lesion, and what is gated.

The blind spot of unsupervised detection (Heer et al. 2021): a shifted healthy scan looks sick to
it. Each scan is shifted as its file is, and prepared and scored anew, as `make infer` would.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from pydantic import BaseModel
from tqdm import tqdm

from evaluation.shifts import SEVERITIES, SHIFTS, Head, shifts_of
from pipelines.cohort.cases import Case, load
from pipelines.detect.batch import result_digest
from pipelines.detect.gate import Verdict
from pipelines.detect.run import Run
from pipelines.study.evaluate import cases_to_test
from preprocessing.files import digest_of, nearest, read_json, write_json
from preprocessing.images import Grid, is_picture, read_image, write_picture
from preprocessing.prepare import Prepared, prepare
from preprocessing.recipe import Recipe
from preprocessing.resample import carry_mask
from preprocessing.scans import InputError, Scan, ScanError
from preprocessing.warp import carry, inverse

NONE = "no shift"
CT = ("ct", "chest_ct")  # in HU
BETWEEN_VENTRICLES = (0.0, -18.0, 12.0)  # mm of the atlas


class Row(BaseModel):
    """What one run makes of one shifted scan; without a score where it is not scored.

    `reason` says why it is not scored, or which features the gate names.
    """

    run: str
    scan: str
    shift: str
    severity: int
    verdict: Verdict | Literal["not scored"]
    reason: str = ""
    score: float | None = None
    marked_ml: float | None = None
    findings: int | None = None
    p_typical: float | None = None


@dataclass(frozen=True)
class Asked:
    """What to measure: runs of one recipe by name, cases, shifts by name, a seed.

    `sites` are other healthy cases, each group as a shift of its own by its name. Of the cases and
    of each group the first `most` are scored, all where there is no such number.
    """

    runs: dict[str, Run]
    cases: Sequence[Case]
    shifts: Sequence[str]
    sites: dict[str, Sequence[Case]]
    seed: int = 0
    most: int | None = None


def demand_shifts(names: Sequence[str], modality: str) -> None:
    """InputError for a name of no shift of scans of a modality."""
    known = shifts_of(modality)
    for name in names:
        if name not in known:
            listed = ", ".join(known)
            hint = nearest(name, known)
            raise InputError(f"unknown shift '{name}' of {modality} scans; known: {listed}{hint}")


def healthy_test_cases(runs: Sequence[Run], data: Path) -> list[Case]:
    """The healthy test scans of a cohort for all of some runs.

    InputError where there is none, and as `cases_to_test`: no run has learned from a test scan, and
    the scans were prepared as the runs' own.
    """
    kept: dict[str, Case] = {}
    for number, run in enumerate(runs):
        own = {c.id: c for c in cases_to_test(run, data) if c.label == "healthy"}
        kept = {name: own[name] for name in (kept if number else own) if name in own}
    if not kept:
        raise InputError(f"{data / 'scans.tsv'}: no healthy scan in split 'test'.")
    return list(kept.values())


def stress(asked: Asked, out: Path) -> list[Row]:
    """Score every scan under every shift by every run; `out`/stress.json grows as it goes on.

    Rows that stand there, of the same runs, seed and scans, are not measured again.
    """
    path = out / "stress.json"
    about = {name: result_digest(run, run.point()) for name, run in asked.runs.items()}
    scans = scan_digests(asked)
    rows = earlier_rows(path, about, asked.seed, scans)
    known = {(row.scan, row.shift, row.severity) for row in rows}
    jobs = [job for job in jobs_of(asked) if (job[0].id, job[1], job[2]) not in known]
    for case, shift, severity in tqdm(jobs, desc="stress", unit="scan"):
        rows += of_scan(asked, case, shift, severity)
        written = [row.model_dump(exclude_none=True) for row in rows]
        content = {"runs": about, "seed": asked.seed, "scans": scans, "rows": written}
        write_json(path, content)
    return rows


def scan_digests(asked: Asked) -> dict[str, dict[str, str]]:
    """Of each scan its image and how it was preprocessed, by its site, NONE for no site."""
    groups = {NONE: asked.cases, **asked.sites}
    return {site: dict(map(_digested, cases)) for site, cases in groups.items()}


def _digested(case: Case) -> tuple[str, str]:
    return case.id, digest_of(case.digest, case.fingerprint)


def earlier_rows(
    path: Path, about: dict[str, str], seed: int, scans: dict[str, dict[str, str]]
) -> list[Row]:
    """The rows of an earlier call, of scans that are the same still.

    None where it was of other runs, or of the same made otherwise, or of another seed.
    """
    if not path.is_file():
        return []
    stored = read_json(path)
    try:
        if (stored["runs"], stored["seed"]) != (about, seed):
            return []
        rows = [Row(**row) for row in stored["rows"]]
        return [row for row in rows if _same_scan(row, stored["scans"], scans)]
    except (AttributeError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: a damaged file; delete it and run again.") from None


def _same_scan(row: Row, before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> bool:
    """Whether the scan of an earlier row is among those of now, and is what it was."""
    site = NONE if row.shift in SHIFTS else row.shift
    digest = now.get(site, {}).get(row.scan)
    return digest is not None and digest == before.get(site, {}).get(row.scan)


def jobs_of(asked: Asked) -> Iterator[tuple[Case, str, int]]:
    """(case, shift, severity); a scan that is not shifted has severity 0."""
    for case in asked.cases[: asked.most]:
        yield case, NONE, 0
        for shift in asked.shifts:
            for severity in SEVERITIES:
                yield case, shift, severity
    for site, cases in asked.sites.items():
        for case in cases[: asked.most]:
            yield case, site, 0


def of_scan(asked: Asked, case: Case, shift: str, severity: int) -> list[Row]:
    """The rows of one shifted scan, one for each run."""
    about = {"scan": case.id, "shift": shift, "severity": severity}
    recipe = next(iter(asked.runs.values())).recipe
    try:
        scan, prepared = shifted(case, shift, severity, asked.seed, recipe)
    except ScanError as error:
        reason = str(error).partition(": ")[2]
        refused = about | {"verdict": "not scored", "reason": reason}
        return [Row(run=name, **refused) for name in asked.runs]
    return [scored(name, run, scan, prepared, about) for name, run in asked.runs.items()]


def shifted(
    case: Case, shift: str, severity: int, seed: int, recipe: Recipe
) -> tuple[Scan, Prepared]:
    """A case's raw scan under a shift of `SHIFTS`, prepared anew; as it is for any other name.

    ScanError where preparing refuses it.
    """
    with tempfile.TemporaryDirectory(prefix="norma-stress-") as folder:
        image = case.image
        if shift in SHIFTS:
            image = write_shifted(case, shift, severity, seed, recipe.modality, Path(folder))
        scan = Scan(case.id, image, case.subject)
        return scan, prepare(scan, recipe)


def write_shifted(
    case: Case, shift: str, severity: int, seed: int, modality: str, folder: Path
) -> Path:
    """Write a case's raw scan under a shift of `SHIFTS`: a NIfTI file, of a picture a PNG file.

    The shift's random numbers depend on seed, scan and shift. `modality` is its recipe's.
    """
    digest = sha256(f"{seed} {case.id} {shift}".encode()).digest()
    rng = np.random.default_rng(list(digest))
    head = SHIFTS[shift](head_of(case, modality), severity, rng)
    if is_picture(case.image):
        path = folder / f"{case.id}.png"
        write_picture(head.voxels, path)
    else:
        path = folder / f"{case.id}.nii"
        write_head(head, path)
    return path


def scored(name: str, run: Run, scan: Scan, prepared: Prepared, about: dict[str, Any]) -> Row:
    """What a run makes of a prepared scan."""
    report = run.detect_prepared(scan, prepared, run.point()).report
    assert report.anomalous_mm3 is not None
    return Row(
        run=name,
        **about,
        verdict=report.gate.verdict if report.gate else "scored",
        reason=", ".join(report.gate.because) if report.gate else "",
        score=report.score,
        marked_ml=report.anomalous_mm3 / 1000,
        findings=report.n_components,
        p_typical=report.gate.p_value if report.gate else None,
    )


def head_of(case: Case, modality: str) -> Head:
    """A case's scan as its file has it, with its brain and the place between its ventricles."""
    image = read_image(case.image)
    prepared = load(case, image=False)
    home = Grid.of(image)
    brain = carry_mask(prepared.brain, prepared.grid, home, inverse(prepared.scan_from_atlas))
    centre = carry(prepared.scan_from_atlas, np.array([BETWEEN_VENTRICLES]))[0]
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    return Head(voxels, image.affine, brain, centre, modality in CT)


def write_head(head: Head, path: Path) -> None:
    """A shifted scan as a NIfTI file, as whole numbers where the values allow it."""
    whole = np.abs(head.voxels).max() > 200  # else rounding would be a shift of its own
    voxels = head.voxels.round().astype(np.int32) if whole else head.voxels
    image = nib.Nifti1Image(voxels, head.affine)
    image.set_sform(head.affine, 1)
    image.set_qform(None, 0)
    nib.save(image, path)


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """By run, shift and severity: what is marked in vain, and how many scans are gated.

    The unshifted scans come first.
    Volumes and findings are means over the scans that are scored; `rise` is the mean change of the
    score from the unshifted scan, in standard deviations of the unshifted scans.
    """
    plain = {(row.run, row.scan): row for row in rows if row.shift == NONE}
    found: list[dict[str, Any]] = []
    keys = {(r.run, r.shift, r.severity) for r in rows}
    for run, shift, severity in sorted(keys, key=lambda key: (key[0], key[1] != NONE, *key[1:])):
        own = [r for r in rows if (r.run, r.shift, r.severity) == (run, shift, severity)]
        scored = [r for r in own if r.score is not None]
        spread = _spread([r for (name, _), r in plain.items() if name == run])
        rises: list[float] = []
        for row in scored:
            before = plain.get((run, row.scan))
            if before and before.score is not None and row.score is not None and spread:
                rises.append((row.score - before.score) / spread)
        found.append(
            {
                "run": run,
                "shift": shift,
                "severity": severity,
                "scans": len(own),
                "not scored": sum(r.verdict == "not scored" for r in own),
                "warned": sum(r.verdict == "scored with warning" for r in own),
                "rise": _mean(rises),
                "marked_ml": _mean([r.marked_ml for r in scored if r.marked_ml is not None]),
                "findings": _mean([r.findings for r in scored if r.findings is not None]),
            }
        )
    return found


def _spread(rows: Sequence[Row]) -> float | None:
    """Standard deviation of scores; None for fewer than two."""
    scores = [row.score for row in rows if row.score is not None]
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
