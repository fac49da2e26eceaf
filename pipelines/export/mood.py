"""Results in the form of the MOOD challenge, and its figures of them.

The form is that of github.com/MIC-DKFZ/mood: for a scan IN/x.nii.gz the sample level wants one
number in OUT/x.nii.gz.txt, the pixel level a map OUT/x.nii.gz of the scan's shape; both in [0, 1].
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from evaluation.mood import pixel_ap, sample_ap, unit_map, unit_score
from pipelines.detect.report import Report
from pipelines.detect.run import Run
from preprocessing.files import write_atomic
from preprocessing.images import read_image, save_nifti
from preprocessing.scans import InputError, Scan

Task = Literal["sample", "pixel"]
ENDINGS = {"sample": ".txt", "pixel": ""}
WRITTEN = ".norma-mood"  # names in OUT that these commands wrote, and may replace or remove


def check_names(scans: Sequence[Scan], source: Path) -> None:
    """InputError where two files are called alike: the form has one name for both."""
    names = Counter(scan.image.name for scan in scans)
    again = [name for name, count in names.items() if count > 1]
    if again:
        raise InputError(
            f"{source}: {again[0]} is there more than once; the challenge names results by the "
            "scan's file alone, so give one flat folder."
        )


def check_folder(out: Path, source: Path, labels: Path | None) -> None:
    """InputError where results would go into the folder of the scans, or of the labels."""
    for taken, what in ((source, "scans"), (labels, "labels")):
        if taken and out.resolve() == taken.resolve():
            raise InputError(
                f"{out}: the folder of the {what}; results are called as these and would take "
                "their place: give another OUT."
            )


def check_place(scans: Sequence[Scan], out: Path, task: Task) -> None:
    """InputError where a result would take the place of a scan, or of a file of somebody else."""
    images = {scan.image.resolve() for scan in scans}
    written = _written(out)
    for scan in scans:
        path = _form_of(scan, out, task)
        own = path.name in written and path.resolve() not in images
        if os.path.lexists(path) and not own:
            raise InputError(
                f"{path}: a file that this command did not write stands where a result would go; "
                "give another OUT."
            )


def write_form(report: Report, scan: Scan, work: Path, out: Path, run: Run, task: Task) -> Path:
    """Write what the challenge wants of a scored scan, from its results in `work`; gives the file.

    At the pixel level the run's threshold becomes 0.5, at the sample level the mean healthy score.
    """
    path = _form_of(scan, out, task)
    _note(out, _written(out) | {path.name})
    if task == "sample":
        assert report.score is not None
        write_atomic(path, f"{unit_score(report.score, run.healthy_scores)}\n")
        return path
    found = read_image(work / f"{report.id}_map.nii.gz")
    values = unit_map(np.asarray(found.dataobj, np.float32), run.point(None).voxel)
    save_nifti(nib.Nifti1Image(values, found.affine), path)
    return path


def remove_form(scan: Scan, out: Path, task: Task) -> None:
    """Remove what an earlier command wrote of a scan that is not scored any more."""
    path = _form_of(scan, out, task)
    written = _written(out)
    if path.name in written:
        path.unlink(missing_ok=True)
        _note(out, written - {path.name})


def _form_of(scan: Scan, out: Path, task: Task) -> Path:
    """The file that the challenge wants of a scan."""
    return out / f"{scan.image.name}{ENDINGS[task]}"


def _written(out: Path) -> set[str]:
    """Names of results in `out` that this command, or an earlier one, wrote."""
    path = out / WRITTEN
    if not path.is_file():
        return set()
    return {os.fsdecode(name) for name in path.read_bytes().split(b"\n") if name}


def _note(out: Path, names: set[str]) -> None:
    """Remember whose files these are; called before one is written, so that none is forgotten."""
    if names != _written(out):
        lines = [os.fsencode(name) + b"\n" for name in sorted(names)]
        write_atomic(out / WRITTEN, b"".join(lines))


def ap_of_form(out: Path, labels: Path, task: Task) -> tuple[float, int]:
    """The AP of a filled form by the rule of MOOD, and how many scans are labelled.

    `labels` holds a file per scan, called as its result (toy_label/sample, toy_label/pixel).
    InputError where it holds none.
    """
    files = label_files(labels, task)
    if task == "pixel":
        return pixel_ap(_maps(files, out)), len(files)
    scores = [_number(out / path.name) if (out / path.name).is_file() else None for path in files]
    return sample_ap(scores, [_label(path) for path in files]), len(files)


def check_labels(labels: Path, task: Task) -> None:
    """InputError or ScanError where labels are missing or cannot be read, before hours of work."""
    for path in label_files(labels, task):
        if task == "pixel":
            read_image(path)
        else:
            _label(path)


def label_files(labels: Path, task: Task) -> list[Path]:
    """The files of labels in a folder; InputError where it holds none."""
    ending = ".txt" if task == "sample" else (".nii", ".nii.gz")
    files = [path for path in sorted(labels.glob("*")) if path.name.endswith(ending)]
    if not files:
        raise InputError(
            f"{labels}: no labels; expected files such as toy_0.nii.gz{ENDINGS[task]}."
        )
    return files


def _maps(files: Sequence[Path], out: Path) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
    """The map of each label, None where there is none, and its mask (bool)."""
    for path in files:
        mask = np.rint(np.asarray(read_image(path).dataobj, np.float32)) >= 1
        found = out / path.name
        if not found.is_file():
            yield None, mask
            continue
        values = np.asarray(read_image(found).dataobj, np.float32)
        if values.shape != mask.shape:
            raise InputError(f"{found}: shape {values.shape}, but {path} has {mask.shape}.")
        yield values, mask


def _label(path: Path) -> int:
    """The label in a file; InputError where that is not 0 or 1."""
    value = _number(path)
    if value not in (0, 1):
        raise InputError(f"{path}: expected 0 or 1, got {value:g}; correct the label.")
    return int(value)


def _number(path: Path) -> float:
    """The number in the first line of a file; InputError where there is none."""
    text = path.read_bytes().decode("utf-8", "backslashreplace").partition("\n")[0].strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}: expected one number, got '{text[:40]}'.")
    return value
