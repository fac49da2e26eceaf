"""Cases: the rows of a preprocessed cohort's scans.tsv, their voxels and their truth."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from preprocessing.files import digest_of, read_json, read_table
from preprocessing.images import Grid, is_picture, load_array, read_image
from preprocessing.prepare import Prepared
from preprocessing.scans import LESION_FREE, SPLITS, InputError, ScanError
from preprocessing.warp import Map, Warp, read_field

AGAIN = "run 'make preprocess' again."
FILES = ("image", "mask", "brain_mask", "slice_labels", "preproc", "brain", "sidecar")
PART = "_lesion-free"  # ends the id of a case that is the slices without lesion of another
PATHS = frozenset(("image", "lesions", "brain_mask", "slice_labels", "preproc", "brain", "sidecar"))


class Case(BaseModel):
    """A scan of a preprocessed cohort: one row of its scans.tsv.

    `image`, `lesions` (the truth, column `mask`), `brain_mask` and `slice_labels` are files of the
    user; `preproc` (the first channel in atlas space), `brain` and `sidecar` are files of the
    cohort. `label` is "healthy", "abnormal" or "" (unknown). `columns` holds the further columns.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    id: str
    image: Path
    subject: str
    split: str = ""
    label: str = ""
    pathology: str = ""
    lesions: Path | None = Field(None, alias="mask")
    brain_mask: Path | None = None
    slice_labels: Path | None = None
    preproc: Path
    brain: Path
    sidecar: Path
    digest: str = ""
    flags: str = ""
    fingerprint: str = ""
    columns: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def from_row(cls, row: dict[str, str], data: Path) -> Case:
        """A case from its row, whose files are relative to `data`."""
        known = {f.alias or name for name, f in cls.model_fields.items()} - {"columns"}
        fields: dict[str, Any] = {k: v for k, v in row.items() if k in known}
        for name in FILES:
            fields[name] = data / row[name] if row.get(name) else None
        columns = {k: v for k, v in row.items() if k not in known}
        return cls(**fields, columns=columns)

    @property
    def is_part(self) -> bool:
        """Whether the case is the slices without lesion of another one: healthy, but no person is.

        It trains and calibrates, and is never tested.
        """
        return self.label == "healthy" and self.columns.get("healthy_slices") == LESION_FREE

    @property
    def gives_part(self) -> bool:
        """Whether the case is the whole scan with lesion that such slices were taken from."""
        return self.label == "abnormal" and self.columns.get("healthy_slices") == LESION_FREE

    def column(self, name: str) -> str | None:
        """A column of the table by its name; None where the table has none."""
        if name in ("id", "subject", "split", "label", "pathology", "digest", "flags"):
            return str(getattr(self, name))
        return self.columns.get(name)

    def read_sidecar(self) -> dict[str, Any]:
        """How the scan was preprocessed: matrices, checks, channels, fingerprint."""
        return read_json(self.sidecar)


def read_cases(data: Path, splits: Path | None = None) -> list[Case]:
    """The cases of a cohort, with the splits of another table (id, split) where one is given.

    Cases that the table leaves out are left out. InputError where a file or a case is missing, or
    where a subject, or one image under two names, stands in two splits.
    """
    table = data / "scans.tsv"
    if not table.is_file():
        raise InputError(
            f"{table}: no such file; run 'make preprocess' first and give its OUT as DATA."
        )
    rows = read_table(table)
    lacking = [
        c
        for c in ("id", "image", "subject", "preproc", "brain", "sidecar")
        if rows and c not in rows[0]
    ]
    if lacking:
        raise InputError(f"{table}: no column '{lacking[0]}'; run 'make preprocess' again.")
    _check_count(len(rows), data)
    try:
        cases = [Case.from_row(row, data) for row in rows]
    except (ValidationError, ValueError) as error:
        raise InputError(f"{table}: a damaged row ({_problem(error)}); {AGAIN}") from None
    if splits:
        cases = _with_splits(cases, splits, table)
    _refuse_leaks(cases, splits or table)
    return cases


