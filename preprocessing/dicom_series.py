"""Which DICOM files make a series: told by UIDs and folders, from headers alone."""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from preprocessing.dicom_headers import DamagedFile, Header, is_dicom, read_header
from preprocessing.files import file_digest, walk
from preprocessing.images import SMALLEST
from preprocessing.scans import unique_names

log = logging.getLogger("norma")

LOCALISERS = ("LOCALIZER", "SCOUT")


@dataclass(frozen=True)
class Series:
    """The files of one series.

    name: unique in the input; `where` is for messages.
    headers: of good files; damaged: why others are not used.
    """

    headers: list[Header]
    damaged: list[str]
    folder: Path
    name: str = ""
    subject: str = ""
    where: str = ""
    repeated: int = 0

    @property
    def first(self) -> Header:
        return self.headers[0]

    @property
    def derived(self) -> bool:
        return self.first.image_type[:1] == ("DERIVED",)

    @property
    def planes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions (N, 3), orientations (N, 6) and pixel spacing (N, 2) of all slices."""
        parts = [(h.positions, h.orientations, h.spacing) for h in self.headers]
        positions, orientations, spacing = (np.concatenate(p) for p in zip(*parts, strict=True))
        return positions, orientations, spacing


def dicom_files(folder: Path) -> Iterator[Path]:
    """Every DICOM file below a folder, in order."""
    files, _ = walk(folder)
    return (path for path in files if path.is_file() and is_dicom(path))


def find_series(folder: Path) -> tuple[list[Series], dict[str, str]]:
    """Every series below a folder, and by name why files or copies belong to none."""
    groups: dict[tuple[str, bool], list[Header]] = defaultdict(list)
    left_out: dict[str, tuple[str, str]] = {}  # by key: the name asked for, and the reason
    unreadable: dict[Path, list[str]] = defaultdict(list)
    for path in dicom_files(folder):
        try:
            header = read_header(path)
        except DamagedFile as error:
            unreadable[path.parent].append(str(error))
            continue
        if header:
            groups[(header.key[0], is_localiser(header))].append(header)

    found: list[Series] = []
    for members in itertools.chain.from_iterable(map(_by_person, groups.values())):
        headers, copies = _without_copies(members)
        found += [_series(part) for part in _by_folder(headers)]
        left_out |= _copied(headers, copies, folder)
    for parent, reasons in unreadable.items():
        text = (
            f"{printable(parent)}: {len(reasons)} of its DICOM files cannot be used: {reasons[0]}."
        )
        left_out[f"{parent}\0damaged"] = ("_".join((*_parts(parent, folder), "damaged")), text)
    return _named(found, left_out, folder)


def is_localiser(header: Header) -> bool:
    return any(kind in LOCALISERS for kind in header.image_type)


def _without_copies(headers: Sequence[Header]) -> tuple[list[Header], list[tuple[Header, Header]]]:
    """Files without those that are copies, and each copy with the file that it is a copy of.

    In a folder that is any file with the bytes of another. Among folders it is one that holds
    nothing else than another holds too: a copy that fills a gap of its folder stays.
    """
    twins = Counter(header.uid for header in headers)
    folders: dict[Path, dict[str, Header]] = defaultdict(dict)
    copies: list[tuple[Header, Header]] = []
    for header in headers:
        # a file whose instance has no other file has no copy
        digest = file_digest(header.path) if twins[header.uid] > 1 else str(header.path)
        first = folders[header.path.parent].setdefault(digest, header)
        if first is not header:
            copies.append((header, first))
    for folder in reversed(list(folders)):
        own = folders[folder]
        others = [other for place, other in folders.items() if place != folder]
        twin = next((other for other in others if own.keys() <= other.keys()), None)
        if twin:
            copies += [(header, twin[digest]) for digest, header in own.items()]
            del folders[folder]
    kept = itertools.chain.from_iterable(own.values() for own in folders.values())
    return list(kept), copies


def _copied(
    headers: Sequence[Header], copies: Sequence[tuple[Header, Header]], root: Path
) -> dict[str, tuple[str, str]]:
    """Account for copied files: a word, or where a folder holds copies alone, a series left out."""
    kept = {header.path.parent for header in headers}
    pairs = Counter((copy.path.parent, of.path.parent) for copy, of in copies)
    left_out = {}
    for (parent, original), count in pairs.items():
        text = (
            f"{printable(parent)}: {count} files are copies, byte by byte, of files in "
            f"{printable(original)}; they are left out."
        )
        if parent in kept or parent == original:
            log.warning(text)
        else:
            name = "_".join((*_parts(parent, root), f"series-{headers[0].series_number}"))
            left_out[f"{parent}\0{headers[0].series}"] = (name, text)
    return left_out


def _by_person(headers: list[Header]) -> list[list[Header]]:
    """The files of one series UID by study, frame of reference and patient.

    Where such a part differs in every few slices, it tells no series apart and is passed over.
    """
    groups = [headers]
    for part in range(1, len(headers[0].key)):
        finer: list[list[Header]] = []
        for group in groups:
            found: dict[str, list[Header]] = defaultdict(list)
            for header in group:
                found[header.key[part]].append(header)
            largest = max(count_slices(members) for members in found.values())
            finer += list(found.values()) if largest >= SMALLEST else [group]
        groups = finer
    return groups


def count_slices(headers: Sequence[Header]) -> int:
    return sum(header.frames for header in headers)


def _by_folder(headers: list[Header]) -> list[list[Header]]:
    """A series in several folders: one series if its parts lie apart, else one per folder.

    An export may spread a series over folders. Two people may have one UID after bad
    anonymisation: then the slices of each folder reach over the same place.
    """
    folders: dict[Path, list[Header]] = defaultdict(list)
    for header in headers:
        folders[header.path.parent].append(header)
    if len(folders) == 1:
        return [headers]

    normal = np.cross(headers[0].orientations[0, :3], headers[0].orientations[0, 3:])
    ranges = []
    for part in folders.values():
        along = np.concatenate([header.positions for header in part]) @ normal
        ranges.append((float(along.min()), float(along.max())))
    ranges.sort()
    apart = all(low[1] < high[0] for low, high in itertools.pairwise(ranges))
    return [headers] if apart else list(folders.values())


def _series(headers: Sequence[Header]) -> Series:
    """A series of files, of which some may be damaged."""
    good = [header for header in headers if not header.damage]
    damaged = [header.damage for header in headers if header.damage]
    folder = Path(os.path.commonpath([header.path.parent for header in headers]))
    return Series(good or list(headers), damaged, folder)


def _named(
    found: Sequence[Series], left_out: dict[str, tuple[str, str]], root: Path
) -> tuple[list[Series], dict[str, str]]:
    """Series and reasons with names that no two share; a subject is a top-level folder."""
    tops = {_parts(series.folder, root)[0] for series in found}
    subjects = unique_names({top: top for top in tops})
    wanted: dict[str, str] = {}
    keys = []
    for series in found:
        number = series.first.series_number or "unnumbered"
        parts = (*_parts(series.folder, root), f"series-{number}")
        keys.append(str(series.first.path.relative_to(root)))
        wanted[keys[-1]] = "_".join(parts)
    names = unique_names(wanted | {key: name for key, (name, _) in left_out.items()})
    named = []
    for series, key in zip(found, keys, strict=True):
        number = series.first.series_number or "without number"
        where = f"{printable(series.folder)}, series {number} ({series.first.series or 'no UID'})"
        subject = subjects[_parts(series.folder, root)[0]]
        named.append(replace(series, name=names[key], subject=subject, where=where))
    return named, {names[key]: text for key, (_, text) in left_out.items()}


def _parts(folder: Path, root: Path) -> tuple[str, ...]:
    """The folders from the input to a series; the name of the input where it lies in it."""
    parts = folder.relative_to(root).parts or (root.resolve().name,)
    return tuple(printable(part) for part in parts)


def printable(path: object) -> str:
    """A path whose bytes are no UTF-8 as text that can be written, no two alike."""
    return os.fsencode(str(path)).decode("utf-8", "backslashreplace")
