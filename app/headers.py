"""What the header of a DICOM file tells of a series: which modality it may be, and whose it is.

A patient is known by a keyed digest alone; no other field is kept.
"""

from __future__ import annotations

import hmac
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

TAGS = (
    "SeriesInstanceUID",
    "Modality",
    "BodyPartExamined",
    "PatientID",
    "SeriesDescription",
    "ProtocolName",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
)
WORDS = (
    ("flair", r"flair|tirm|dark.?fluid"),
    ("t1", r"t1|mp2?rage|bravo|spgr|fspgr"),
    ("t2", r"t2"),
)
HEAD = r"head|brain|skull|cran|cereb|neuro"
CHEST = r"chest|thora|lung|pulm"
GUESSES = ("ct", "chest_ct", "t1", "t2", "flair")
# ms: short echo and repetition weigh by T1; a long echo by T2, and FLAIR inverts at about 2 s
SHORT_ECHO = 30
LONG_ECHO = 60
FLUID_NULLED = (1500, 3000)
SHORT_REPETITION = 3000


@dataclass(frozen=True)
class DicomNotes:
    """What is kept of a series: the modality that it looks like, and a pseudonym of its patient."""

    guess: str = ""
    subject: str = ""


def dicom_notes(folder: Path, secret: bytes) -> dict[str, DicomNotes]:
    """The notes of each series below a folder, by its UID; its first readable file speaks."""
    found: dict[str, DicomNotes] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = _read(path)
        uid = re.sub(r"[^0-9.]", "", str(data.get("SeriesInstanceUID") or ""))[:64]
        if uid and uid not in found:
            found[uid] = DicomNotes(
                guess(data), pseudonym(str(data.get("PatientID") or ""), secret)
            )
    return found


def _read(path: Path) -> Dataset:
    """The tags of a file; none where it is no DICOM or would have to be inflated first."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open(path, "rb") as file:
                has_preamble = file.read(132)[128:] == b"DICM"
            meta = pydicom.filereader.read_file_meta_info(path) if has_preamble else Dataset()
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                return Dataset()
            return pydicom.dcmread(
                path, stop_before_pixels=True, force=True, specific_tags=list(TAGS)
            )
    except Exception:  # whatever damaged bytes make pydicom raise; norma has said what is wrong
        return Dataset()


def guess(data: Dataset) -> str:
    """The modality that a header looks like: "ct", "chest_ct", "t1", "t2", "flair" or "".

    A body part that is named and is no head gives "", a chest in CT apart. Where none is named, the
    description of the series may name a chest.
    """
    modality = str(data.get("Modality") or "")
    text = f"{data.get('SeriesDescription', '')} {data.get('ProtocolName', '')}".lower()
    part = str(data.get("BodyPartExamined") or "").lower()
    if modality == "CT" and re.search(CHEST, part or text):
        return "chest_ct"
    if modality not in ("CT", "MR") or (part and not re.search(HEAD, part)):
        return ""
    if modality == "CT":
        return "ct"
    for name, words in WORDS:
        if re.search(words, text):
            return name
    return _by_times(_ms(data, "EchoTime"), _ms(data, "RepetitionTime"), _ms(data, "InversionTime"))


def contradicts(guess: str, modality: str) -> bool:
    """Whether what a header looks like speaks against a modality that was chosen."""
    return bool(guess) and modality in GUESSES and guess != modality


def _ms(data: Dataset, name: str) -> float:
    try:
        return float(str(data.get(name) or 0))
    except ValueError:
        return 0.0


def _by_times(echo: float, repetition: float, inversion: float) -> str:
    if echo > LONG_ECHO:
        nulled = FLUID_NULLED[0] <= inversion <= FLUID_NULLED[1]
        return "flair" if nulled else "t2"
    if 0 < echo < SHORT_ECHO and 0 < repetition < SHORT_REPETITION:
        return "t1"
    return ""


def pseudonym(patient: str, secret: bytes) -> str:
    """A name for a patient that tells two apart and leads back to nobody; "" without an ID."""
    if not patient.strip():
        return ""
    return "P-" + hmac.digest(secret, patient.strip().encode(), "sha256").hex()[:12]
