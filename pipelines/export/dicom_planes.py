"""A result on the planes of the DICOM series that its scan was made of."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM
from scipy import ndimage

from preprocessing.dicom_headers import Header, read_header
from preprocessing.scans import ScanError

# what every image of a study must have, empty where nobody knows it (type 2 of the standard)
MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
SHARED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
SEXES = ("M", "F", "O")


@dataclass(frozen=True)
class Source:
    """The instances of a series, without pixels, and where their planes lie (same order).

    All planes have the orientation and the spacing of the first.
    """

    instances: Sequence[Dataset]
    headers: list[Header]

    @property
    def series(self) -> str:
        return str(self.instances[0].SeriesInstanceUID)


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is said by pydicom and highdicom: they repeat what headers hold, of people too."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def read_source(files: Sequence[Path]) -> Source:
    """The instances that a scan was made of.

    ScanError where they are gone, or cannot be referred to as the standard asks.
    """
    gone = [path for path in files if not path.is_file()]
    if gone:
        raise ScanError(f"{gone[0]} is gone; its planes are needed.")
    found = [read_header(path) for path in files]
    headers = [header for header in found if header]
    with silence():
        instances = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in files]

    if len(files) > 1 and max(header.frames for header in headers) > 1:
        raise ScanError(
            f"its series has {len(files)} multi-frame files, and a DICOM result refers to one; "
            "export the series as one multi-frame file or as single slices."
        )
    _demand_identity(instances)
    with silence():
        for instance in instances:
            _complete(instance)
            _share_orientation(instance, instances[0])
    orientation = headers[0].orientations[:1]
    spacing = headers[0].spacing[:1]
    for i, header in enumerate(headers):
        headers[i] = replace(
            header,
            orientations=orientation.repeat(header.frames, axis=0),
            spacing=spacing.repeat(header.frames, axis=0),
        )
    return Source(instances, headers)


def _demand_identity(instances: Sequence[Dataset]) -> None:
    """Raise ScanError where instances have no UIDs, or not those of one series."""
    for name in SHARED:
        values = {str(instance.get(name) or "") for instance in instances}
        if len(values) > 1 or values == {""}:
            count = "no" if values == {""} else str(len(values))
            raise ScanError(
                f"its files name {count} {name}, expected one; a DICOM result could not be filed "
                "with them."
            )
    for instance in instances:
        if not (instance.get("SOPInstanceUID") and instance.get("SOPClassUID")):
            raise ScanError(
                "files without SOPInstanceUID or SOPClassUID; nothing can refer to them."
            )


def _complete(instance: Dataset) -> None:
    """Give an instance, in memory, the elements that the standard asks for, empty.

    What is no date, time or sex of the standard becomes empty too.
    """
    for name in MAY_BE_EMPTY:
        if name not in instance:
            setattr(instance, name, None)
    if instance.PatientSex not in SEXES:
        instance.PatientSex = None
    for name, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(instance[name].value or "")
        except ValueError:
            setattr(instance, name, None)


def _share_orientation(instance: Dataset, first: Dataset) -> None:
    """Give an instance, in memory, the orientation and spacing of the first plane.

    Scanners write cosines that differ in the last digits; a result has one for all its planes.
    """
    frames = instance.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        instance.ImageOrientationPatient = first.ImageOrientationPatient
        instance.PixelSpacing = first.PixelSpacing
        return
    if not instance.get("SharedFunctionalGroupsSequence"):
        instance.SharedFunctionalGroupsSequence = [Dataset()]
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if name not in instance.SharedFunctionalGroupsSequence[0] and name in frames[0]:
            setattr(instance.SharedFunctionalGroupsSequence[0], name, frames[0][name].value)
            for frame in frames:
                frame.pop(name, None)


def on_planes(data: np.ndarray, affine: np.ndarray, source: Source, order: int) -> np.ndarray:
    """A volume sampled at the pixels of each source plane, (planes, rows, columns).

    `affine` is from voxels to RAS+ mm. `order` 0 takes the nearest voxel, 1 is linear. Where the
    volume does not reach, it is 0.
    """
    voxel_from_lps = np.linalg.inv(affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    planes = []
    for header in source.headers:
        rows, columns = np.indices((header.rows, header.columns), np.float32)
        for position, orientation, spacing in zip(
            header.positions, header.orientations, header.spacing, strict=True
        ):
            start = voxel_from_lps @ [*position, 1]
            along_row = voxel_from_lps[:3, :3] @ orientation[:3] * spacing[1]
            along_column = voxel_from_lps[:3, :3] @ orientation[3:] * spacing[0]
            places = [
                start[axis] + along_row[axis] * columns + along_column[axis] * rows
                for axis in range(3)
            ]
            planes.append(
                ndimage.map_coordinates(data, places, order=order, mode="grid-constant", cval=0)
            )
    return np.stack(planes)
