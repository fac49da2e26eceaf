"""quality.html: what went into preprocessing, what fell out and why, pictures of each scan."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from pipelines.cohort.store import Results, sidecar_of
from pipelines.pages.html import Section, page
from preprocessing.files import read_json
from preprocessing.recipe import Recipe
from preprocessing.scans import Scan

SHOWN = 200  # scans on quality.html at most


def quality_page(results: Results, recipe: Recipe, out: Path, notes: Sequence[str]) -> str:
    """One page: what went in, what fell out and why, and each scan's outline with its checks.

    Of more than `SHOWN` scans the flagged ones come first, and then scans at even distances.
    """

    good = [scan for scan, failure in results if not failure]
    bad = [(scan, failure) for scan, failure in results if failure]

    def pictures(scan: Scan) -> list[tuple[str, bytes]]:
        names = [f"{scan.id}.png", *(f"{scan.id}_{suffix}.png" for suffix in recipe.suffixes[1:])]
        return [
            ("", (out / "quality" / name).read_bytes())
            for name in names
            if (out / "quality" / name).is_file()
        ]

    def table(checks: list[dict]) -> list[list]:
        return [
            [
                c["name"],
                c["value"],
                c["unit"],
                c["expected"],
                "ok" if c["passed"] else "FAILED" if c["hard"] else "flag",
            ]
            for c in checks
        ]

    columns = ["check", "value", "unit", "expected", "result"]
    picked = _shown(good, out)
    text = (
        f"{len(good)} scans preprocessed, {len(bad)} left out. Modality {recipe.name}"
        + (
            ". Outline: the foreground. "
            if recipe.modality == "picture"
            else ", 1 mm, rigid to the atlas. Outlines: the scan's brain mask (solid) and the atlas brain (dashed); they should agree in "
            "place and tilt, not in size. "
        )
        + " ".join(notes)
        + (
            f" {len(picked)} of the scans are shown: flagged ones first; the pictures of all are in the folder quality."
            * (len(picked) < len(good))
        )
    )
    sections = [Section("Summary", text)]
    if bad:
        sections.append(
            Section("Left out", table=(["scan", "reason"], [[s.id, f["reason"]] for s, f in bad]))
        )
    for scan, failure in bad[:SHOWN]:
        if pictures(scan):
            sections.append(
                Section(
                    f"{scan.id} (left out)",
                    failure["reason"],
                    (columns, table(failure["checks"])),
                    pictures(scan),
                )
            )
    for scan in picked:
        side = read_json(sidecar_of(scan, out))
        about = (
            f"split {scan.split or '-'}, {scan.label or 'no label'}, brain mask: {side['brain_method']}. "
            + " ".join(side["flags"])
        )
        sections.append(Section(scan.id, about, (columns, table(side["checks"])), pictures(scan)))
    return page("Preprocessing quality", sections)


def _shown(good: Sequence[Scan], out: Path) -> list[Scan]:
    if len(good) <= SHOWN:
        return list(good)
    flagged = list(
        itertools.islice((s for s in good if read_json(sidecar_of(s, out))["flags"]), SHOWN // 2)
    )
    seen = {s.id for s in flagged}
    rest = [s for s in good if s.id not in seen]
    return flagged + [
        rest[i * len(rest) // (SHOWN - len(flagged))] for i in range(SHOWN - len(flagged))
    ]
