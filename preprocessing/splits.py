"""Splits by subject, and the refusal of leaks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from preprocessing.scans import InputError, Scan


def assign_splits(
    scans: Sequence[Scan], seed: int = 0, fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
) -> list[Scan]:
    """Give every scan a split by subject, where the table has none.

    Abnormal subjects go to test. The order of the others, healthy or unlabelled, depends on the
    seed and their names alone; it is cut into train, val and test by `fractions`. InputError where
    a table names splits for some rows only.
    """
    given = [s for s in scans if s.split]
    if len(given) == len(scans):
        return list(scans)
    if given:
        missing = next(s for s in scans if not s.split)
        raise InputError(
            f"{missing.image}: no split, while other rows have one; give every row a split or none."
        )

    abnormal = {s.subject for s in scans if s.label == "abnormal"}
    others = {s.subject for s in scans} - abnormal
    subjects = sorted(others, key=lambda name: _digest(f"{seed}:{name}"))

    n_train, n_val = _counts(len(subjects), fractions)
    split = dict.fromkeys(subjects[:n_train], "train")
    split |= dict.fromkeys(subjects[n_train : n_train + n_val], "val")
    return [replace(s, split=split.get(s.subject, "test")) for s in scans]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _counts(n: int, fractions: tuple[float, float, float]) -> tuple[int, int]:
    """Subjects in train and in val, of n; one at least validates where there are two."""
    if n < 2:
        return 0, 0
    if n == 2:
        return 1, 1
    n_val = max(1, round(n * fractions[1]))
    n_test = max(1, round(n * fractions[2])) if fractions[2] > 0 else 0
    return n - n_val - n_test, n_val


def check_leaks(scans: Iterable[Scan]) -> None:
    """Refuse by name what would make results better than they are, with an InputError.

    That is a subject in two splits, one image in two rows, and an abnormal scan in train or val.
    """
    scans = list(scans)
    split_of: dict[str, str] = {}
    id_of: dict[Path, str] = {}
    for scan in scans:
        other = split_of.setdefault(scan.subject, scan.split)
        if other != scan.split:
            raise InputError(
                f"subject '{scan.subject}' is in two splits, '{other}' and '{scan.split}'; "
                "keep a subject in one."
            )
        image = scan.image.resolve()
        if image in id_of:
            raise InputError(
                f"{scan.image}: listed twice, as '{id_of[image]}' and '{scan.id}'; "
                "list a scan once."
            )
        id_of[image] = scan.id
        if scan.label == "abnormal" and scan.split in ("train", "val"):
            raise InputError(
                f"{scan.image}: abnormal scan '{scan.id}' in split '{scan.split}'; "
                "training and thresholds take healthy scans only, move it to 'test'."
            )
    _check_sequences(scans, id_of)


def _check_sequences(scans: Sequence[Scan], id_of: dict[Path, str]) -> None:
    """The same for the other sequences, which may serve several scans of one subject."""
    first_use: dict[Path, Scan] = {}
    for scan in scans:
        for file in scan.sequences.values():
            user = first_use.setdefault(file.resolve(), scan)
            if file.resolve() in id_of or user.subject != scan.subject:
                name = id_of.get(file.resolve(), user.id)
                raise InputError(
                    f"{file}: listed twice, as '{name}' "
                    f"and as a further sequence of '{scan.id}'; list an image once."
                )
