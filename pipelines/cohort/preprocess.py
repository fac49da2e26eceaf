"""A whole cohort preprocessed: every scan, then the tables, the slice index and the recipe."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines import cli, spread
from pipelines.cohort.attempt import try_preprocess
from pipelines.cohort.lesion_free import part_sidecar
from pipelines.cohort.store import (
    Failure,
    is_complete,
    read_sidecar,
    recipe_digest,
    sidecar_of,
)
from pipelines.config import write_recipe
from pipelines.versions import command_line, shown_path, shown_reason, versions
from preprocessing import slices
from preprocessing.bids import check_people
from preprocessing.files import file_digest, read_table, write_atomic, write_json, write_table
from preprocessing.recipe import Recipe
from preprocessing.scans import InputError, Scan, scan_row
from preprocessing.splits import assign_splits, check_leaks
from preprocessing.tables import list_scans
from preprocessing.volumes import MAX_GB

log = logging.getLogger("norma")

COHORT_COLUMNS = ("preproc", "brain", "sidecar", "digest", "flags", "fingerprint")
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

    @property
    def root(self) -> Path:
        """The folder that came in; tables and pages name files by their way from it."""
        return self.source if self.source.is_dir() else self.source.parent


@dataclass(frozen=True)
class Workers:
    """Where scans are worked on: see `spread.each`."""

    executor: str = ""
    count: int = 1


HERE = Workers()  # this process


def list_input(
    source: Path, modality: str, out: Path, seed: int = 0, max_gb: float = MAX_GB
) -> Input:
    """The scans of `source`, split by subject where it says nothing of splits.

    InputError for a leak or nothing to read. DICOM folders are converted below `out`,
    but for series that take `max_gb` as float32 or more.
    """
    scans, lost = list_scans(source, modality, out, max_gb)
    check_people(source, scans)
    given = all(scan.split for scan in scans)
    earlier = earlier_rows(out, scans)
    scans = _as_before(assign_splits(scans, seed), earlier) if not given else scans
    check_leaks(scans)
    _check_against(scans, earlier, out)
    _check_names(scans, out)
    notes: list[str] = []
    if not given:
        notes.append(f"Splits by subject were made here (seed {seed}) and are in scans.tsv.")
    given_slices = sum(scan.gives_slices for scan in scans)
    if given_slices:
        notes.append(
            f"Slices without lesion of {given_slices} abnormal scans count as healthy, as the "
            "table asks."
        )
    if any(not scan.label and scan.split in ("train", "val") for scan in scans):
        notes.append("Scans without a label in train and val are taken as healthy.")
    for note in notes:
        log.info(note)
    return Input(source, scans, lost, notes)


def earlier_rows(out: Path, scans: Sequence[Scan]) -> list[dict[str, str]]:
    """Rows of other scans that earlier commands preprocessed into `out`, from their sidecars."""
    ids = {scan.id for scan in scans}
    images = {os.path.realpath(scan.image) for scan in scans}
    rows: list[dict[str, str]] = []
    for path in sorted(out.glob("*/*_preproc.json")):
        if path.name.removesuffix("_preproc.json") in ids:
            continue
        sidecar = read_sidecar(path)
        row = sidecar.get("scan")
        if not row or os.path.realpath(out / row["image"]) in images:
            continue  # the same file, which was called otherwise in another batch
        if is_complete(sidecar, out, ()):
            rows.append(row | {"settings": sidecar["settings"], "path": str(path)})
    return rows


def _as_before(scans: list[Scan], earlier: Sequence[dict[str, str]]) -> list[Scan]:
    """A subject that an earlier command put into a split stays in it."""
    known = {row["subject"]: row["split"] for row in earlier}
    return [replace(scan, split=known.get(scan.subject, scan.split)) for scan in scans]


def _check_against(scans: Sequence[Scan], earlier: Sequence[dict[str, str]], out: Path) -> None:
    """InputError where a subject of this command stands in another split in `out`."""
    known = {row["subject"]: row["split"] for row in earlier}
    for scan in scans:
        other = known.get(scan.subject, scan.split)
        if other != scan.split:
            raise InputError(
                f"{out}: holds scans of subject '{scan.subject}' in split '{other}', and "
                f"{scan.image} puts it in '{scan.split}'; keep a subject in one split, or choose "
                "another OUT."
            )


def _check_names(scans: Sequence[Scan], out: Path) -> None:
    """InputError where a scan would take the place of another one of its name in `out`."""
    for scan in scans:
        sidecar = read_sidecar(sidecar_of(scan, out))
        row = sidecar.get("scan")
        if not row or scan.origin or not scan.image.is_file():
            continue
        same_file = os.path.realpath(out / row["image"]) == os.path.realpath(scan.image)
        if not same_file and sidecar.get("digest") != file_digest(scan.image):
            raise InputError(
                f"{out}: holds another scan that is called '{scan.id}' too, not {scan.image}; "
                "give another OUT, or an id in a table."
            )


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
    cli.log_to(out)  # before the bar, which keeps the stderr that it begins with
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
            root = given.root
            write_cohort(results, recipe, out, root)
            shown = [(scan, _shown_failure(scan, failure, root)) for scan, failure in results]
            if page:
                write_atomic(out / "quality.html", page(shown, recipe, out, given.notes))
    return results


def _shown_failure(scan: Scan, failure: Failure | None, root: Path) -> Failure | None:
    if failure is None:
        return None
    return failure | {"reason": shown_reason(failure["reason"], scan.image, root)}


def write_cohort(results: Results, recipe: Recipe, out: Path, root: Path | None = None) -> None:
    """Write scans.tsv, failures.tsv, the slice index, recipe.yaml and preprocess.json.

    They are made of everything that stands in `out`, of other commands with this recipe too.
    Sidecars are read one at a time, so that memory holds a few numbers per scan. Reasons name files
    by their way from `root`, the folder that came in.
    """
    ids = {scan.id for scan, _ in results}
    done = [scan for scan, failure in results if not failure]
    sidecars = [sidecar_of(scan, out) for scan in done]
    sidecars += [part_sidecar(scan, out) for scan in done if scan.gives_slices]
    others = _of_other_commands(out, [scan for scan, _ in results], recipe)
    sidecars += [Path(row["path"]) for row in others]
    failures = _failed_rows(results, root) + _earlier_failures(out, ids, others)
    (out / "slices").mkdir(parents=True, exist_ok=True)
    write_table(out / "scans.tsv", (_row(path, out) for path in sidecars), _columns(sidecars))
    write_table(out / "failures.tsv", failures, FAILED)

    values: dict[str, list[float]] = {}
    count = itertools.count()
    slices.write_index(out / "slices", _index(sidecars, values, count))
    written = write_recipe(out, recipe)
    spread_of: dict[str, dict[str, float]] = {}
    for name, v in values.items():
        spread_of[name] = {"min": min(v), "median": float(np.median(v)), "max": max(v)}
    summary = {
        "n_scans": len(sidecars),
        "n_failed": len(failures),
        "n_slices": next(count),
        "checks": spread_of,
        "command": command_line(),
        "recipe": written.model_dump(),
        "versions": versions(),
    }
    write_json(out / "preprocess.json", summary)


def _of_other_commands(out: Path, scans: Sequence[Scan], recipe: Recipe) -> list[dict[str, str]]:
    """Rows of earlier scans in `out`; those of another recipe are left out, with a word."""
    rows = earlier_rows(out, scans)
    settings = recipe_digest(recipe)
    same = [row for row in rows if row["settings"] == settings]
    if len(same) < len(rows):
        log.warning(
            "%s: %d scans of another recipe are left out of the tables; preprocess them again.",
            out,
            len(rows) - len(same),
        )
    return same


def _earlier_failures(
    out: Path, ids: Collection[str], others: Sequence[dict[str, str]]
) -> list[dict[str, Any]]:
    """Failures that an earlier command wrote, of scans that nobody has tried since."""
    path = out / "failures.tsv"
    if not path.is_file():
        return []
    done = {*ids, *(row["id"] for row in others)}
    return [dict(row) for row in read_table(path) if row.get("id") not in done]


def _columns(sidecars: Sequence[Path]) -> list[str]:
    """Columns of scans.tsv; those of the user's own table come last."""
    first = list(scan_row(Scan("", Path(), "")))
    sequences: dict[str, None] = {}
    own: dict[str, None] = {}
    for path in sidecars:
        for name in read_sidecar(path)["scan"]:
            (sequences if name.startswith("image_") else own).setdefault(name)
    columns = [*first, *sequences, *COHORT_COLUMNS]
    return [*columns, *(name for name in own if name not in columns)]


