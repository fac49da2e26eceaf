"""MOOD challenge: brain T1 in [0, 1], and toy scans with labels. Its terms: for evaluation only.

Layout as at https://github.com/MIC-DKFZ/mood (folder brain):

    brain_train/00000.nii.gz
    toy/toy_0.nii.gz, toy_label/sample/toy_0.nii.gz.txt (0 or 1), toy_label/pixel/toy_0.nii.gz

Assumed: the training scans are healthy, as the challenge says, and the toy scans test.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from preprocessing.datasets.layout import Layout, listed
from preprocessing.scans import Scan
from preprocessing.splits import assign_splits

LAYOUT = Layout(
    title="MOOD",
    example="brain_train/00000.nii.gz",
    files={
        "t1": r"(?:.*/)?(?P<folder>brain_train|train|toy)/(?P<id>(?:toy_)?\d+)\.nii\.gz",
        "other": r"(?:.*/)?toy_label/(?:sample|pixel)/toy_\d+\.nii\.gz(?:\.txt)?",
    },
    label="healthy",
)


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every scan, and by id why one is left out."""
    found, lost = listed(data, LAYOUT, modality)
    toys = [replace(s, extra={}, split="test") for s in found if s.extra["folder"] == "toy"]
    training = [replace(s, extra={}) for s in found if s.extra["folder"] != "toy"]
    kept = assign_splits(training) if training else []
    for scan in toys:
        fault = _fault(scan)
        if fault:
            lost[scan.id] = fault
        else:
            kept.append(_labelled(scan))
    return kept, lost


def _labels(scan: Scan) -> tuple[Path, Path]:
    """The label of a toy scan, and that of its voxels."""
    folder = scan.image.parent.with_name("toy_label")
    return folder / "sample" / f"{scan.image.name}.txt", folder / "pixel" / scan.image.name


def _fault(scan: Scan) -> str:
    """Why a toy scan cannot be used, or ""."""
    sample, pixel = _labels(scan)
    if not sample.is_file():
        return f"{sample}: missing, so nobody knows whether the scan is abnormal; left out."
    if sample.read_text().strip() not in ("0", "1"):
        return f"{sample}: expected 0 or 1; left out."
    if sample.read_text().strip() == "1" and not pixel.is_file():
        return f"{pixel}: missing, the mask of an abnormal scan; left out."
    return ""


def _labelled(scan: Scan) -> Scan:
    """A toy scan with its label, and its mask where it is abnormal."""
    sample, pixel = _labels(scan)
    if sample.read_text().strip() == "0":
        return scan
    return replace(scan, label="abnormal", pathology="foreign object", mask=pixel)
