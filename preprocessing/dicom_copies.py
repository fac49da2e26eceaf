"""A DICOM series in a folder of its own, as the converter understands it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from preprocessing.dicom_geometry import SHIFTED, Stack
from preprocessing.dicom_headers import Header

KEPT = (
    "Modality",
    "Manufacturer",
    "ImageType",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "PatientPosition",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
RESCALE = ("RescaleSlope", "RescaleIntercept")


def pixel_digest(header: Header) -> str:
    """Digest of a file's pixels as they are stored, and of what scales them."""
    data = pydicom.dcmread(header.path, force=True)
    scale = [str(data.get(name, "")) for name in RESCALE]
    return sha256(data.PixelData + repr(scale).encode()).hexdigest()


def lay_out(headers: Sequence[Header], stack: Stack, folder: Path, moved: bool) -> None:
    """Put a series into `folder`, in the order of `stack`.

    Files are linked, or copied where `headers` have other places than the files (`moved`).
    dcm2niix goes by the number of an instance and loses slices whose numbers are missing or do not
    follow their places: such files are copied with new numbers. It lays the frames of a file at the
    distance of the first two: where that is wrong, each becomes a file.
    """
    several = any(header.frames > 1 for header in headers)
    if several and (moved or not _as_converter_expects(headers, stack)):
        _write_frames(headers, stack, folder)
        return

    rank = np.argsort(stack.order)
    numbers = [headers[i].number for i in stack.order] if not several else []
    given = [number for number in numbers if number is not None]
    steps = np.sign(np.diff(given))
    in_order = len(given) == len(numbers) and abs(steps.sum()) == max(len(numbers) - 1, 0)
    for i, header in enumerate(headers):
        target = folder / f"{i:05d}.dcm"
        if in_order and header.preamble and not moved:
            _link(header.path, target)
        else:
            _renumber(header, int(rank[i]) + 1, target, moved)


def _as_converter_expects(headers: Sequence[Header], stack: Stack) -> bool:
    """Whether frames lie in one file, in order and at equal distances, or cannot be taken apart."""
    if any(header.compressed for header in headers):
        return True
    straight = np.arange(len(stack.order))
    in_order = any(np.array_equal(stack.order, order) for order in (straight, straight[::-1]))
    uneven = abs(stack.gaps - stack.step).max()
    return len(headers) == 1 and in_order and float(uneven) < SHIFTED * stack.step / 10


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve())
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _renumber(header: Header, number: int, target: Path, moved: bool) -> None:
    """Copy a file with another instance number, and with a preamble; `moved`, at another place."""
    data = pydicom.dcmread(header.path, force=True)
    if not header.preamble:
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = _syntax_of(data)
    data.SOPClassUID = data.get("SOPClassUID") or _storage(header)
    data.SOPInstanceUID = data.get("SOPInstanceUID") or _new_uid(header, number)
    data.InstanceNumber = number
    if moved:
        data.ImagePositionPatient = [round(float(v), 6) for v in header.positions[0]]
        data.pop("GantryDetectorTilt", None)
    data.save_as(target, enforce_file_format=True)


def _syntax_of(data: Dataset) -> UID:
    """How a file without preamble is written, as pydicom read it."""
    implicit, little = data.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _storage(header: Header) -> str:
    return CTImageStorage if header.modality == "CT" else MRImageStorage


def _new_uid(header: Header, number: int) -> str:
    return generate_uid(entropy_srcs=[str(header.path), str(number)])


def _write_frames(headers: Sequence[Header], stack: Stack, folder: Path) -> None:
    """Write each frame of files that are not compressed as a file, numbered by its place."""
    rank = iter(np.argsort(stack.order))
    for header in headers:
        data = pydicom.dcmread(header.path, force=True)
        length = len(data.PixelData) // header.frames
        for k in range(header.frames):
            number = int(next(rank)) + 1
            frame = _frame(data, header, k)
            frame.SOPInstanceUID = _new_uid(header, number)
            frame.InstanceNumber = number
            frame.PixelData = data.PixelData[k * length : (k + 1) * length]
            frame.file_meta = FileMetaDataset()
            frame.file_meta.TransferSyntaxUID = UID(header.syntax) or _syntax_of(data)
            frame.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)


def _frame(data: Dataset, header: Header, k: int) -> Dataset:
    """The header of one frame by itself."""
    frame = Dataset()
    for name in KEPT:
        if name in data:
            setattr(frame, name, data[name].value)
    frame.SOPClassUID = _storage(header)
    frame.AcquisitionNumber = 1
    frame.ImagePositionPatient = [round(float(v), 6) for v in header.positions[k]]
    frame.ImageOrientationPatient = header.orientations[k].tolist()
    frame.PixelSpacing = header.spacing[k].tolist()
    groups = [data.get("PerFrameFunctionalGroupsSequence"), [Dataset()]]
    groups[1] = data.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for group in (groups[0][k], groups[1][0], data):
        scale = group.get("PixelValueTransformationSequence") or [group]
        for name in RESCALE:
            if name in scale[0] and name not in frame:
                setattr(frame, name, scale[0][name].value)
    return frame
