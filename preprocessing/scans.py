"""A scan: an image file with its row in the table, and the errors that inputs raise.

Commands import this file before they know what to do, so it imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preprocessing.quality import Check

NOTICE = "Research software, not a medical device; not for diagnosis."

# "tune": labelled scans for few-label operating points, in no other use
SPLITS = ("train", "val", "tune", "test")

LABELS = ("healthy", "abnormal")

# what the column `healthy_slices` may say of a scan with a lesion mask
LESION_FREE = "lesion_free"
MARGIN_MM = 10.0  # between a slice without lesion that may train and the lesion

# endings of BIDS files; BIDS has no CT: see docs/conventions.md
SUFFIXES = {"ct": "ct", "t1": "T1w", "t2": "T2w", "flair": "FLAIR", "picture": "picture"}


# fields of a scan that are no column of a table
NO_COLUMNS = ("extra", "sequences", "origin", "checks", "instances", "group")


# Bytes of an id or a subject. File names have at most 255, and up to 140 are taken:
# `_from-FLAIR_to-<atlas>_mode-image_xfm.mat` and a temporary prefix with the machine's name.
LONGEST = 100

# `quality/<id>_FLAIR.png` is a picture of the scan <id>, and would be one of a scan <id>_FLAIR
_SEQUENCE = re.compile(r"_(ct|t1w|t2w|flair|picture)(-\d+)?$")

# names that are devices on Windows, or that Norma gives to its own folders below OUT
_RESERVED = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|slices|quality|dicom|.*\.(tsv|json|html|yaml|log)",
    re.IGNORECASE,
)
_DEVICE = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)\.", re.IGNORECASE)

_ENDINGS = re.compile(
    r"\.(nii|nii\.gz|img|img\.gz|hdr|hdr\.gz|mgz|mgh|png|jpe?g|tiff?|bmp)$", re.IGNORECASE
)

log = logging.getLogger("norma")


class InputError(ValueError):
    """The input as a whole cannot be used; nothing is processed."""


class ScanError(ValueError):
    """One scan cannot be used; the batch goes on without it."""


@dataclass(frozen=True)
class Scan:
    """One image file with its row in the table.

    image: the file of the first sequence.
    split: one of `SPLITS`, or "" (not split yet).
    label: one of `LABELS`, or "" (unknown).
    mask: the lesion mask, on the grid of the image.
    slice_labels: a CSV with a row per axial slice of that grid (see docs/conventions.md).
    extra: what else the table says about the scan, by column.
    sequences: the files of the other sequences by modality, where several are asked for.
    origin: what a converted image was made of: `folder`, relative to the input, `series_uid` and
        `series_number`; empty for an image that was given as a file.
    checks: what was measured of the files that the image was made of.
    instances: the DICOM files that the image was made of.
    group: what the table's column of that name says.
    """

    id: str
    image: Path
    subject: str
    split: str = ""
    label: str = ""
    pathology: str = ""
    mask: Path | None = None
    brain_mask: Path | None = None
    slice_labels: Path | None = None
    extra: dict[str, str] = field(default_factory=dict)
    sequences: dict[str, Path] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    instances: tuple[Path, ...] = ()
    group: str = ""

    @property
    def files(self) -> list[Path]:
        """Every image file of the scan, the first sequence first."""
        return [self.image, *self.sequences.values()]

    @property
    def gives_slices(self) -> bool:
        """Whether the table asks for the scan's slices without lesion as healthy ones."""
        return self.label == "abnormal" and self.extra.get("healthy_slices") == LESION_FREE

    @property
    def margin_mm(self) -> float:
        """How far these lie from the lesion: the column `margin_mm`, or `MARGIN_MM`."""
        return float(self.extra.get("margin_mm") or MARGIN_MM)

    @property
    def made_of(self) -> list[Any]:
        """Origin and checks as JSON has them, for a key of results; empty for a given file."""
        return [self.origin, [check.row() for check in self.checks]] if self.origin else []


def how_to_give(modality: str) -> str:
    """For a message: which sequences each scan needs, and how to give them.

    `modality` is such as "t1+flair".
    """
    first, *others = modality.split("+")
    named = " and ".join(f"'{column(name)}' ({SUFFIXES.get(name, name)})" for name in others)
    return (
        f"{len(others) + 1} sequences of each scan are expected, {modality}: "
        f"give a table with the columns 'image' ({SUFFIXES.get(first, first)}), {named}, "
        "or a BIDS folder that has them."
    )


def column(modality: str) -> str:
    """The table's column of any sequence but the first."""
    return f"image_{modality}"


def stem(path: Path) -> str:
    """The file's name without its ending and without the BIDS suffix of its modality."""
    name = _ENDINGS.sub("", path.name) or path.name
    return re.sub(r"_(T1w|T2w|FLAIR|ct)$", "", name, flags=re.IGNORECASE) or name