def _problem(error: ValueError) -> str:
    """What is wrong with a row, in a few words."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"'{first['loc'][0]}': {first['msg'].lower()}" if first["loc"] else first["msg"]
    return " ".join(str(error).split())


def _check_count(rows: int, data: Path) -> None:
    """InputError where scans.tsv has lost rows since it was written."""
    path = data / "preprocess.json"
    written = read_json(path).get("n_scans") if path.is_file() else None
    if isinstance(written, int) and written != rows:
        raise InputError(
            f"{data / 'scans.tsv'}: {rows} rows, and {written} were written: "
            f"it was cut or changed; {AGAIN}"
        )


def _with_splits(cases: list[Case], splits: Path, table: Path) -> list[Case]:
    """The cases that a table (id, split) names, with its splits."""
    given = {r.get("id", ""): r.get("split", "") for r in read_table(splits)}
    unknown = set(given) - {case.id for case in cases}
    wrong = set(given.values()) - set(SPLITS)
    if unknown:
        raise InputError(f"{splits}: scan '{min(unknown)}' is not in {table}.")
    if wrong:
        raise InputError(f"{splits}: split '{min(wrong)}', expected {', '.join(SPLITS)}.")
    return [case.model_copy(update={"split": given[case.id]}) for case in cases if case.id in given]


def _refuse_leaks(cases: Iterable[Case], table: Path) -> None:
    """InputError where a subject, or an image by its bytes, stands in two splits."""
    subjects: dict[str, Case] = {}
    images: dict[str, Case] = {}
    for case in cases:
        first = subjects.setdefault(case.subject or case.id, case)
        _same_split(case, first, f"subject '{case.subject}'", table)
    for case in cases:
        first = images.setdefault(case.digest or case.id, case)
        _same_split(case, first, f"the same image, as '{first.id}'", table)


def _same_split(case: Case, first: Case, what: str, table: Path) -> None:
    if first.split != case.split:
        raise InputError(
            f"{table}: {what} is in two splits, '{first.split}' and '{case.split}' "
            f"(scan '{case.id}'); keep it in one."
        )


def learning_cases(
    cases: Iterable[Case], split: str, data: Path, supervised: bool = False
) -> list[Case]:
    """The cases of one split, all healthy or unlabelled; an abnormal one is refused by name.

    Where the table asks for its slices without lesion, these stand for it. A supervised model needs
    both kinds instead.
    """
    table = data / "scans.tsv"
    cases = [case for case in cases if case.split == split and (supervised or not case.gives_part)]
    abnormal = next((case for case in cases if case.label == "abnormal"), None)
    healthy = any(case.label == "healthy" for case in cases)
    if supervised and not (abnormal and healthy):
        raise InputError(
            f"{table}: a supervised model needs healthy and abnormal scans in split '{split}'; "
            "give a table with --splits, or compare with PROTOCOL=kfold."
        )
    if abnormal and not supervised:
        raise InputError(
            f"{table}: abnormal scan '{abnormal.id}' in split '{split}'; "
            "Norma learns from healthy scans alone."
        )
    if not cases:
        raise InputError(
            f"{table}: no scans in split '{split}'; "
            "training needs healthy scans in 'train' and 'val'."
        )
    return cases


def load(case: Case, image: bool = True) -> Prepared:
    """A preprocessed case as `prepare` gives a raw scan; ScanError where a file is damaged.

    Without `image` no channel is read, and the image is empty.
    """
    sidecar = case.read_sidecar()
    brain = load_array(case.brain) > 0
    voxels = _load_channels(case, sidecar) if image else np.empty(0, np.float32)
    home = Grid(tuple(sidecar["native_shape"]), np.array(sidecar["native_affine"]))
    matrix = np.array(sidecar["world"], float)
    scan_from_atlas: Map = matrix
    if "warp" in sidecar:
        field = read_field(case.sidecar.parents[1] / sidecar["warp"])
        scan_from_atlas = Warp((matrix, field))
    return Prepared(
        image=voxels,
        brain=brain,
        grid=Grid.of(nib.Nifti1Image.from_filename(case.brain)),
        home=home,
        scan_from_atlas=scan_from_atlas,
        space=sidecar.get("space", ""),
        brain_method=sidecar["brain_method"],
    )


def _load_channels(case: Case, sidecar: dict[str, Any]) -> np.ndarray:
    """Image as float32 (X, Y, Z), or (X, Y, Z, C) where it has several channels."""
    data = case.sidecar.parents[1]  # sidecars lie in <data>/<subject>
    files = [case.preproc, *(data / f["image"] for f in sidecar.get("further", []))]
    channels = [load_array(f).astype(np.float32) for f in files]
    return channels[0] if len(channels) == 1 else np.stack(channels, -1)


def read_truth(case: Case, home: Grid) -> np.ndarray | None:
    """Lesion labels on the scan's own grid, int (X, Y, Z), 0 is none.

    All 0 for a healthy scan, None where nobody knows. ScanError where the truth lies elsewhere.
    """
    if not case.lesions:
        return np.zeros(home.shape, np.int32) if case.label == "healthy" else None
    image = read_image(case.lesions)
    half_a_voxel = min(home.spacing) / 2
    difference = grid_difference(Grid.of(image), home, half_a_voxel)
    if difference:
        raise ScanError(f"{case.lesions}: {difference}; the truth must lie on the scan's grid.")
    labels = np.nan_to_num(np.asarray(image.dataobj))  # NaN is background
    if is_picture(case.lesions):
        return (labels > 0).astype(np.int32)
    return np.round(labels).astype(np.int32)


def grid_difference(grid: Grid, home: Grid, allowed: float) -> str:
    """How a grid differs from a scan's, in words; empty below `allowed` mm at every corner."""
    if grid.shape != home.shape:
        return f"shape {grid.shape} differs from the scan's, {home.shape}"
    ends = [(0, n - 1) for n in home.shape]
    corners = np.array([(*corner, 1) for corner in itertools.product(*ends)])
    apart = np.linalg.norm(corners @ (grid.affine - home.affine).T, axis=1).max()
    if apart < allowed:
        return ""
    return (
        f"its affine lays voxels up to {apart:.3g} mm from the scan's, "
        f"expected less than {allowed:.3g} mm"
    )


