"""BIDS folders: the scans of a modality, and what participants.tsv says of their subjects."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from preprocessing.files import nearest, numbered_rows
from preprocessing.folders import Tree, is_volume, look
from preprocessing.labels import label_name, split_name, told
from preprocessing.scans import SUFFIXES, InputError, Scan, some, stem

_TELLING = ("split", "label", "pathology", "group")


def bids_scans(tree: Tree, modality: str) -> list[Scan]:
    """The scans of a BIDS folder; participants.tsv may name split, label and pathology."""
    first, *others = modality.split("+")
    for name in (first, *others):
        if name not in SUFFIXES:
            raise InputError(f"unknown MODALITY '{name}'; known: {', '.join(SUFFIXES)}.")
    people = _people(tree.folder)
    files = [file for file in tree.files if tree.is_of_subject(file) and is_volume(file)]
    images = [file for file in files if _bids_parts(file)[1] == SUFFIXES[first]]

    scans = []
    for image in images:
        subject = _subject(image, tree.parts(image)[0])
        row = people.get(_bare(subject), {})
        partners = {name: _partner(image, SUFFIXES[name], files) for name in others}
        scans.append(
            Scan(
                stem(image),
                image,
                subject,
                split=split_name(row.get("split", ""), image),
                label=label_name(row.get("label", ""), image),
                pathology=row.get("pathology", ""),
                sequences={name: path for name, path in partners.items() if path},
                group=row.get("group", ""),
            )
        )
    return scans


def bids_subject(name: str) -> str:
    """The subject that a BIDS file name begins with, such as sub-01; "" where there is none."""
    if not name.startswith("sub-"):
        return ""
    label = ""
    for c in name[4:]:
        if unicodedata.category(c)[0] not in "LMN":
            break
        label += c
    return f"sub-{label}" if label else ""


def _subject(image: Path, folder: str) -> str:
    """The subject's folder, if the file is called by it; or else by the file's name."""
    if re.match(re.escape(folder) + r"[_.]", image.name):
        return folder
    return bids_subject(image.name) or folder


def _partner(image: Path, suffix: str, files: Sequence[Path]) -> Path | None:
    """The one file of a suffix that belongs to `image`; None for none or several.

    It has the name of `image` otherwise, or else is of the same subject and session.
    """
    base = _bids_parts(image)[0]
    of_session = []
    for path in files:
        other, its_suffix = _bids_parts(path)
        if its_suffix == suffix and _session(other) == _session(base):
            of_session.append(path)

    same_name = [p for p in of_session if _bids_parts(p)[0] == base]
    if len(same_name) == 1:
        return same_name[0]
    return of_session[0] if len(of_session) == 1 else None


def _bids_parts(path: Path) -> tuple[str, str]:
    """A BIDS file's name up to its suffix, and the suffix."""
    bare = re.sub(r"\.[A-Za-z]+(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    base, _, suffix = bare.rpartition("_")
    return base, suffix


def _session(base: str) -> list[str]:
    """Subject and session in a BIDS name."""
    return [part for part in base.split("_") if part.startswith(("sub-", "ses-"))]


# participants.tsv


def _bare(name: str) -> str:
    """A participant without the prefix that some tables leave out."""
    return unicodedata.normalize("NFC", name).removeprefix("sub-")


def _people(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of participants.tsv by participant without prefix; empty where there is none."""
    table = folder / "participants.tsv"
    people: dict[str, dict[str, str]] = {}
    if not table.is_file():
        return people
    for line, found in numbered_rows(table):
        row = told(found)
        tells = {name: row.get(name, "") for name in _TELLING}
        if not row.get("participant_id") and any(tells.values()):
            raise InputError(
                f"{table}, line {line}: no 'participant_id', so nobody knows whose label or split "
                f"it is; columns found: {', '.join(row)}."
            )
        earlier = people.setdefault(_bare(row.get("participant_id", "")), row)
        if any(earlier.get(name, "") != value for name, value in tells.items()):
            raise InputError(
                f"{table}, line {line}: participant '{row['participant_id']}' has another row "
                "with another split, label, pathology or group; keep one."
            )
    return people


def check_people(source: Path, scans: Sequence[Scan]) -> None:
    """Refuse participants and subjects that nothing matches, where labels or splits are given.

    For what learns from them: a row that is lost would put an abnormal subject into train.
    """
    if not source.is_dir() or not (source / "participants.tsv").is_file():
        return
    tree = look(source)
    people = _people(source) if tree.is_bids else {}
    if not any(row.get("label") or row.get("split") for row in people.values()):
        return
    table = source / "participants.tsv"
    there = set(tree.files)
    named = [scan.image for scan in scans if scan.image in there]
    of_scans = {_bare(_subject(image, tree.parts(image)[0])) for image in named}
    subjects = of_scans | {_bare(place.name) for place in source.glob("sub-*")}
    lost = sorted(set(people) - subjects)
    if lost:
        raise InputError(
            f"{table}: no folder sub-* for participant {some(lost)}{nearest(lost[0], subjects)}; "
            "name participants as their folders, or leave the rows out."
        )
    unnamed = sorted(of_scans - set(people))
    if unnamed:
        raise InputError(
            f"{table}: no row for sub-{some(unnamed)}{nearest(unnamed[0], people)}, while it gives "
            "others a label or a split; add the rows (n/a is allowed), or take the scans away."
        )
