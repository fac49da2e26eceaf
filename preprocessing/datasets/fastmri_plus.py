"""fastMRI+ (brain): axial slices with boxes round findings. fastMRI's terms: for evaluation only.

Layout as at https://github.com/microsoft/fastmri-plus (tables) and https://fastmri.med.nyu.edu
(scans, after an agreement); the tables may lie in a folder Annotations:

    brain.csv         file, slice, study_level, x, y, width, height, label: a row per box
    brain_file_list.csv    every file that was looked at, without a heading
    multicoil_train/file_brain_AXFLAIR_200_6002425.h5    reconstruction_rss, ismrmrd_header

Assumed: boxes were drawn on pictures turned upside down, as the tables' authors say; slices run
upwards and touch. Every finding makes a scan abnormal, a craniotomy too, but for what is called
normal. A mask is made of boxes: its Dice is not that of outlines.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import h5py
import nibabel as nib
import numpy as np

from preprocessing.files import read_table
from preprocessing.images import save_nifti
from preprocessing.scans import InputError, Scan, some

SEQUENCES = {"flair": "AXFLAIR", "t1": "AXT1(?:PRE)?", "t2": "AXT2", "t1ce": "AXT1POST"}
NORMAL = ("Normal for age", "Normal variant")

Box = dict[str, str]

log = logging.getLogger("norma")


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """The looked-at files of a sequence (flair), written as NIfTI below `out`; why one is not."""
    if modality and modality not in SEQUENCES:
        raise InputError(f"fastMRI+: no modality '{modality}'; it has {', '.join(SEQUENCES)}.")
    boxes = boxes_of(_table(data, "brain.csv"))
    looked_at = _table(data, "brain_file_list.csv").read_text().split()
    files = {path.stem: path for path in sorted(data.rglob("file_brain_*.h5"))}
    wanted = re.compile(rf"file_brain_{SEQUENCES[modality or 'flair']}_\d+_\d+")
    unread = [name for name in files if wanted.fullmatch(name) and name not in looked_at]
    if unread:
        log.info("passed over %d files that nobody looked at: %s", len(unread), some(unread))

    found: list[Scan] = []
    lost: dict[str, str] = {}
    for name in filter(wanted.fullmatch, looked_at):
        if name not in files:
            lost[name] = f"{name}.h5: missing; left out."
            continue
        try:
            found.append(_scan(name, files[name], boxes.get(name, []), out / "fastmri_plus"))
        except (OSError, KeyError, ZeroDivisionError, ElementTree.ParseError) as error:
            lost[name] = f"{files[name]}: cannot be read ({error}); left out."
    return found, lost


def boxes_of(table: Path) -> dict[str, list[Box]]:
    """The rows of brain.csv by file, without those that call something normal."""
    boxes: defaultdict[str, list[Box]] = defaultdict(list)
    for row in read_table(table):
        if row["label"] not in NORMAL:
            boxes[row["file"]].append(row)
    return boxes


def box_mask(boxes: list[Box], shape: tuple[int, int, int]) -> np.ndarray:
    """Boxes as uint8 on an array (slices, rows, columns) of the file; y counts from below."""
    mask = np.zeros(shape, np.uint8)
    for box in boxes:
        if box["x"]:  # a finding of the whole study has no box
            x, y, wide, high = (int(box[key]) for key in ("x", "y", "width", "height"))
            mask[int(box["slice"]), shape[1] - y - high : shape[1] - y, x : x + wide] = 1
    return mask


def _scan(name: str, path: Path, boxes: list[Box], out: Path) -> Scan:
    """A file written as a volume, and its boxes as a mask."""
    with h5py.File(path) as file:
        volume = np.asarray(file["reconstruction_rss"], np.float32)
        spacing = _spacing(file["ismrmrd_header"][()])
    mask = box_mask(boxes, volume.shape)
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    out.mkdir(parents=True, exist_ok=True)
    image = out / f"{name}.nii.gz"
    lesions = out / f"{name}_boxes.nii.gz" if mask.any() else None
    save_nifti(nib.Nifti1Image(volume.transpose(2, 1, 0), affine), image)
    if lesions:
        save_nifti(nib.Nifti1Image(mask.transpose(2, 1, 0), affine), lesions)
    return Scan(
        id=name,
        image=image,
        subject=name.removeprefix("file_brain_"),
        label="abnormal" if boxes else "healthy",
        pathology="+".join(sorted({box["label"].lower() for box in boxes})),
        mask=lesions,
    )


def _spacing(header: bytes) -> tuple[float, float, float]:
    """Size of columns, rows and slices in mm; x of the ISMRMRD header runs along a column."""
    space = ElementTree.fromstring(header).find(".//{*}encoding/{*}reconSpace")
    if space is None:
        raise KeyError("reconSpace")
    x, y, z = (float(space.findtext(f"{{*}}fieldOfView_mm/{{*}}{a}") or "nan") for a in "xyz")
    rows, columns = (int(space.findtext(f"{{*}}matrixSize/{{*}}{a}") or 0) for a in "xy")
    return y / columns, x / rows, z


def _table(data: Path, name: str) -> Path:
    """A table of the annotations, wherever it lies below the folder."""
    path = next(iter(sorted(data.rglob(name))), None)
    if path is None:
        raise InputError(f"{data}: no {name}; get it from github.com/microsoft/fastmri-plus.")
    return path
