"""DICOM series to NIfTI with dcm2niix, gantry tilt corrected."""

from __future__ import annotations

import logging
import re
import subprocess
from pathlib import Path

from preprocessing.images import is_nifti
from preprocessing.scans import InputError, Scan, safe_name

log = logging.getLogger("norma")


def is_dicom(path: Path) -> bool:
    """Whether a file carries the DICOM preamble."""
    try:
        with open(path, "rb") as handle:
            return handle.read(132)[128:] == b"DICM"
    except OSError:
        return False


def has_dicom(folder: Path) -> bool:
    """Whether a folder holds a DICOM file at any depth (names are not trusted, the preamble is read)."""
    return any(p.is_file() and is_dicom(p) for p in folder.rglob("*"))


def convert(folder: Path, out: Path) -> tuple[list[Scan], dict[str, str]]:
    """Convert every series below `folder` into NIfTI in `out`; one subject per top-level folder.

    dcm2niix corrects gantry tilt and unequal slice distances and writes the corrected volume beside the original; the
    corrected one is taken. Derived series and localisers are used only where a folder holds nothing else. No patient
    name goes into a file name or a log: a series is called by its folder and series number.

    Returns the scans and, by folder, why a series gave none. Raises InputError where no series gave any.
    """
    out.mkdir(parents=True, exist_ok=True)
    scans: list[Scan] = []
    failures: dict[str, str] = {}
    for source in sorted({p.parent for p in folder.rglob("*") if p.is_file() and is_dicom(p)}):
        parts = source.relative_to(folder).parts or (folder.name,)
        name = safe_name("_".join(parts))
        images, message = _run(source, out / name)
        if not images:
            failures[name] = f"{source}: dcm2niix made no volume of this series ({message})."
        scans += [
            Scan(id=safe_name(f"{name}_{_base(p)}"), image=p, subject=safe_name(parts[0]))
            for p in images
        ]
    if not scans:
        raise InputError(" ".join(failures.values()) or f"{folder}: no DICOM series found.")
    return scans, failures


def _run(source: Path, target: Path) -> tuple[list[Path], str]:
    import dcm2niix

    target.mkdir(parents=True, exist_ok=True)
    for old in [
        p for p in target.iterdir() if is_nifti(p)
    ]:  # a series of an earlier run that is no longer there
        old.unlink()
    message = ""
    for derived in ("y", "n"):  # first without derived series, then with them
        # -l n stores unsigned data as int16: dcm2niix corrects gantry tilt in no other
        command = [
            dcm2niix.bin,
            "-z",
            "y",
            "-b",
            "n",
            "-l",
            "n",
            "-i",
            derived,
            "-d",
            "0",
            "-w",
            "1",
            "-f",
            "series-%s",
        ]
        done = subprocess.run(
            [*command, "-o", str(target), str(source)], capture_output=True, text=True, check=False
        )
        images = _preferred(sorted(p for p in target.iterdir() if is_nifti(p)))
        message = ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1]
        if "Only able to correct gantry tilt" in done.stdout:
            return [], "tilted gantry, which it corrects in 16-bit data of 3 slices or more alone"
        if images:
            for line in (text for text in done.stdout.splitlines() if "Missing images" in text):
                log.warning("%s: %s", source, line.removeprefix("Warning: "))
            break
    return images, message


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
