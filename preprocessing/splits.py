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
    """Give every scan a split by subject where the table has none; abnormal subjects go to the test split.

    Healthy and unlabelled subjects are put in an order that depends on the seed and their names alone, then cut into
    train, val and test by `fractions`. A table that names splits for some rows only is refused.
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
    subjects = sorted(
        {s.subject for s in scans} - abnormal, key=lambda name: _digest(f"{seed}:{name}")
    )
    n_train, n_val = _counts(len(subjects), fractions)
    split = dict.fromkeys(subjects[:n_train], "train") | dict.fromkeys(
        subjects[n_train : n_train + n_val], "val"
    )
    return [replace(s, split=split.get(s.subject, "test")) for s in scans]


def check_leaks(scans: Iterable[Scan]) -> None:
    """Refuse a subject in two splits, one image in two rows, and an abnormal scan in train or val, by name.

    A further sequence may serve two scans of one subject.
    """
    scans = list(scans)
    seen_split: dict[str, str] = {}
    seen_image: dict[Path, str] = {}
    for scan in scans:
        other = seen_split.setdefault(scan.subject, scan.split)
        if other != scan.split:
            raise InputError(
                f"subject '{scan.subject}' is in two splits, '{other}' and '{scan.split}'; keep a subject in one."
            )
        image = scan.image.resolve()
        if image in seen_image:
            raise InputError(
                f"{scan.image}: listed twice, as '{seen_image[image]}' and '{scan.id}'; list a scan once."
            )
        seen_image[image] = scan.id
        if scan.label == "abnormal" and scan.split in ("train", "val"):
            raise InputError(
                f"{scan.image}: abnormal scan '{scan.id}' in split '{scan.split}'; training and thresholds "
                "take healthy scans only, move it to 'test'."
            )
    owners: dict[Path, Scan] = {}
    for scan, file in ((s, f) for s in scans for f in s.sequences.values()):
        owner = owners.setdefault(file.resolve(), scan)
        if file.resolve() in seen_image or owner.subject != scan.subject:
            name = seen_image.get(file.resolve(), owner.id)
            raise InputError(
                f"{file}: listed twice, as '{name}' and as a further sequence of '{scan.id}'; list an image once."
            )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _counts(n: int, fractions: tuple[float, float, float]) -> tuple[int, int]:
    if n < 3:
        return max(n - 1, 0) if n > 1 else 0, min(n, 1) if n > 1 else 0
    n_val = max(1, round(n * fractions[1]))
    n_test = max(1, round(n * fractions[2])) if fractions[2] > 0 else 0
    return n - n_val - n_test, n_val