def data_digest(cases: Iterable[Case]) -> str:
    """What a run learns from: every case but the test ones, as it was preprocessed, its split."""
    learned = [case for case in cases if case.split != "test"]
    return digest_of(sorted([c.id, c.split, c.digest, c.fingerprint] for c in learned))


def data_digest_0(cases: Iterable[Case]) -> str:
    """`data_digest` as version 0.1.0 wrote it, by the paths of the images."""
    lines = [f"{c.id} {c.split} {c.image}" for c in cases if c.split != "test"]
    return sha256("\n".join(sorted(lines)).encode()).hexdigest()


def count_parts(scans: Sequence[str]) -> int:
    """How many of some scans, by their ids, are slices without lesion of a patient's scan."""
    return sum(name.endswith(PART) for name in scans)


def people_in(columns: Sequence[dict[str, str]]) -> dict[str, str]:
    """Ages and sexes of scans in words, from further columns of their table; empty for none."""
    found: dict[str, str] = {}
    ages: list[float] = []
    for row in columns:
        text = row.get("age", "")
        if re.fullmatch(r"\d+(\.\d+)?", text):
            ages.append(float(text))
    if ages:
        found["ages"] = f"{min(ages):g} to {max(ages):g} years, median {np.median(ages):g}"
    sexes = [row["sex"] for row in columns if row.get("sex")]
    if sexes:
        found["sexes"] = ", ".join(f"{sexes.count(s)} {s}" for s in sorted(set(sexes)))
    return found
