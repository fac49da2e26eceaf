"""DICOM series to NIfTI with dcm2niix: each by itself, gantry tilt corrected, all accounted for."""

from __future__ import annotations

import gzip
import io
import logging
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import numpy as np

from preprocessing.dicom_copies import lay_out, pixel_digest
from preprocessing.dicom_geometry import (
    OFF_LINE,
    TILTED,
    Stack,
    directions,
    misplaced,
    none_expected,
    places,
    stack_checks,
)
from preprocessing.dicom_headers import Header, is_dicom
from preprocessing.dicom_series import (
    Series,
    count_slices,
    dicom_files,
    find_series,
    is_localiser,
    printable,
)
from preprocessing.dicom_tilt import straighten, upright
from preprocessing.files import write_atomic
from preprocessing.images import SMALLEST, is_nifti
from preprocessing.quality import Check
from preprocessing.scans import InputError, Scan, ScanError
from preprocessing.volumes import MAX_GB, too_large

__all__ = ["convert", "has_dicom", "is_dicom", "save_copy"]

log = logging.getLogger("norma")

# -z y: gzipped; -b n: no JSON sidecar; -d 0: this folder alone; -w 1: overwrite;
# -f: files are named by the series' number, never by the patient; -c "": no comments either.
# -l n stores unsigned data as int16 where it fits.
# -m y: slices of one series are one volume: what may stand in it is decided here, from headers.
OPTIONS = ("-z", "y", "-b", "n", "-l", "n", "-d", "0", "-w", "1", "-m", "y", "-c", "")
COPIES = ".tmp-dicom-"  # the folder of a series while it is converted
PATIENCE = 1800  # seconds for one series
MODALITIES = ("CT", "MR")


def has_dicom(folder: Path) -> bool:
    """Whether a folder holds a DICOM file at any depth; its bytes say so, not the name."""
    return any(True for _ in dicom_files(folder))


def convert(folder: Path, out: Path, max_gb: float = MAX_GB) -> tuple[list[Scan], dict[str, str]]:
    """Convert every series below `folder` into NIfTI in `out`; one subject per top-level folder.

    dcm2niix makes slice distances equal, and writes that volume beside the original; it is taken,
    and flagged. A tilted gantry is corrected and flagged. Derived series are used only where their
    study gives nothing else. No patient name goes into a file name or a log: a series is
    called by its folder and series number. A series of `max_gb` as float32 or more is left out.

    Returns the scans and, by name, why a series gave none. Raises InputError where none did.
    """
    out.mkdir(parents=True, exist_ok=True)
    found, lost = find_series(folder)
    scans: list[Scan] = []
    studies: set[str] = set()
    for series in sorted(found, key=lambda one: (one.derived, one.name)):
        try:
            if series.derived and series.first.study in studies:
                raise ScanError("derived from other images of its study, which are taken instead.")
            scans.append(_convert_series(series, folder, out / series.name, max_gb))
        except ScanError as error:
            lost[series.name] = f"{series.where}: {error}"
            continue
        studies.add(series.first.study)
    if not scans:
        raise InputError(" ".join(lost.values()) or f"{folder}: no DICOM series found.")
    return _twins_flagged(sorted(scans, key=lambda scan: scan.id)), lost


def _twins_flagged(scans: Sequence[Scan]) -> list[Scan]:
    """The scans; one whose voxels and place another series has too says so."""
    digests = [_voxel_digest(scan.image) for scan in scans]
    count = Counter(digests)
    flagged = []
    for scan, digest in zip(scans, digests, strict=True):
        check = Check("other series with the same voxels", count[digest] - 1, high=0, hard=False)
        flagged.append(replace(scan, checks=(*scan.checks, check)))
    return flagged


def _voxel_digest(image: Path) -> str:
    """Digest of the voxels of a volume and of their place."""
    volume = nib.Nifti1Image.from_filename(image)
    place = (volume.shape, np.round(volume.affine, 2).tolist())
    return sha256(repr(place).encode() + np.asarray(volume.dataobj).tobytes()).hexdigest()


