"""Splits by subject, and the refusal of leaks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from preprocessing.labels import PATIENTS
from preprocessing.scans import LESION_FREE, InputError, Scan, file_key, safe_name


def assign_splits(
    scans: Sequence[Scan], seed: int = 0, fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
) -> list[Scan]:
    """Give every scan a split by subject, where the table has none.

    Abnormal subjects go to test, but for those whose slices without lesion are asked for. The order
    of the others depends on the seed and their names alone; it is cut into train, val and test by
    `fractions`. InputError where
    a table names splits for some rows only, calls a scan without a label a patient's, or has groups
    that leave train or val empty.
    """
    given = [s for s in scans if s.split]
    if len(given) == len(scans):
        return list(scans)
    if given:
        missing = next(s for s in scans if not s.split)
        raise InputError(
            f"{missing.image}: no split, while other rows have one; give every row a split or none."
        )

    _check_patients(scans)
    abnormal = {s.subject for s in scans if s.label == "abnormal" and not s.gives_slices}
    others = {s.subject for s in scans} - abnormal
    _check_groups([s for s in scans if s.subject in others], len(others))
    subjects = sorted(others, key=lambda name: _digest(f"{seed}:{name}"))

    n_train, n_val = _counts(len(subjects), fractions)
    split = dict.fromkeys(subjects[:n_train], "train")
    split |= dict.fromkeys(subjects[n_train : n_train + n_val], "val")
    return [replace(s, split=split.get(s.subject, "test")) for s in scans]


def _check_patients(scans: Sequence[Scan]) -> None:
    """Refuse a patient's scan that no label calls healthy or abnormal: it might be trained on."""
    unsure = next((s for s in scans if s.group.lower() in PATIENTS and not s.label), None)
    if unsure:
        raise InputError(
            f"{unsure.image}: 'group' says '{unsure.group}' and no 'label' says whether the scan "
            "is healthy or abnormal; fill the column 'label'."
        )


def _check_groups(scans: Sequence[Scan], count: int) -> None:
    """Refuse groups that put all healthy scans together, so that none is left to validate on."""
    grouped = next((s for s in scans if s.group), None)
    if grouped and count < 2 and len(scans) > 1:
        raise InputError(
            f"{grouped.image}: the column 'group' ties all {len(scans)} scans that are not "
            f"abnormal into one group, '{grouped.group}', and a group stays in one split, so train "
            "and val would be empty; group only images that belong together, or drop the column."
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _counts(n: int, fractions: tuple[float, float, float]) -> tuple[int, int]:
    """Subjects in train and in val, of n; one at least validates where there are two."""
    if n < 2:
        return 0, 0
    if n == 2:
        return 1, 1
    n_val = max(1, round(n * fractions[1]))
    n_test = max(1, round(n * fractions[2])) if fractions[2] > 0 else 0
    return n - n_val - n_test, n_val


def check_batch(scans: Iterable[Scan]) -> None:
    """Refuse by name two scans that are one image, or whose files would be, with an InputError."""
    user_of: dict[str, Scan] = {}
    id_of: dict[str, str] = {}
    for scan in scans:
        image = os.path.realpath(scan.image)
        if image in id_of:
            raise InputError(
                f"{scan.image}: listed twice, as '{id_of[image]}' and '{scan.id}'; "
                "list a scan once."
            )
        id_of[image] = scan.id
        other = user_of.setdefault(file_key(scan.id), scan)
        if other is not scan:
            raise InputError(
                f"{scan.image}: its id '{scan.id}' is that of {other.image}, so that their results "
                "would be one file; give each scan an id of its own."
            )


def check_leaks(scans: Iterable[Scan]) -> None:
    """Refuse by name what would make results better than they are, with an InputError.

    That is a subject in two splits, one image in two rows, and an abnormal scan in train or val
    whose slices without lesion nobody asked for; and what `check_batch` refuses.
    """
    scans = list(scans)
    _check_healthy_slices(scans)
    split_of: dict[str, str] = {}
    for scan in scans:
        other = split_of.setdefault(scan.subject, scan.split)
        if other != scan.split:
            kind = "group" if scan.group and scan.subject == safe_name(scan.group) else "subject"
            raise InputError(
                f"{kind} '{scan.subject}' is in two splits, '{other}' and '{scan.split}'; "
                f"keep a {kind} in one."
            )
        if scan.label == "abnormal" and scan.split in ("train", "val") and not scan.gives_slices:
            raise InputError(
                f"{scan.image}: abnormal scan '{scan.id}' in split '{scan.split}'; "
                "training and thresholds take healthy scans only, move it to 'test'."
            )
    check_batch(scans)
    _check_sequences(scans)


def _check_healthy_slices(scans: Sequence[Scan]) -> None:
    """Refuse a wish for slices without lesion that cannot be met."""
    for scan in scans:
        said = scan.extra.get("healthy_slices", "")
        if not said:
            continue
        if said != LESION_FREE:
            raise InputError(
                f"{scan.image}: healthy_slices '{said}'; expected {LESION_FREE} or nothing."
            )
        if scan.label != "abnormal" or not scan.mask:
            raise InputError(
                f"{scan.image}: healthy_slices={LESION_FREE} asks for the slices without lesion of "
                "an abnormal scan with a lesion mask; give 'mask', or leave it out."
            )
        try:
            margin = scan.margin_mm
        except ValueError:
            margin = -1.0
        if not 0 <= margin < float("inf"):
            raise InputError(
                f"{scan.image}: margin_mm '{scan.extra['margin_mm']}'; expected mm, such as 10."
            )


def _check_sequences(scans: Sequence[Scan]) -> None:
    """The same for the other sequences, which may serve several scans of one subject."""
    if not any(scan.sequences for scan in scans):
        return
    id_of = {os.path.realpath(scan.image): scan.id for scan in scans}
    first_use: dict[str, Scan] = {}
    for scan in scans:
        for path in scan.sequences.values():
            file = os.path.realpath(path)
            user = first_use.setdefault(file, scan)
            if file in id_of or user.subject != scan.subject:
                name = id_of.get(file, user.id)
                raise InputError(
                    f"{path}: listed twice, as '{name}' "
                    f"and as a further sequence of '{scan.id}'; list an image once."
                )
