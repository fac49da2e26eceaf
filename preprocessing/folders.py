"""What lies in a folder: files that are scans, files that Norma wrote, and the rest."""

from __future__ import annotations

import gzip
import itertools
import logging
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from preprocessing.files import read_table, walk
from preprocessing.images import is_nifti, is_picture
from preprocessing.scans import some

TABLES = (".csv", ".tsv")

# every command leaves the first in its OUT; the others are of older versions
_MARKS = (".norma.lock", "norma.log", "preprocess.json")

# what preprocess writes into folders of its OUT, by the way from there
_PARTS = re.compile(
    r"quality/[^/]+\.png|slices/[^/]+\.(npy|tsv)|slices/nifti/.+|dicom/.+/series-[^/]+"
)

_PREPROCESSED = re.compile(r"(.+)_space-[^_]+_desc-(preproc|brain)_.+\.nii(\.gz)?$", re.IGNORECASE)
_RESULT = re.compile(r"_(mask|map)\.(?i:nii)")
# the header of a pair is read with its voxels; the other two tell of a BIDS folder
_NO_SCANS = re.compile(
    r"\.hdr(\.gz)?$|^dataset_description\.json$|^participants\.(tsv|json)$", re.IGNORECASE
)
_HEADER = 348  # bytes of a NIfTI-1 header; `descrip` is the 80 from 148 on

BY_NORMA = "written by Norma"

log = logging.getLogger("norma")


def is_volume(path: Path) -> bool:
    """Whether the file name is that of a volume; of a pair .hdr and .img the second is."""
    return is_nifti(path) or path.name.lower().endswith((".img", ".img.gz", ".mgz", ".mgh"))


@dataclass(frozen=True)
class Tree:
    """Every file below a folder that Norma did not write, sorted; and what was passed over."""

    folder: Path
    files: list[Path]
    passed: dict[str, list[Path]] = field(default_factory=dict)

    def parts(self, file: Path) -> tuple[str, ...]:
        """Folders and name of a file, from the folder on."""
        return file.relative_to(self.folder).parts

    @cached_property
    def is_bids(self) -> bool:
        """Whether it is a BIDS folder: it says so, or its files are called so."""
        described = (self.folder / "dataset_description.json").is_file()
        return described or any(is_nifti(f) and self.is_of_subject(f) for f in self.files)

    def is_of_subject(self, file: Path) -> bool:
        """Whether a file is called as BIDS calls one of a subject: sub-01/.../sub-01_..."""
        parts = self.parts(file)
        return len(parts) > 1 and parts[0].startswith("sub-") and file.name.startswith("sub-")

    def volumes(self) -> list[Path]:
        """Every volume, but for masks and maps as Norma names them; half pairs are passed over."""
        named = [file for file in self.files if is_volume(file)]
        results = [file for file in named if _RESULT.search(file.name)]
        halves = _half_pairs(self.files)
        self._pass_over("_mask and _map files", results)
        self._pass_over("one file of a pair .hdr and .img", halves)
        left = {*results, *halves}
        return [file for file in named if file not in left]

    def _pass_over(self, reason: str, files: Sequence[Path]) -> None:
        if files:
            self.passed[reason] = list(files)

    def left_out(self, taken: Collection[Path], is_other: Callable[[Path], bool]) -> list[str]:
        """What was passed over, a line per kind; `is_other`: a file of no other reader."""
        known = {*taken, *itertools.chain(*self.passed.values())}
        rest = [f for f in self.files if f not in known and not _NO_SCANS.search(f.name)]
        rest = [file for file in rest if is_other(file)]
        endings = Counter(file.suffix.lower() or "no ending" for file in rest)
        kinds = ", ".join(f"{ending} {count}" for ending, count in sorted(endings.items()))
        lines: list[str] = []
        for reason, files in {**self.passed, f"other files ({kinds})": rest}.items():
            if files:
                names = some([file.relative_to(self.folder) for file in files])
                lines.append(f"passed over {len(files)}, {reason}: {names}")
        return lines

    def say(self, taken: Collection[Path], is_other: Callable[[Path], bool]) -> None:
        """Log what was passed over."""
        for line in self.left_out(taken, is_other):
            log.info("%s: %s", self.folder, line)


def look(folder: Path) -> Tree:
    """What is in a folder, linked folders included; without what Norma wrote there."""
    files, passed = walk(folder)
    every = [*files, *passed.get("hidden", ())]
    marked = {file.parent for file in every if file.name in _MARKS}
    there = set(files)
    own = [file for file in files if _is_own(file, folder, marked, there)]
    hidden = [p for p in passed.pop("hidden", ()) if p.name not in _MARKS and _matters(p)]
    for reason, found in ((BY_NORMA, own), ("hidden", hidden)):
        if found:
            passed[reason] = found
    left = set(own)
    return Tree(folder, [file for file in files if file not in left], passed)


def _matters(hidden: Path) -> bool:
    """Whether a hidden file or folder may hold a scan."""
    return is_volume(hidden) or is_picture(hidden) or hidden.is_dir()


def _is_own(file: Path, folder: Path, marked: Collection[Path], there: Collection[Path]) -> bool:
    """Whether Norma wrote a file: by the folder it lies in, the files beside it, or its header."""
    outs = [place for place in file.parents if place in marked and place.is_relative_to(folder)]
    if any(_PARTS.fullmatch(file.relative_to(out).as_posix()) for out in outs):
        return True
    found = _PREPROCESSED.match(file.name)
    if found:
        sidecar = file.with_name(f"{found[1]}_preproc.json")
        return sidecar in there or bool(outs) or _is_signed(file)
    if file.suffix.lower() in TABLES:
        return file.parent in marked and _is_own_table(file)
    other = not is_volume(file) and not is_picture(file)
    return other and any(out != folder for out in outs)


def _is_own_table(table: Path) -> bool:
    """Whether a table has columns as Norma writes them."""
    if table.name not in ("scans.tsv", "failures.tsv", "scores.tsv"):
        return False
    rows = read_table(table)
    return not rows or bool({"sidecar", "reason", "status"} & set(rows[0]))


def _is_signed(file: Path) -> bool:
    """Whether a NIfTI's header says that Norma wrote it."""
    try:
        with open(file, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(file) if packed else open(file, "rb") as handle:
            return handle.read(_HEADER)[148:].startswith(b"Norma")
    except (OSError, EOFError, zlib.error):
        return False


def _half_pairs(files: Sequence[Path]) -> list[Path]:
    """Headers without their voxels, and voxels without their header, by names in any case."""
    bases: dict[str, set[str]] = {".hdr": set(), ".img": set()}
    of_pair: list[tuple[Path, str, str]] = []
    for file in files:
        found = re.fullmatch(r"(.+)(\.hdr|\.img)(\.gz)?", str(file), re.IGNORECASE)
        if found:
            kind = found[2].lower()
            bases[kind].add(found[1])
            of_pair.append((file, found[1], kind))
    other = {".hdr": ".img", ".img": ".hdr"}
    return [file for file, base, kind in of_pair if base not in bases[other[kind]]]