def save_copy(image: Path, path: Path) -> None:
    """Copy a converted image byte by byte, without what its header says in words."""
    stored = gzip.decompress(image.read_bytes())
    header = nib.Nifti1Header.from_fileobj(io.BytesIO(stored), check=False)
    start = int(header["vox_offset"])
    for name in ("db_name", "aux_file", "intent_name"):
        header[name] = b""
    header["descrip"] = b"Norma: converted from DICOM"
    header["vox_offset"] = 352
    no_extension = bytes(4)
    voxels = stored[start:]
    write_atomic(path, gzip.compress(header.binaryblock + no_extension + voxels, 6, mtime=0))


# from a series to a scan


def _convert_series(series: Series, root: Path, target: Path, max_gb: float) -> Scan:
    """A series as a scan whose image lies in `target`; ScanError with the reason why it is none."""
    _demand_usable(series, max_gb)
    series, stack = _one_volume(series)
    _demand_size(stack.even_slices, series.first, max_gb)
    headers = series.headers
    straight = stack
    tilted = stack.tilt > TILTED
    if tilted:
        headers, straight = upright(series.headers, stack)
    image = _dcm2niix(headers, straight, target, tilted)
    volume = nib.Nifti1Image.from_filename(image)
    spacing = float(series.first.spacing.max())
    if volume.ndim > 3 and max(volume.shape[3:]) > 1:
        raise ScanError(f"a volume of {volume.shape[3]} time points or echoes, expected one.")
    why = misplaced(straight, image.name, volume.shape, volume.affine, spacing)
    if why:
        raise ScanError(f"{why}; export it again, or convert it by hand and give the NIfTI.")
    if tilted:
        image = straighten(image, stack)

    checks = [
        *stack_checks(stack),
        none_expected("damaged slices left out", len(series.damaged)),
        none_expected("slices that came twice", series.repeated),
    ]
    origin = {
        "folder": printable(series.folder.relative_to(root)),
        "series_uid": series.first.series,
        "series_number": series.first.series_number,
    }
    return Scan(
        series.name,
        image,
        series.subject,
        origin=origin,
        checks=tuple(checks),
        instances=tuple(header.path for header in series.headers),
    )


def _demand_usable(series: Series, max_gb: float) -> None:
    """Raise ScanError where headers say that a series is no volume of CT or MR, or too large."""
    first = series.first
    if first.modality not in MODALITIES:
        raise ScanError(f"modality '{first.modality}', expected CT or MR.")
    if first.damage:
        raise ScanError(f"none of {len(series.damaged)} files can be used: {first.damage}.")
    if is_localiser(first):
        raise ScanError("a localiser, which plans other series.")
    if "MOSAIC" in first.image_type:
        raise ScanError("mosaics, as of functional or diffusion MR; one volume was expected.")
    for header in series.headers:
        if header.grey != "MONOCHROME2":
            raise ScanError(f"pixels are {header.grey or 'of no kind'}, expected MONOCHROME2.")
    _demand_size(count_slices(series.headers), first, max_gb)

    positions, orientations, spacing = series.planes
    if not all(np.isfinite(part).all() for part in (positions, orientations, spacing)):
        raise ScanError(
            "slices without position, orientation or pixel spacing, so that nobody knows where "
            "they lie; convert it by hand and give the NIfTI."
        )
    sizes = {(h.columns, h.rows) for h in series.headers}
    if len(sizes) > 1 or np.ptp(spacing, axis=0).max() > 1e-3:
        raise ScanError(f"slices of {max(len(sizes), 2)} pixel sizes or shapes, expected one.")
    found = directions(orientations)
    if len(found) > 1:
        shown = ", ".join(str(count) for count in found)
        raise ScanError(f"slices of {len(found)} orientations ({shown}), expected one.")
    if len(positions) < SMALLEST:
        raise ScanError(_TOO_FEW.format(len(positions)))


def _demand_size(slices: int, of: Header, max_gb: float) -> None:
    """Raise ScanError where a volume of that many slices passes the limit."""
    large = too_large((of.columns, of.rows, slices), max_gb)
    if large:
        raise ScanError(
            f"{of.columns} x {of.rows} x {slices} voxels {large}; export fewer or smaller slices."
        )


