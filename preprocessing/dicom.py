"""DICOM series to NIfTI with dcm2niix, gantry tilt corrected."""

from __future__ import annotations

import logging
import re
import subprocess
from pathlib import Path

from preprocessing.images import is_nifti
from preprocessing.scans import InputError, Scan, safe_name

log = logging.getLogger("norma")

# -z y: gzipped; -b n: no JSON sidecar; -d 0: this folder alone; -w 1: overwrite;
# -f: files are named by the series' number, never by the patient.
# -l n stores unsigned data as int16: dcm2niix corrects gantry tilt in no other.
OPTIONS = "-z y -b n -l n -d 0 -w 1 -f series-%s"


def is_dicom(path: Path) -> bool:
    """Whether a file carries the DICOM preamble."""
    try:
        with open(path, "rb") as handle:
            return handle.read(132)[128:] == b"DICM"
    except OSError:
        return False


def has_dicom(folder: Path) -> bool:
    """Whether a folder holds a DICOM file at any depth; the preamble says so, not the name."""
    return any(p.is_file() and is_dicom(p) for p in folder.rglob("*"))


def convert(folder: Path, out: Path) -> tuple[list[Scan], dict[str, str]]:
    """Convert every series below `folder` into NIfTI in `out`; one subject per top-level folder.

    dcm2niix corrects gantry tilt and unequal slice distances, and writes the corrected volume
    beside the original; the corrected one is taken. Derived series and localisers are used only
    where a folder holds nothing else. No patient name goes into a file name or a log: a series is
    called by its folder and series number.

    Returns the scans and, by folder, why a series gave none. Raises InputError where none did.
    """
    out.mkdir(parents=True, exist_ok=True)
    scans: list[Scan] = []
    failures: dict[str, str] = {}
    for source in sorted({p.parent for p in folder.rglob("*") if p.is_file() and is_dicom(p)}):
        parts = source.relative_to(folder).parts or (folder.name,)
        name = safe_name("_".join(parts))
        images, message = _convert_folder(source, out / name)
        if not images:
            failures[name] = f"{source}: dcm2niix made no volume of this series ({message})."
        for image in images:
            scan_id = safe_name(f"{name}_{_base(image)}")
            scans.append(Scan(id=scan_id, image=image, subject=safe_name(parts[0])))
    if not scans:
        raise InputError(" ".join(failures.values()) or f"{folder}: no DICOM series found.")
    return scans, failures


def _convert_folder(source: Path, target: Path) -> tuple[list[Path], str]:
    """The volumes of one folder, written to `target`, and the last message of dcm2niix."""
    target.mkdir(parents=True, exist_ok=True)
    for old in _volumes(target):  # a series of an earlier run may be gone
        old.unlink()

    images: list[Path] = []
    message = ""
    for ignore_derived in (True, False):  # derived series only where nothing else is
        done = _dcm2niix(source, target, ignore_derived)
        images = _preferred(_volumes(target))
        lines = (done.stderr or done.stdout).strip().splitlines()
        message = lines[-1] if lines else "no message"
        # dcm2niix writes the sheared stack all the same, with a straight affine
        if "Only able to correct gantry tilt" in done.stdout:
            return [], "tilted gantry, which it corrects in 16-bit data of 3 slices or more alone"
        if images:
            for line in done.stdout.splitlines():
                if "Missing images" in line:
                    log.warning("%s: %s", source, line.removeprefix("Warning: "))
            break
    return images, message


def _dcm2niix(source: Path, target: Path, ignore_derived: bool) -> subprocess.CompletedProcess[str]:
    import dcm2niix  # needed for DICOM alone

    derived = ["-i", "y" if ignore_derived else "n"]
    command = [dcm2niix.bin, *OPTIONS.split(), *derived, "-o", str(target), str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _volumes(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if is_nifti(p))


def _preferred(images: list[Path]) -> list[Path]:
    """Of a volume and its corrected twins (`_Tilt`, `_Eq`) take the most corrected."""
    best: dict[str, Path] = {}
    for image in images:
        base = re.split(r"_(?:Tilt|Eq)", _base(image))[0]
        if base not in best or len(image.name) > len(best[base].name):
            best[base] = image
    return sorted(best.values())


def _base(image: Path) -> str:
    return image.name.split(".nii")[0]
