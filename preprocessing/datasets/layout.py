"""Scans of a set whose files are called by a rule: grouped by name, what is missing in words."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing.files import walk
from preprocessing.scans import InputError, Scan, some

NO_MODALITY = ("mask", "brain_mask", "other")

log = logging.getLogger("norma")


@dataclass(frozen=True)
class Layout:
    """How a set calls its files.

    files: by kind of file a pattern of its way below the set's folder. Kinds are modalities, of
        which the first is the default, "mask", "brain_mask", and "other" for files that no table
        needs. The group `id` names the scan and may hold `subject`; other groups become columns.
    example: one image, for messages. label: of every scan.
    """

    title: str
    example: str
    files: Mapping[str, str]
    label: str = "abnormal"
    pathology: str = ""

    @property
    def modalities(self) -> list[str]:
        """What a table can be made of."""
        return [kind for kind in self.files if kind not in NO_MODALITY]


@dataclass
class Case:
    """The files of one scan by kind, and what their names say."""

    told: dict[str, str]
    files: dict[str, list[Path]] = field(default_factory=dict)


def listed(data: Path, layout: Layout, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """The scans of a set's folder, and by id why a scan is left out.

    `modality` names sequences such as "t1+flair"; the first becomes the image. A scan without mask
    is listed, and named in the log with the files that fit no pattern. InputError for a modality
    that the set does not have, and where no file is called as the set's are.
    """
    wanted = (modality or layout.modalities[0]).split("+")
    unknown = next((name for name in wanted if name not in layout.modalities), None)
    if unknown:
        raise InputError(
            f"{layout.title}: no modality '{unknown}'; it has {', '.join(layout.modalities)}."
        )
    cases, others = grouped(data, layout)
    if not any(set(case.files) & set(layout.modalities) for case in cases.values()):
        raise InputError(
            f"{data}: no scan of {layout.title}; expected files such as {layout.example}."
        )
    if others:
        log.info("%s: passed over %d other files: %s", data, len(others), some(others))

    found: list[Scan] = []
    lost: dict[str, str] = {}
    for name, case in cases.items():
        fault = _fault(case, wanted, layout)
        if fault:
            lost[name] = f"{name}: {fault}"
        else:
            found.append(_scan(name, case, wanted, layout))
    _say_masks(found, data, layout)
    return found, lost


def grouped(data: Path, layout: Layout) -> tuple[dict[str, Case], list[Path]]:
    """Files below a folder by the scan that they are of, and those that fit no pattern."""
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; give IN= the folder of {layout.title}.")
    # some tools write .NII.GZ
    patterns = {kind: re.compile(rule, re.IGNORECASE) for kind, rule in layout.files.items()}
    cases: dict[str, Case] = {}
    others: list[Path] = []
    paths, passed = walk(data)
    for why, places in passed.items():
        told_places = some([place.relative_to(data) for place in places])
        log.info("%s: passed over %d %s: %s", data, len(places), why, told_places)
    for path in paths:
        kind, told = _kind(path.relative_to(data).as_posix(), patterns)
        if "id" in told:
            name = told.pop("id").replace("/", "_")
            case = cases.setdefault(name, Case(told))
            case.files.setdefault(kind, []).append(path)
        elif kind != "other":
            others.append(path.relative_to(data))
    return cases, others


def _kind(way: str, patterns: Mapping[str, re.Pattern[str]]) -> tuple[str, dict[str, str]]:
    """The kind of a file and the groups of its pattern; "" and none where it fits no pattern."""
    for kind, pattern in patterns.items():
        match = pattern.fullmatch(way)
        if match and kind == "other":
            return kind, {}
        if match:
            return kind, {k: v for k, v in match.groupdict().items() if v}
    return "", {}


def _fault(case: Case, wanted: list[str], layout: Layout) -> str:
    """Why a scan cannot be listed, or ""."""
    missing = [name for name in wanted if name not in case.files]
    if missing:
        there = ", ".join(case.files)
        return f"no file of {' and '.join(missing)} (found: {there}); left out."
    for kind in (*wanted, "mask", "brain_mask"):
        files = case.files.get(kind, [])
        if len(files) > 1:
            return f"{len(files)} files are its {kind} ({some(files)}); left out."
    return ""


def _scan(name: str, case: Case, wanted: list[str], layout: Layout) -> Scan:
    """The scan of a case that has all it needs."""
    files = {kind: paths[0] for kind, paths in case.files.items()}
    return Scan(
        id=name,
        image=files[wanted[0]],
        subject=case.told.get("subject", name),
        label=layout.label,
        pathology=layout.pathology,
        mask=files.get("mask"),
        brain_mask=files.get("brain_mask"),
        extra={k: v for k, v in case.told.items() if k != "subject"},
        sequences={kind: files[kind] for kind in wanted[1:]},
    )


def _say_masks(scans: list[Scan], data: Path, layout: Layout) -> None:
    """Log which scans have no lesion mask, where the set has masks."""
    bare = [scan.id for scan in scans if not scan.mask]
    if bare and "mask" in layout.files:
        log.warning("%s: %d scans have no lesion mask: %s", data, len(bare), some(bare))
