"""Likeness to the atlas of heads that lie right and wrong: `python -m benchmarks.likeness`.

`--data` is a folder that holds a folder per public set. Each scan is fitted as its header says, and
with headers that are wrong in a known way. The brain mask of the right pose serves all of them, so
that likeness alone has to tell them apart. What `--out` holds already is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

from pipelines import cli
from pipelines.config import load_recipe
from preprocessing.files import read_json, write_json
from preprocessing.prepare import Prepared, Stripped, lay_on_atlas, strip
from preprocessing.recipe import Recipe
from preprocessing.scans import Scan, ScanError
from preprocessing.warp import linear

SETS = {"ds002748": "t1", "ds011": "t1", "open_ms": "t1", "ct_ich": "ct"}
FURTHER = {"open_ms": ("t2", "flair")}  # sequences beside the T1 of a set, by its name
RIGHT = "right"
WRONG = {
    "back to front": np.diag([1.0, -1, 1, 1]),
    "upside down": np.diag([1.0, 1, -1, 1]),
    "axes permuted": np.eye(4)[[1, 2, 0, 3]],
}
ENDS_RIGHT = 15  # degrees from the true pose within which the fit mended a wrong header
WORST = 0.01  # share of wrong decisions that a limit may make

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of the public sets")
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the results")
    parser.add_argument("--only", nargs="*", default=list(SETS), help="sets to measure")
    parser.add_argument(
        "--wrong", type=int, default=1, help="wrong poses for each scan, which take turns"
    )
    arguments = parser.parse_args()
    rows: list[Row] = read_json(arguments.out)["scans"] if arguments.out.is_file() else []
    done = {(row["set"], row["modality"], row["id"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, modality, scan) in enumerate(
            listed(arguments.data, arguments.only, Path(folder))
        ):
            if (name, modality, scan.id) in done:
                continue
            turns = itertools.islice(itertools.cycle(WRONG), number, number + arguments.wrong)
            for row in measured(scan, modality, list(turns)):
                rows.append({"set": name, "modality": modality, "id": scan.id, **row})
                print(rows[-1])
            write_json(arguments.out, {"limits": summary(rows), "scans": rows})
    write_json(arguments.out, {"limits": summary(rows), "scans": rows})


def listed(data: Path, sets: Sequence[str], out: Path) -> Iterator[tuple[str, str, Scan]]:
    """(set, modality, scan) of every set that is there."""
    for name in sets:
        if not (data / name).is_dir():
            continue
        for scan in import_module(f"preprocessing.datasets.{name}").scans(data / name, out)[0]:
            yield name, SETS[name], scan
            for modality in FURTHER.get(name, ()):
                image = scan.image.name.replace("_T1", f"_{modality.upper()}")
                yield name, modality, replace(scan, image=scan.image.with_name(image))


def measured(scan: Scan, modality: str, wrong: Sequence[str]) -> Iterator[Row]:
    """A row of numbers for each pose of a scan; one with the reason where it cannot be fitted."""
    recipe = open_recipe(modality)
    try:
        first = strip(scan, recipe)
        right = lay_on_atlas(first, recipe)
    except ScanError as error:
        yield {"pose": RIGHT, "refused": str(error).partition(": ")[2]}
        return
    yield {"pose": RIGHT, **numbers(right), "degrees": 0.0}
    for name in wrong:
        pose = WRONG[name]
        found = lay_on_atlas(posed(first, pose), recipe)
        true = pose @ right.scan_from_atlas
        yield {"pose": name, **numbers(found), "degrees": degrees_apart(found, true)}


def open_recipe(modality: str) -> Recipe:
    """The recipe of a modality without limits of its fit."""
    recipe = load_recipe(modality)
    limits = recipe.limits.model_copy(update={"min_overlap": -1.0, "min_information": -1.0})
    return recipe.model_copy(update={"limits": limits})


def posed(first: Stripped, pose: np.ndarray) -> Stripped:
    """A stripped scan whose headers are wrong by `pose` (4x4)."""

    def moved(image: nib.Nifti1Image) -> nib.Nifti1Image:
        data = np.asarray(image.dataobj)
        return nib.as_closest_canonical(nib.Nifti1Image(data, pose @ image.affine))

    brain = moved(nib.Nifti1Image(first.brain.astype(np.uint8), first.work.affine))
    work = moved(first.work)
    source = moved(first.source)
    native = moved(first.native)
    return replace(
        first, work=work, source=source, native=native, brain=np.asarray(brain.dataobj) > 0
    )


def numbers(prepared: Prepared) -> Row:
    """What the checks of the fit measured."""
    keys = {"rigid": "rigid", "affine (": "affine", "likeness": "likeness"}
    found: Row = {}
    for check in prepared.checks:
        if "atlas" in check.name:
            key = next(short for part, short in keys.items() if part in check.name)
            found[key] = round(check.value, 4)
    return found


def degrees_apart(found: Prepared, true: np.ndarray) -> float:
    """Degrees between a pose and the true one; left and right may have changed places."""
    true = true[:3, :3]
    if np.linalg.det(true) < 0:
        true = true @ np.diag([-1, 1, 1])
    turn = Rotation.from_matrix(linear(found.scan_from_atlas)[:3, :3].T @ true)
    return round(float(np.degrees(turn.magnitude())), 1)


def summary(rows: Sequence[Row]) -> dict[str, Row]:
    """By modality: likeness where heads end right and wrong, and what the limit makes of it."""
    by_modality: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if "likeness" in row:
            by_modality[row["modality"]].append(row)
    return {name: decisions(name, found) for name, found in sorted(by_modality.items())}


def decisions(modality: str, rows: Sequence[Row]) -> Row:
    """Both error rates of the limit of a modality, and between which values it may lie."""
    limit = load_recipe(modality).limits.min_information
    ends_right = np.array([row["degrees"] < ENDS_RIGHT for row in rows])
    likeness = np.array([row["likeness"] for row in rows])
    right = likeness[ends_right]
    wrong = likeness[~ends_right]
    mended = sum(row["pose"] != RIGHT and row["degrees"] < ENDS_RIGHT for row in rows)
    result: Row = {
        "limit": limit,
        "right": extent(right),
        "wrong": extent(wrong),
        "wrong headers that the fit mended": mended,
        "right refused": float((right < limit).mean()),
    }
    if len(wrong):
        result["wrong passed"] = float((wrong >= limit).mean())
        result["limit at which 1 % of the wrong pass"] = float(np.quantile(wrong, 1 - WORST))
    result["limit at which 1 % of the right are refused"] = float(np.quantile(right, WORST))
    return result


def extent(values: np.ndarray) -> Row:
    """Number, minimum, median and maximum."""
    if not len(values):
        return {"n": 0}
    low, middle, high = np.quantile(values, (0, 0.5, 1))
    return {"n": len(values), "min": float(low), "median": float(middle), "max": float(high)}


if __name__ == "__main__":
    cli.leave(main)
