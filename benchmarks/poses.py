"""What the checks of a fit make of heads under right and wrong headers.

`python -m benchmarks.poses --data FOLDER --out docs/results/poses.json`

`--data` holds a folder per public set. Each scan is fitted as its header says, and under headers
that are wrong in a known way. The brain mask of the right header serves all of them, so that the
fit and its checks alone have to tell them apart. What `--out` holds is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.stats import norm, shapiro

from pipelines import cli
from pipelines.config import load_recipe
from preprocessing import quality
from preprocessing.files import read_json, write_json
from preprocessing.images import HALF, Grid
from preprocessing.orientation import (
    Coarse,
    coarse_atlas,
    degrees_between,
    over_other_poses,
    rival_poses,
)
from preprocessing.prepare import registration_view, strip
from preprocessing.recipe import Limits, Recipe
from preprocessing.register import fit, load_atlas
from preprocessing.resample import carry_mask, resample
from preprocessing.scans import InputError, Scan, ScanError

SETS = {
    ("ct_ich", "ct"): "*/*_ct.nii.gz",
    ("ds002748", "t1"): "*/anat/*_T1w.nii.gz",
    ("ds011", "t1"): "*/anat/*_T1w.nii.gz",
    ("open_ms", "t1"): "*/*_T1.nii.gz",
    ("open_ms", "t2"): "*/*_T2.nii.gz",
    ("open_ms", "flair"): "*/*_FLAIR.nii.gz",
    ("lgg_flair", "flair"): "*/*_FLAIR.nii.gz",
}
RIGHT = "right"
FEWEST = 5  # heads, below which no spread is estimated
WRONG = {
    "back to front": np.diag([1.0, -1, 1, 1]),
    "upside down": np.diag([1.0, 1, -1, 1]),
    "back to front and upside down": np.diag([1.0, -1, -1, 1]),
    "two axes permuted": np.eye(4)[[0, 2, 1, 3]],
    "three axes permuted": np.eye(4)[[1, 2, 0, 3]],
    "turned by 90 degrees": np.eye(4)[[1, 0, 2, 3]] * [[1], [-1], [1], [1]],
}
ENDS_RIGHT = 15  # degrees from the true pose within which the fit mended a wrong header

Row = dict[str, Any]


@dataclass(frozen=True)
class Head:
    """A stripped head: image (X, Y, Z) as registration sees it, brain (bool), and their grid."""

    image: np.ndarray
    brain: np.ndarray
    grid: Grid


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of the public sets")
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the results")
    parser.add_argument("--only", nargs="*", help="sets to measure; all by default")
    parser.add_argument("--scans", type=int, default=10, help="scans of each set, evenly chosen")
    parser.add_argument(
        "--wrong", type=int, default=3, help="wrong headers of each scan, which take turns"
    )
    arguments = parser.parse_args()
    rows: list[Row] = read_json(arguments.out)["scans"] if arguments.out.is_file() else []
    turns = itertools.cycle(WRONG)
    for set_name, modality, path in listed(arguments.data, arguments.scans):
        about = {"set": set_name, "modality": modality, "id": path.name.split("_")[0]}
        wrong = list(itertools.islice(turns, arguments.wrong))
        done = any(about.items() <= row.items() for row in rows)
        if done or (arguments.only and set_name not in arguments.only):
            continue
        for row in measured(path, modality, wrong):
            print({**about, **row}, flush=True)
            rows.append({**about, **row})
        write(arguments.out, rows)
    write(arguments.out, rows)


def write(out: Path, rows: list[Row]) -> None:
    limit = Limits().min_pose_ratio
    modalities = summary(rows)
    for name, found in modalities.items():
        found["expected errors"] = expected([r for r in rows if r["modality"] == name], limit)
    content: Row = {"limit": limit, "expected errors": expected(rows, limit)}
    write_json(out, content | {"modalities": modalities, "scans": rows})


def expected(rows: Sequence[Row], limit: float) -> Row:
    """Shares of right heads below the limit and of wrong ones above it, were log ratios normal.

    `p normal` is how likely they are as far from normal (Shapiro and Wilk). None for fewer than 5.
    """
    found: Row = {}
    for name, is_right in ((RIGHT, True), ("wrong", False)):
        known = [r for r in rows if (r["pose"] == RIGHT) == is_right]
        own = [r["over_others"] for r in known if "over_others" in r]
        if len(own) < FEWEST:
            found[name] = None
            continue
        logs = np.log(own)
        below = float(norm.cdf(np.log(limit), logs.mean(), logs.std(ddof=1)))
        share = below if is_right else 1 - below
        found[name] = {"share": round(share, 6), "p normal": round(float(shapiro(logs)[1]), 4)}
    return found


def listed(data: Path, scans: int) -> Iterator[tuple[str, str, Path]]:
    """(set, modality, image) of some scans of every set that is there; InputError without any."""
    if not any((data / name).is_dir() for name, _ in SETS):
        sets = ", ".join(dict.fromkeys(name for name, _ in SETS))
        raise InputError(f"{data}: no folder of a public set is in it; expected one of {sets}.")
    for (name, modality), pattern in SETS.items():
        found = sorted((data / name).glob(pattern))
        chosen = np.unique(np.linspace(0, len(found) - 1, min(scans, len(found))).round())
        for number in chosen:
            yield name, modality, found[int(number)]


def measured(path: Path, modality: str, wrong: Sequence[str]) -> Iterator[Row]:
    """A row for each header of a scan; one with the reason where no brain is found."""
    recipe = load_recipe(modality)
    try:
        head = head_of(path, recipe)
    except ScanError as error:
        yield {"pose": RIGHT, "not measured": str(error).partition(": ")[2]}
        return
    right, row = fitted(head, recipe)
    yield {"pose": RIGHT, **row, "degrees": 0.0}
    for name in wrong:
        found, row = fitted(posed(head, WRONG[name]), recipe)
        yield {"pose": name, **row, "degrees": degrees_apart(found, WRONG[name] @ right)}


def head_of(path: Path, recipe: Recipe) -> Head:
    """The stripped head of a scan; ScanError where no brain is found."""
    first = strip(Scan(path.name, path, path.name), recipe)
    shown = registration_view(np.asarray(first.work.dataobj), first.brain, recipe.intensity)
    return Head(shown, first.brain, Grid.of(first.work))


def posed(head: Head, pose: np.ndarray) -> Head:
    """A stripped head whose header is wrong by `pose` (4x4)."""
    arrays = (head.image, head.brain.astype(np.uint8))
    image, brain = [
        nib.as_closest_canonical(nib.Nifti1Image(data, pose @ head.grid.affine)) for data in arrays
    ]
    return Head(np.asarray(image.dataobj), np.asarray(brain.dataobj) > 0, Grid.of(image))


def fitted(head: Head, recipe: Recipe) -> tuple[np.ndarray, Row]:
    """The affine map (4x4) that a fit finds, what the checks measure, and which of them refuse."""
    atlas = load_atlas(recipe.template, recipe.grid)
    rigid, affine = fit(
        head.image, head.grid, atlas, brain=head.brain, spacing=recipe.registration_spacing
    )
    coarse = atlas.grid.every(2)
    by_rigid = carry_mask(head.brain, head.grid, coarse, rigid)
    by_affine = carry_mask(head.brain, head.grid, coarse, affine)
    both = by_affine & atlas.brain[HALF]
    there = resample(head.image, head.grid, coarse, affine)[both]
    likeness = quality.mutual_information(there, atlas.image[HALF][both]) if both.any() else 0.0

    began = time.perf_counter()
    shown = Coarse.of(head.image, head.brain, head.grid)
    wanted = coarse_atlas(atlas)
    over_others = over_other_poses(shown, wanted, affine, rival_poses(shown, wanted))
    seconds = time.perf_counter() - began
    numbers = {
        "rigid": quality.dice(by_rigid, atlas.brain[HALF]),
        "affine": quality.dice(by_affine, atlas.brain[HALF]),
        "likeness": likeness,
        "over_others": over_others,
    }
    checks = quality.registration_checks(
        numbers["rigid"], numbers["affine"], likeness, over_others, recipe.limits
    )
    rounded = {name: round(value, 4) for name, value in numbers.items()}
    refused = [name for name, c in zip(numbers, checks, strict=True) if not c.passed]
    return affine, {**rounded, "refused by": refused, "seconds": round(seconds, 2)}


def degrees_apart(found: np.ndarray, true: np.ndarray) -> float:
    """Degrees between a pose and the true one; left and right may have changed places."""
    if np.linalg.det(true[:3, :3]) < 0:
        true = true @ np.diag([-1.0, 1, 1, 1])
    return round(degrees_between(found, true), 1)


def summary(rows: Sequence[Row]) -> dict[str, Row]:
    """By modality: what the checks make of right headers and of each wrong one."""
    result: dict[str, Row] = {}
    for modality in sorted({row["modality"] for row in rows}):
        of_modality = [row for row in rows if row["modality"] == modality]
        own = [row for row in of_modality if "over_others" in row]
        mended = [row for row in own if row["pose"] != RIGHT and row["degrees"] < ENDS_RIGHT]
        wrong = [row for row in own if row["pose"] != RIGHT and row not in mended]
        right = [row for row in own if row["pose"] == RIGHT]
        result[modality] = {
            "not measured": sum("not measured" in row for row in of_modality),
            "mended by the fit": len(mended),
            RIGHT: counts(right),
            "all wrong": counts(wrong),
        }
        for pose in WRONG:
            result[modality][pose] = counts([row for row in wrong if row["pose"] == pose])
    return result


def counts(rows: Sequence[Row]) -> Row:
    """How many heads there are, how many of them are refused, and the extent of what is measured.

    `without it`: refused by the other checks of the fit alone.
    """
    if not rows:
        return {"n": 0}
    result: Row = {
        "n": len(rows),
        "refused": sum(bool(row["refused by"]) for row in rows),
        "refused by over_others": sum("over_others" in row["refused by"] for row in rows),
        "without it": sum(bool({*row["refused by"]} - {"over_others"}) for row in rows),
    }
    for name in ("over_others", "likeness"):
        low, middle, high = np.quantile([row[name] for row in rows], (0, 0.5, 1))
        result[name] = {"min": round(low, 4), "median": round(middle, 4), "max": round(high, 4)}
    return result


if __name__ == "__main__":
    cli.leave(main)