def _row(path: Path, out: Path) -> dict[str, Any]:
    """A scan's row of scans.tsv, from its sidecar."""
    sidecar = read_sidecar(path)
    return sidecar["scan"] | {
        "preproc": sidecar["image"],
        "brain": sidecar["mask"],
        "sidecar": str(path.relative_to(out)),
        "digest": sidecar["digest"],
        "flags": "; ".join(sidecar["flags"]),
        "fingerprint": sidecar["fingerprint"],
    }


def _failed_rows(results: Results, root: Path | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for scan, failure in results:
        if failure:
            named = {"id": scan.id, "image": shown_path(scan.image, root), "split": scan.split}
            reason = shown_reason(failure["reason"], scan.image, root)
            rows.append(named | {"reason": reason})
    return rows


def _index(
    sidecars: Sequence[Path], values: dict[str, list[float]], count: Iterator[int]
) -> Iterator[dict[str, Any]]:
    """The slices of every scan; collects the values of checks and counts the slices on the way."""
    for path in sidecars:
        sidecar = read_sidecar(path)
        for check in sidecar["checks"]:
            values.setdefault(check["name"], []).append(check["value"])
        row = sidecar["scan"]
        named = {"scan": row["id"], "subject": row["subject"]}
        named |= {"split": row["split"], "label": row["label"]}
        for i, (z, pixels) in enumerate(zip(sidecar["z"], sidecar["brain_px"], strict=True)):
            next(count)
            yield named | {"row": i, "z": z, "brain_px": pixels}
