"""What comes in, made fit to keep: voxels and geometry by a whitelist, and no word of a person.

A file is judged by its header before its voxels are inflated, and no name becomes a path.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

import norma
from app.archives import NotAnArchive, is_zip, unzip
from app.headers import DicomNotes, dicom_notes
from app.settings import Settings

# Fields of a NIfTI header that are carried over: what the numbers are, and where they lie.
KEPT = (
    "scl_slope",
    "scl_inter",
    "xyzt_units",
    "qform_code",
    "sform_code",
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
SUFFIX = re.compile(r"_(T1w|T2w|FLAIR|ct)\.nii(\.gz)?$", re.IGNORECASE)
GUESS_OF = {"t1w": "t1", "t2w": "t2", "flair": "flair", "ct": "ct"}
# What norma advises whoever has a folder of files, and what a page advises instead.
ADVICE = {
    "give .nii, .nii.gz, a pair .hdr and .img, or .mgz.": (
        "send .nii or .nii.gz, or a whole DICOM series in a zip file."
    ),
    "(limits.max_gb of the recipe)": "(--max-gb of the server)",
    "no DICOM series found.": (
        "no DICOM series found; a zip file is for DICOM, a NIfTI file comes as it is."
    ),
}
QUICK = 1  # gzip level: a scan is written once and read often, both over loopback or a fast line


class Refused(ValueError):
    """A file that cannot be taken; the message is a sentence for the one who sent it."""


@dataclass(frozen=True)
class Taken:
    """A scan that was taken in: a clean NIfTI at `path`, and what is known of it.

    digest: of voxels and geometry. subject: a pseudonym, or "". guess: its modality, or "".
    """

    path: Path
    digest: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    source: str
    guess: str = ""
    subject: str = ""
    notes: str = ""


def take(path: Path, name: str, settings: Settings, secret: bytes) -> tuple[list[Taken], list[str]]:
    """The scans in a file that came in as `name`, and sentences on series that gave none.

    Raises Refused where it gives no scan at all. `path` stays.
    """
    with open(path, "rb") as file:
        start = file.read(132)
    if is_zip(start):
        return _from_zip(path, name, settings, secret)
    if start[128:] == b"DICM":
        raise Refused(f"{name}: a single DICOM file; put the whole series into a zip file.")
    found = SUFFIX.search(name)
    guess = GUESS_OF[found[1].lower()] if found else ""
    return [clean(path, name, settings, guess=guess)], []


def clean(path: Path, name: str, settings: Settings, guess: str = "") -> Taken:
    """A NIfTI file, written anew with voxels and geometry alone; Refused says what is wrong."""
    try:
        volume = norma.open_volume(path, settings.max_gb)
        voxels = volume.stored()
    except norma.ScanError as error:
        raise Refused(_advised(str(error).replace(str(path), name))) from None
    if not isinstance(volume.header, nib.Nifti1Header):
        raise Refused(f"{name}: not a NIfTI file; convert it first.")
    shape = volume.shape[:3]
    header = clean_header(volume.header, shape)
    # one order of bytes, so that one content has one digest
    voxels = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False).reshape(shape, order="F")
    # in the order of the file, and without a copy of a large scan
    data = np.ascontiguousarray(voxels.T).view(np.uint8).data
    hashed = hashlib.sha256(header.binaryblock)
    hashed.update(data)

    target = settings.data / "incoming" / f"{uuid.uuid4().hex}.nii.gz"
    with open(target, "wb") as raw:
        with gzip.GzipFile("", "wb", QUICK, raw, mtime=0) as packed:
            packed.write(header.binaryblock + bytes(4))  # no extension
            packed.write(data)
        raw.flush()
        os.fsync(raw.fileno())
    spacing = tuple(float(s) for s in np.linalg.norm(volume.affine[:3, :3], axis=0))
    return Taken(target, hashed.hexdigest(), shape, spacing, "nifti", guess)


def clean_header(header: nib.Nifti1Header, shape: tuple[int, ...]) -> nib.Nifti1Header:
    """A new header of the same geometry and type of numbers, little endian; free text is gone."""
    fresh = type(header)(endianness="<")
    fresh.set_data_shape(shape)
    fresh.set_data_dtype(header.get_data_dtype().newbyteorder("<"))
    for name in KEPT:
        fresh[name] = header[name]
    fresh["pixdim"][:4] = header["pixdim"][:4]  # times of later axes are not kept
    fresh["vox_offset"] = fresh.single_vox_offset
    fresh["magic"] = fresh.single_magic
    return fresh


def _from_zip(
    path: Path, name: str, settings: Settings, secret: bytes
) -> tuple[list[Taken], list[str]]:
    """The series of a zip file; its files are called by numbers while they are converted."""
    work = settings.data / "incoming" / f"{uuid.uuid4().hex}.dicom"
    try:
        work.mkdir()
        unzip(path, work, 4 * settings.max_upload)
        return from_folder(work, name, settings, secret)
    except NotAnArchive as error:
        raise Refused(f"{name}: {error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def from_folder(
    folder: Path, name: str, settings: Settings, secret: bytes
) -> tuple[list[Taken], list[str]]:
    """The DICOM series below a folder as scans, and why others gave none."""
    out = settings.data / "incoming" / f"{uuid.uuid4().hex}.converted"
    try:
        scans, lost = norma.convert_dicom(folder, out, settings.max_gb)
        notes = dicom_notes(folder, secret)
        taken: list[Taken] = []
        for scan in scans:
            one = clean(scan.image, name, settings)
            known = notes.get(scan.origin["series_uid"], DicomNotes())
            flagged = [check.sentence() for check in scan.checks if not check.passed]
            taken.append(
                Taken(
                    one.path,
                    one.digest,
                    one.shape,
                    one.spacing,
                    source="dicom",
                    guess=known.guess,
                    subject=known.subject,
                    notes="\n".join(flagged),
                )
            )
        return taken, [_without(reason, folder, name) for reason in lost.values()]
    except (norma.InputError, norma.ScanError) as error:
        raise Refused(_without(str(error), folder, name)) from None
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _without(text: str, folder: Path, name: str) -> str:
    """A sentence that calls the input by the name that its sender knows."""
    text = _advised(text.replace(str(folder), name))
    return text if name in text else f"{name}: {text}"


def _advised(text: str) -> str:
    """A sentence whose advice can be followed in a page."""
    for norma_says, page_says in ADVICE.items():
        text = text.replace(norma_says, page_says)
    return text
