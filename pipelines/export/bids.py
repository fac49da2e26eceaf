"""Results as a BIDS derivative dataset: masks and maps named and described as BIDS asks."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.detect.batch import parse_report
from pipelines.detect.report import COLUMNS, Report
from pipelines.versions import __version__
from preprocessing.files import atomic, write_atomic, write_json, write_table
from preprocessing.scans import InputError, Scan

log = logging.getLogger("norma")

BIDS_VERSION = "1.10.0"
WORK = "work"  # below OUT, where the user names no other folder
# What BIDS has no name for: an anomaly map is no probability, a report is of no standard.
IGNORED = ("*_map.nii.gz", "*_map.json", "*_report.json", "scores.tsv", WORK)


def validate(source: Path) -> None:
    """InputError where the BIDS validator finds an error in the dataset."""
    command = [str(Path(sys.executable).parent / "bids-validator-deno"), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        print("the BIDS validator is not installed; the dataset is not checked", file=sys.stderr)
        return
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise InputError(
            f"{source}: the BIDS validator finds errors (above); mend them, or give "
            "--skip-bids-validation."
        )


def of_people(
    scans: Sequence[Scan], participants: Sequence[str], sessions: Sequence[str]
) -> list[Scan]:
    """The scans of some participants and sessions, by their labels; none given: all.

    Labels may have their prefix, sub- or ses-. InputError for a label that no scan has.
    """
    chosen = list(scans)
    for prefix, wanted in (("sub", participants), ("ses", sessions)):
        labels = {label.removeprefix(f"{prefix}-") for label in wanted}
        there = {entities(scan.image).get(prefix, "") for scan in scans}
        lost = sorted(labels - there)
        if lost:
            raise InputError(
                f"{prefix}-{lost[0]}: no such scan; the dataset has "
                f"{', '.join(f'{prefix}-{label}' for label in sorted(there) if label) or 'none'}."
            )
        if labels:
            chosen = [scan for scan in chosen if entities(scan.image).get(prefix, "") in labels]
    return chosen


def entities(path: Path) -> dict[str, str]:
    """The entities in a BIDS file name: {"sub": "01", "ses": "a"} of sub-01_ses-a_T1w.nii.gz."""
    return dict(re.findall(r"(?:^|_)([a-z]+)-([^_.]+)", path.name))


def write_dataset(source: Path, out: Path) -> None:
    """dataset_description.json, README and .bidsignore of the derivatives of a dataset."""
    description = {
        "Name": "Norma: what should not be there",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "Norma", "Version": __version__}],
        "SourceDatasets": [{"URL": _relative(source, out)}],
        "DatasetLinks": {"raw": _relative(source, out)},
    }
    write_json(out / "dataset_description.json", description)
    write_atomic(out / ".bidsignore", "".join(f"{pattern}\n" for pattern in IGNORED))
    text = (
        "Masks of what departs from healthy anatomy, on each scan's own grid, by Norma.\n"
        "Research software, not a medical device; not for diagnosis.\n"
    )
    write_atomic(out / "README", text)


def write_scan(report: Report, work: Path, out: Path) -> None:
    """Mask, map and report of one scored scan, and what describes them."""
    image = Path(report.image)
    base = _base(image, out)
    base.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("mask", "map"):
        made = work / f"{report.id}_{kind}.nii.gz"
        with atomic(Path(f"{base}_{kind}.nii.gz")) as temporary:
            shutil.copyfile(made, temporary)
    write_json(Path(f"{base}_report.json"), report.as_json())

    sidecar: dict[str, Any] = {
        "Sources": [f"bids:raw:{image.as_posix()}"],
        "SpatialReference": "orig",
        "SkullStripped": False,
        "ModelName": report.model,
        "Threshold": report.threshold,
        "ComponentThreshold": report.component_threshold,
        "Promise": report.promise,
        "Description": report.notice,
    }
    write_json(Path(f"{base}_mask.json"), {"Type": "Lesion"} | sidecar)
    write_json(Path(f"{base}_map.json"), sidecar)


def remove_scan(report: Report, out: Path) -> None:
    """Remove what an earlier command made of a scan that is not scored now."""
    base = _base(Path(report.image), out)
    for ending in ("mask.nii.gz", "mask.json", "map.nii.gz", "map.json", "report.json"):
        Path(f"{base}_{ending}").unlink(missing_ok=True)


def group_table(out: Path) -> tuple[list[Report], int]:
    """scores.tsv of every report in a derivative dataset: the reports, and how many are damaged."""
    reports = []
    damaged = 0
    for path in sorted(out.glob("sub-*/**/*_report.json")):
        try:
            reports.append(parse_report(path))
        except InputError as error:
            log.warning("%s it is left out; score the scan again.", error)
            damaged += 1
    write_table(out / "scores.tsv", [report.row() for report in reports], COLUMNS)
    return reports, damaged


def _base(image: Path, out: Path) -> Path:
    """Where results of a scan go, up to `_mask` or `_map`.

    The suffix goes into the entity desc: a subject may have a T1w and a FLAIR.
    """
    found = entities(image)
    name, _, suffix = image.name.partition(".")[0].rpartition("_")
    folder = out / f"sub-{found['sub']}"
    if "ses" in found:
        folder /= f"ses-{found['ses']}"
    return folder / "anat" / f"{name}_desc-anomaly{suffix}"


def _relative(source: Path, out: Path) -> str:
    """The way from one folder to the other: no path of the machine goes into a dataset."""
    return Path(os.path.relpath(source.resolve(), out.resolve())).as_posix()
