"""quality.html: what went into preprocessing, what fell out and why, pictures of each scan."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.cohort.preprocess import Results
from pipelines.cohort.store import sidecar_of
from pipelines.pages.html import Section, page
from preprocessing.files import read_json
from preprocessing.recipe import Recipe
from preprocessing.scans import Scan

SHOWN = 200  # scans on quality.html at most
COLUMNS = ["check", "value", "unit", "expected", "result"]


def quality_page(results: Results, recipe: Recipe, out: Path, notes: Sequence[str]) -> str:
    """One page: what went in, what fell out and why, and each scan's outline with its checks.

    Of more than `SHOWN` scans the flagged ones come first, and then scans at even distances.
    """
    good = [scan for scan, failure in results if not failure]
    bad = [(scan, failure) for scan, failure in results if failure]
    shown = _shown(good, out)
    text = f"{len(good)} scans preprocessed, {len(bad)} left out. Modality {recipe.name}"
    text += _explained(recipe) + " ".join(notes)
    if len(shown) < len(good):
        text += (
            f" {len(shown)} of the scans are shown: flagged ones first; "
            "the pictures of all are in the folder quality."
        )

    sections = [Section("Summary", text)]
    if bad:
        rows = [[scan.id, failure["reason"]] for scan, failure in bad]
        sections.append(Section("Left out", table=(["scan", "reason"], rows)))
    for scan, failure in bad[:SHOWN]:
        pictures = _pictures(scan, recipe, out)
        if pictures:
            table = (COLUMNS, _check_rows(failure["checks"]))
            sections.append(Section(f"{scan.id} (left out)", failure["reason"], table, pictures))
    for scan in shown:
        sections.append(_scan_section(scan, recipe, out))
    return page("Preprocessing quality", sections)


def _explained(recipe: Recipe) -> str:
    if recipe.modality == "picture":
        return ". Outline: the foreground. "
    if recipe.modality == "chest_ct":
        return f", {recipe.spacing:g} mm, about the middle of the lungs. Outline: the lungs. "
    return (
        ", 1 mm, rigid to the atlas. Outlines: the scan's brain mask (solid) and the atlas brain "
        "(dashed); they should agree in place and tilt, not in size. "
    )


def _scan_section(scan: Scan, recipe: Recipe, out: Path) -> Section:
    sidecar = read_json(sidecar_of(scan, out))
    organ = "lung" if recipe.modality == "chest_ct" else "brain"
    text = (
        f"split {scan.split or '-'}, {scan.label or 'no label'}, "
        f"{organ} mask: {sidecar['brain_method']}. " + " ".join(sidecar["flags"])
    )
    table = (COLUMNS, _check_rows(sidecar["checks"]))
    return Section(scan.id, text, table, _pictures(scan, recipe, out))


def _pictures(scan: Scan, recipe: Recipe, out: Path) -> list[tuple[str, bytes]]:
    names = [f"{scan.id}.png", *(f"{scan.id}_{suffix}.png" for suffix in recipe.suffixes[1:])]
    paths = [out / "quality" / name for name in names]
    return [("", path.read_bytes()) for path in paths if path.is_file()]


def _check_rows(checks: Sequence[dict[str, Any]]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for check in checks:
        result = "ok"
        if not check["passed"]:
            result = "FAILED" if check["hard"] else "flag"
        rows.append([*(check[key] for key in ("name", "value", "unit", "expected")), result])
    return rows


def _shown(good: Sequence[Scan], out: Path) -> list[Scan]:
    """The scans that the page shows."""
    if len(good) <= SHOWN:
        return list(good)
    with_flags = (scan for scan in good if read_json(sidecar_of(scan, out))["flags"])
    flagged = list(itertools.islice(with_flags, SHOWN // 2))
    ids = {scan.id for scan in flagged}
    rest = [scan for scan in good if scan.id not in ids]
    room = SHOWN - len(flagged)
    return flagged + [rest[i * len(rest) // room] for i in range(room)]