def safe_name(name: str) -> str:
    """A name for files: letters and digits of all scripts, dots, dashes and underscores.

    "scan" if nothing is left. Two names may become one: `unique_names` tells them apart.
    """
    text = unicodedata.normalize("NFC", name)
    # L, M, N: letters, the marks that some scripts write vowels with, numbers
    kept = (c if c in "_.-" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return re.sub(" +", "-", "".join(kept)).strip("-.") or "scan"


def unique_names(names: Mapping[str, str]) -> dict[str, str]:
    """A safe name for each key, made of its value, so that no two meet on any file system.

    Names that meet, are longer than 100 bytes, hold bytes that are no text, or are reserved get a
    short digest of their key: names depend on the keys, and never on their order.
    """
    made = {key: _safe_alone(key, name) for key, name in names.items()}
    # once more at the end: somebody may have given a digest as a name
    for digits in (8, 16, 32, 64, 64):
        meeting = _meeting(made)
        if not meeting:
            break
        made |= {key: _with_digest(key, names[key], digits) for key in meeting}
    return made


def _safe_alone(key: str, name: str) -> str:
    safe = safe_name(name)
    no_text = any(unicodedata.category(c) == "Cs" for c in name)
    if no_text or _RESERVED.fullmatch(safe) or len(safe.encode()) > LONGEST:
        return _with_digest(key, name, 8)
    return safe


def _with_digest(key: str, name: str, digits: int) -> str:
    """The safe name, cut to leave room for some digits of the digest of its key."""
    # nul.x is a device as nul is, whatever follows
    safe = _DEVICE.sub(r"\1-", safe_name(name))
    mark = "-" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
    begin = safe.encode()[: LONGEST - len(mark)].decode(errors="ignore")
    return begin.rstrip("-.") + mark


def _meeting(made: Mapping[str, str]) -> set[str]:
    """Keys whose names, or the names of whose files, are one where case is not told apart."""
    users: defaultdict[str, list[str]] = defaultdict(list)
    for key, name in made.items():
        users[file_key(name)].append(key)
    found: set[str] = set()
    for name, keys in users.items():
        base = _SEQUENCE.sub("", name)
        if len(keys) > 1:
            found.update(keys)
        if base != name and base in users:
            found.update(keys, users[base])
    return found


def file_key(name: str) -> str:
    """A name as file systems compare it that tell neither case nor forms of a letter apart."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def unique_ids(scans: Sequence[Scan]) -> list[Scan]:
    """The scans with ids and subjects that no two share, as files and folders may be called.

    For every kind of input; call it once, on all scans of a batch, with names as they were given.
    Scans of one id are called by their folders too. A `subject` of "" is called as its file is.
    InputError where a file is listed twice under one id.
    """
    files = [scan.image for scan in scans]
    ids = told_apart([scan.id for scan in scans], files)
    shared = Counter(ids)
    keys = ["\0".join(key) for key in ids]
    for i, key in enumerate(ids):
        if shared[key] > 1:  # such as x.nii and x.nii.gz
            keys[i] += f"\0{files[i].name}"
    again = next((key for key, count in Counter(keys).items() if count > 1), None)
    if again is not None:
        file = files[keys.index(again)]
        raise InputError(f"{file}: listed twice; list a scan once.")

    id_of = unique_names({key: "_".join(parts) for key, parts in zip(keys, ids, strict=True)})
    people = _subjects(scans)
    person_of = unique_names({"\0".join(person): "_".join(person) for person in people})
    named = zip(scans, keys, people, strict=True)
    return [replace(s, id=id_of[k], subject=person_of["\0".join(p)]) for s, k, p in named]


def told_apart(names: Sequence[str], files: Sequence[Path]) -> list[tuple[str, ...]]:
    """Each name, behind the folders that tell its file from others of that name."""
    told: list[tuple[str, ...]] = [(unicodedata.normalize("NFC", name),) for name in names]
    members: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, name in enumerate(told):
        members[name].append(i)
    for name, places in members.items():
        if len(places) > 1:
            folders = _folders([files[i] for i in places])
            for i, above in zip(places, folders, strict=True):
                told[i] = (*above, *name)
    return told


def _folders(files: Sequence[Path]) -> list[tuple[str, ...]]:
    """The folders of each file, below the one that holds all files."""
    parents = [os.path.abspath(file.parent) for file in files]
    common = os.path.commonpath(parents)
    return [Path(os.path.relpath(parent, common)).parts for parent in parents]


def _subjects(scans: Sequence[Scan]) -> list[tuple[str, ...]]:
    """Each subject as it was given, or else made of the names of file and folders.

    Where files of one name lie two folders deep (p1/anat/T1.nii), the upper folder is the subject.
    """
    people: list[tuple[str, ...]] = [
        (unicodedata.normalize("NFC", scan.subject),) for scan in scans
    ]
    unnamed = [i for i, scan in enumerate(scans) if not scan.subject]
    files = [scans[i].image for i in unnamed]
    told = told_apart([stem(file) for file in files], files)
    deep = {parts[-1] for parts in told if len(parts) > 2}
    for i, parts in zip(unnamed, told, strict=True):
        bids = next((folder for folder in parts[:-1] if folder.startswith("sub-")), None)
        above = (bids or parts[0],)
        people[i] = above if bids or parts[-1] in deep else parts
    if deep:
        named = sorted({people[i][0] for i in unnamed if told[i][-1] in deep})
        log.info(
            "subjects are called by their folders: %s; where these are not people, "
            "give a table with a column 'subject'.",
            some(named),
        )
    return people


def some(names: Sequence[object], count: int = 3) -> str:
    """The first few names, for a message, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(str(name) for name in names[:count]) + more


def scan_row(scan: Scan) -> dict[str, Any]:
    """A scan as a table row; paths are absolute, so that the table reads the same from anywhere."""
    names = [f.name for f in fields(scan) if f.name not in NO_COLUMNS]
    row = {name: getattr(scan, name) for name in names}
    row |= {column(name): path for name, path in scan.sequences.items()}
    row |= scan.extra
    return {k: v.resolve() if isinstance(v, Path) else v for k, v in row.items()}
