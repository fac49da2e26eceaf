"""What the header of a DICOM file says of its pixels and their place; pixels are not read."""

from __future__ import annotations

import os
import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    MRImageStorage,
)

# All that is read of a header: no name, birth date or address of anybody.
TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "Modality",
    "ImageType",
    "SeriesNumber",
    "InstanceNumber",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
VRS = b"AEASATCSDADSDTFLFDISLOLTOBODOFOLOWPNSHSLSQSSSTSVTMUCUIULUNURUSUTUV"
# implicit and explicit little endian, explicit big endian, and not said
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "")
STORAGES: dict[str, str] = {
    CTImageStorage: "CT",
    EnhancedCTImageStorage: "CT",
    MRImageStorage: "MR",
    EnhancedMRImageStorage: "MR",
}
BY_NORMA = b"Norma"  # begins the preamble, which is free for this, of what Norma writes
DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR: a list of files, and no image


class DamagedFile(ValueError):
    """A DICOM file that cannot be used; the message says why."""


@dataclass(frozen=True)
class Header:
    """One DICOM file.

    key: what the files of a series share (series, study, frame of reference, patient); it is
        compared and never written.
    number: of the instance; None where there is none.
    grey: the photometric interpretation; syntax: the UID of the transfer syntax.
    positions: (F, 3) LPS mm of the first pixel of each frame; NaN where nothing is said, and of
        one frame alone where several frames are not described.
    damage: why its pixels cannot be used; "" for a good file.
    orientations: (F, 6) direction of a row and of a column, of each frame.
    spacing: (F, 2) mm between rows and between columns, of each frame.
    """

    path: Path
    key: tuple[str, ...]
    uid: str
    series: str
    study: str
    series_number: str
    number: int | None
    modality: str
    image_type: tuple[str, ...]
    grey: str
    syntax: str
    preamble: bool
    rows: int
    columns: int
    frames: int
    positions: np.ndarray
    orientations: np.ndarray
    spacing: np.ndarray
    damage: str

    @property
    def compressed(self) -> bool:
        return self.syntax not in UNCOMPRESSED


def is_dicom(path: Path) -> bool:
    """Whether a file carries the DICOM preamble, or begins as DICOM without one does.

    What Norma wrote is a result and counts as none.
    """
    try:
        with open(path, "rb") as handle:
            start = handle.read(512)
            size = os.fstat(handle.fileno()).st_size
    except OSError:
        return False
    if start.startswith(BY_NORMA):
        return False
    return start[128:132] == b"DICM" or _begins_with_elements(start, size)


def _begins_with_elements(start: bytes, size: int) -> bool:
    """Whether bytes begin with three elements of a data set, as files without preamble do.

    The first is of group 2 or 8, tags rise, and each value lies within the file.
    """
    place = 0
    last = (0, -1)
    for count in range(3):
        if place + 12 > len(start):
            return count > 0 and place <= size
        tag = struct.unpack_from("<HH", start, place)
        if tag <= last or tag[0] not in (2, 8) or tag[1] > 0x3000:
            return False
        place, length = _value(start, place + 4)
        if length % 2 or place + length > size:
            return False
        place += length
        last = tag
    return True


def _value(start: bytes, place: int) -> tuple[int, int]:
    """Where the value of an element begins, and its length, explicit or implicit VR."""
    vr = start[place : place + 2]
    explicit = vr in [VRS[i : i + 2] for i in range(0, len(VRS), 2)]
    if not explicit:
        return place + 4, struct.unpack_from("<I", start, place)[0]
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return place + 8, struct.unpack_from("<I", start, place + 4)[0]
    return place + 4, struct.unpack_from("<H", start, place + 2)[0]