def _one_volume(series: Series) -> tuple[Series, Stack]:
    """A series without repeated slices, and its stack; ScanError where it holds several volumes."""
    positions, orientations, _ = series.planes
    stack = Stack.of(positions, orientations[0])
    if stack.off_line > OFF_LINE:
        raise ScanError(f"slices lie up to {stack.off_line:.1f} mm beside one line.")
    place = places(stack.distances)
    count = int(place[-1]) + 1
    repeated = len(place) - count
    if repeated:
        several = f"{len(place)} slices at {count} places, which differ"
        if max(header.frames for header in series.headers) > 1:
            raise ScanError(f"{several}: {_VOLUMES}")
        at: dict[int, Header] = {}
        for i, index in zip(place, stack.order, strict=True):
            header = series.headers[index]
            known = at.setdefault(int(i), header)
            if known is not header and pixel_digest(known) != pixel_digest(header):
                raise ScanError(f"{several}: {_VOLUMES}")
        series = replace(series, headers=list(at.values()), repeated=repeated)
        positions, orientations, _ = series.planes
        stack = Stack.of(positions, orientations[0])
        log.warning("%s: %d slices came twice and are used once", series.where, repeated)
    if count < SMALLEST:
        raise ScanError(_TOO_FEW.format(count))
    return series, stack


_TOO_FEW = "slices: {}, expected " + f"{SMALLEST} or more; export the whole series."

_VOLUMES = (
    "several volumes in one series (time points, echoes or reconstructions), expected one; "
    "export each as a series."
)


# the converter


def _dcm2niix(headers: Sequence[Header], stack: Stack, target: Path, moved: bool) -> Path:
    """The one volume that dcm2niix makes of a series, in `target`; ScanError with its cause.

    `moved`: the places in `headers` are others than those in the files.
    """
    target.mkdir(parents=True, exist_ok=True)
    for old in _volumes(target):  # of an earlier run
        old.unlink()
    for killed in target.glob(f"{COPIES}*"):
        shutil.rmtree(killed)
    with tempfile.TemporaryDirectory(prefix=COPIES, dir=target) as copies:
        try:
            lay_out(headers, stack, Path(copies), moved)
        except OSError:
            raise
        except Exception as error:  # whatever damaged bytes make pydicom raise
            raise ScanError(
                f"its files cannot be sorted by place ({type(error).__name__}); export it again."
            ) from None
        output = _run(Path(copies), target, headers[0].series_number or "0")

    images = _preferred(_volumes(target))
    if len(images) > 1:
        raise ScanError(f"dcm2niix made {len(images)} volumes of this series, expected one.")
    if not images:
        lines = output.strip().splitlines()
        last = re.sub(r"[^ -~]+", "?", lines[-1])[:200] if lines else "no message"
        raise ScanError(f"dcm2niix made no volume of this series ({last}).")
    return images[0]


def _run(folder: Path, target: Path, number: str) -> str:
    """What dcm2niix prints; damaged files make it print bytes that are no text."""
    import dcm2niix  # needed for DICOM alone

    name = ("-f", f"series-{number}")
    command = [dcm2niix.bin, *OPTIONS, *name, "-i", "n", "-o", str(target), str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise ScanError(f"dcm2niix did not end in {PATIENCE} seconds.") from None
    if done.returncode < 0:
        raise ScanError(f"dcm2niix ended by signal {-done.returncode}: a damaged file.")
    return (done.stdout + done.stderr).decode(errors="replace").replace(f"{folder}/", "")


def _volumes(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if is_nifti(p))


def _preferred(images: list[Path]) -> list[Path]:
    """Of a volume and its twin of equal slice distances (`_Eq`) take the twin.

    Twins of a tilt below what counts as one (`_Tilt`) are left out: they lie elsewhere.
    """
    best: dict[str, Path] = {}
    for image in images:
        if "_Tilt" in image.name:
            continue
        base = _base(image).partition("_Eq")[0]
        if base not in best or len(image.name) > len(best[base].name):
            best[base] = image
    return sorted(best.values())


def _base(image: Path) -> str:
    return image.name.split(".nii")[0]
