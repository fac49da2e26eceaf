"""A whole cohort preprocessed: every scan, then the tables, the slice index and the recipe."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines import spread
from pipelines.cohort.store import Failure, sidecar_of, try_preprocess
from pipelines.config import write_yaml
from pipelines.versions import command_line, versions
from preprocessing import slices
from preprocessing.files import file_digest, read_json, write_atomic, write_json, write_table
from preprocessing.recipe import Recipe
from preprocessing.scans import InputError, Scan, scan_row
from preprocessing.splits import assign_splits, check_leaks
from preprocessing.tables import list_scans

log = logging.getLogger("norma")

COHORT_COLUMNS = ("preproc", "brain", "sidecar", "digest", "flags")
FAILED = ("id", "image", "split", "reason")

Results = list[tuple[Scan, Failure | None]]
"""Scans with their failure, None for a good one."""

Page = Callable[[Results, Recipe, Path, Sequence[str]], str]


@dataclass(frozen=True)
class Input:
    """What a cohort is made of: scans with their splits, and what the reader should know.

    `lost` says by name why DICOM series gave no scan.
    """

    source: Path
    scans: list[Scan]
    lost: dict[str, str]
    notes: list[str]


@dataclass(frozen=True)
class Workers:
    """Where scans are worked on: see `spread.each`."""

    executor: str = ""
    count: int = 1


HERE = Workers()  # this process


def existing_input(source: Path) -> Path:
    """The input as it is given; InputError where there is none."""
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder; "
            "give IN= a scan, a folder, a CSV/TSV table or a JSON datalist."
        )
    return source


def list_input(source: Path, modality: str, out: Path, seed: int = 0) -> Input:
    """The scans of `source`, split by subject where it says nothing of splits.

    InputError for a leak or nothing to read. DICOM folders are converted below `out`.
    """
    scans, lost = list_scans(source, modality, out)
    given = all(scan.split for scan in scans)
    scans = assign_splits(scans, seed)
    check_leaks(scans)
    notes: list[str] = []
    if not given:
        notes.append(f"Splits by subject were made here (seed {seed}) and are in scans.tsv.")
    if any(not scan.label and scan.split in ("train", "val") for scan in scans):
        notes.append("Scans without a label in train and val are taken as healthy.")
    for note in notes:
        log.info(note)
    return Input(source, scans, lost, notes)


def preprocess_cohort(
    given: Input,
    recipe: Recipe,
    out: Path,
    formats: Sequence[str] = (),
    workers: Workers = HERE,
    page: Page | None = None,
) -> Results:
    """Preprocess every scan into `out`, and write the cohort's tables, also after an interruption.

    `page` makes quality.html of the results, the recipe, `out` and the notes.
    """
    results: Results = []
    work = partial(try_preprocess, recipe=recipe, out=out, formats=formats)
    done = spread.each(work, given.scans, workers.executor, workers.count)
    bar = tqdm(done, total=len(given.scans), desc="preprocess", unit="scan")
    try:
        for scan, result, lost_because in bar:
            failure = result
            if lost_because:
                failure = {"reason": f"{scan.image}: {lost_because}", "checks": []}
            results.append((scan, failure))
            if failure:
                tqdm.write(f"left out: {failure['reason']}", file=bar.fp)
    finally:
        order = {scan.id: i for i, scan in enumerate(given.scans)}
        results.sort(key=lambda result: order[result[0].id])
        if results:
            for name, reason in given.lost.items():
                results.append((Scan(name, given.source, name), {"reason": reason, "checks": []}))
            write_cohort(results, recipe, out)
            if page:
                write_atomic(out / "quality.html", page(results, recipe, out, given.notes))
    return results


def write_cohort(results: Results, recipe: Recipe, out: Path) -> None:
    """Write scans.tsv, failures.tsv, the slice index, recipe.yaml and preprocess.json.

    Sidecars are read one at a time, so that memory holds a few numbers per scan.
    """
    good = [scan for scan, failure in results if not failure]
    (out / "slices").mkdir(parents=True, exist_ok=True)
    write_table(out / "scans.tsv", (_row(scan, out) for scan in good), _columns(good, recipe))
    write_table(out / "failures.tsv", _failed_rows(results), FAILED)

    values: dict[str, list[float]] = {}
    count = itertools.count()
    slices.write_index(out / "slices", _index(good, out, values, count))
    write_atomic(out / "recipe.yaml", write_yaml(recipe))
    spread_of: dict[str, dict[str, float]] = {}
    for name, v in values.items():
        spread_of[name] = {"min": min(v), "median": float(np.median(v)), "max": max(v)}
    summary = {
        "n_scans": len(good),
        "n_failed": len(results) - len(good),
        "n_slices": next(count),
        "checks": spread_of,
        "command": command_line(),
        "recipe": recipe.model_dump(),
        "versions": versions(),
    }
    write_json(out / "preprocess.json", summary)


def _columns(good: Sequence[Scan], recipe: Recipe) -> list[str]:
    """Columns of scans.tsv; the user's own come last."""
    sequences: dict[str, Path] = {series.modality: Path() for series in recipe.sequences}
    columns = [*scan_row(Scan("", Path(), "", sequences=sequences)), *COHORT_COLUMNS]
    for scan in good:
        columns += [name for name in scan.extra if name not in columns]
    return columns


def _row(scan: Scan, out: Path) -> dict[str, Any]:
    """A scan's row of scans.tsv."""
    path = sidecar_of(scan, out)
    sidecar = read_json(path)
    return {
        **scan.extra,
        **scan_row(replace(scan, extra={})),
        "preproc": sidecar["image"],
        "brain": sidecar["mask"],
        "sidecar": str(path.relative_to(out)),
        "flags": "; ".join(sidecar["flags"]),
        "digest": sidecar.get("digest") or file_digest(scan.image),
    }


def _failed_rows(results: Results) -> Iterator[dict[str, Any]]:
    for scan, failure in results:
        if failure:
            named = {"id": scan.id, "image": scan.image, "split": scan.split}
            yield named | {"reason": failure["reason"]}


def _index(
    good: Sequence[Scan], out: Path, values: dict[str, list[float]], count: Iterator[int]
) -> Iterator[dict[str, Any]]:
    """The slices of every scan; collects the values of checks and counts the slices on the way."""
    for scan in good:
        sidecar = read_json(sidecar_of(scan, out))
        for check in sidecar["checks"]:
            values.setdefault(check["name"], []).append(check["value"])
        named = {"scan": scan.id, "subject": scan.subject}
        named |= {"split": scan.split, "label": scan.label}
        for i, (z, pixels) in enumerate(zip(sidecar["z"], sidecar["brain_px"], strict=True)):
            next(count)
            yield named | {"row": i, "z": z, "brain_px": pixels}