def read_header(path: Path) -> Header | None:
    """The header of a DICOM file; None for a directory of files. Raises DamagedFile."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = _read(path)
            if data is None or not _is_told(data):
                return None
            return _header(path, data)
    except DamagedFile:
        raise
    except Exception as error:  # whatever damaged bytes make pydicom raise
        raise DamagedFile(f"its header cannot be read ({type(error).__name__})") from None


def _is_told(data: Dataset) -> bool:
    """Whether a file is DICOM: by its preamble, or else by a series, a kind or pixels."""
    told = ("SeriesInstanceUID", "Modality", "Rows")
    return bool(getattr(data, "preamble", None)) or any(name in data for name in told)


def _read(path: Path) -> Dataset | None:
    """The tags of a file; None for a DICOMDIR."""
    meta = pydicom.filereader.read_file_meta_info(path) if _has_preamble(path) else Dataset()
    if str(meta.get("MediaStorageSOPClassUID", "")) == DIRECTORY:
        return None
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        # to read a single tag the whole file would be inflated, to any size
        raise DamagedFile("it is deflated, which is not read; inflate it (dcmconv +te)")
    return pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(TAGS))


def _has_preamble(path: Path) -> bool:
    with open(path, "rb") as handle:
        return handle.read(132)[128:] == b"DICM"


def _header(path: Path, data: Dataset) -> Header:
    series = uid_text(data.get("SeriesInstanceUID"))
    if not series and not data.get("Rows"):
        raise DamagedFile("its header names no series and describes no pixels")
    parts = ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID")
    shared = [_raw(data, part) for part in parts]
    frames = int(data.get("NumberOfFrames") or 1)
    positions, orientations, spacing = _planes(data, frames)
    kinds = data.get("ImageType") or ()
    return Header(
        path=path,
        key=(series or f"{path.parent}", *shared),
        uid=uid_text(data.get("SOPInstanceUID")),
        series=series,
        study=uid_text(data.get("StudyInstanceUID")),
        series_number=_integer_text(data.get("SeriesNumber")),
        number=_integer(data.get("InstanceNumber")),
        modality=_word(data.get("Modality")) or STORAGES.get(str(data.get("SOPClassUID")), ""),
        image_type=(kinds,) if isinstance(kinds, str) else tuple(str(k) for k in kinds),
        grey=_word(data.get("PhotometricInterpretation")),
        syntax=_syntax(data),
        preamble=bool(getattr(data, "preamble", None)),
        rows=int(data.get("Rows") or 0),
        columns=int(data.get("Columns") or 0),
        frames=frames,
        positions=positions,
        orientations=orientations,
        spacing=spacing,
        damage=_damage(path, data, frames),
    )


def _raw(data: Dataset, name: str) -> str:
    """A value to compare, as its bytes stand: text in an unknown character set does no harm."""
    return repr(data.get_item(name).value) if name in data else ""


def uid_text(value: Any) -> str:
    """A UID as digits and dots alone, whatever a damaged file holds in its place."""
    return re.sub(r"[^0-9.]", "", str(value or ""))[:64]


def _word(value: Any) -> str:
    """A code such as a modality, and nothing that could be a name."""
    return re.sub(r"[^A-Z0-9_]", "", str(value or ""))[:16]


def _integer(value: Any) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None


def _integer_text(value: Any) -> str:
    number = _integer(value)
    return "" if number is None else str(number)


def _planes(data: Dataset, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position (F, 3), orientation (F, 6) and spacing (F, 2) of each frame, NaN where unknown."""
    shared = _first(data.get("SharedFunctionalGroupsSequence"))
    groups = data.get("PerFrameFunctionalGroupsSequence")
    if groups and len(groups) != frames:
        raise DamagedFile(f"it has {frames} frames and describes {len(groups)}")
    places = [[group, shared, data] for group in groups] if groups else [[data, shared]]
    positions = [_numbers(p, "PlanePositionSequence", "ImagePositionPatient", 3) for p in places]
    orientations = [
        _numbers(p, "PlaneOrientationSequence", "ImageOrientationPatient", 6) for p in places
    ]
    spacing = [_numbers(p, "PixelMeasuresSequence", "PixelSpacing", 2) for p in places]
    return np.array(positions), np.array(orientations), np.array(spacing)


def _first(sequence: Any) -> Dataset:
    return sequence[0] if sequence else Dataset()


def _numbers(places: list[Dataset], sequence: str, name: str, count: int) -> np.ndarray:
    """Numbers (count,) of an element, in a sequence or by itself; NaN where there are none."""
    for place in places:
        value = _first(place.get(sequence)).get(name, place.get(name))
        if value is not None and len(value) == count:
            return np.array([float(v) for v in value])
    return np.full(count, np.nan)


def _damage(path: Path, data: Dataset, frames: int) -> str:
    """Why the pixels of a file cannot be used: it has none, or fewer bytes than they take."""
    rows = int(data.get("Rows") or 0)
    columns = int(data.get("Columns") or 0)
    if not rows * columns:
        return "it describes no pixels"
    if _syntax(data) not in UNCOMPRESSED:
        return ""
    bits = int(data.get("BitsAllocated") or 8) * int(data.get("SamplesPerPixel") or 1)
    claimed = rows * columns * frames * bits // 8
    size = path.stat().st_size
    if claimed <= size:
        return ""
    return f"it claims {columns} x {rows} x {frames} pixels in {claimed} bytes and has {size}"


def _syntax(data: Dataset) -> str:
    return str(getattr(data, "file_meta", Dataset()).get("TransferSyntaxUID", ""))
