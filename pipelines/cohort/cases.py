"""Scans of a preprocessed cohort: rows of its scans.tsv, their voxels and their truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.files import read_table
from preprocessing.images import is_picture, load_array, read_image
from preprocessing.scans import SPLITS, InputError, ScanError


def load_channels(data: Path, row: dict[str, str], side: dict[str, Any]) -> np.ndarray:
    """A preprocessed scan (row of scans.tsv, sidecar) as float32 (X, Y, Z), or (X, Y, Z, C) where it has several channels."""
    files = [row["preproc"], *(f["image"] for f in side.get("further", []))]
    channels = [load_array(data / f).astype(np.float32) for f in files]
    return channels[0] if len(channels) == 1 else np.stack(channels, -1)


def read_truth(
    row: dict[str, str], shape: tuple[int, ...], affine: np.ndarray
) -> np.ndarray | None:
    """Lesion labels on the scan's own grid of `shape` and `affine`, int (0 is none); all 0 for a healthy scan, None where nobody knows."""
    if row["mask"]:
        image = read_image(Path(row["mask"]))
        if image.shape != shape or not np.allclose(image.affine, affine, atol=1e-2):
            raise ScanError(
                f"{row['mask']}: shape {image.shape} or affine differs from the scan's, {shape}; the truth must lie on its grid."
            )
        data = np.asarray(image.dataobj)
        return (
            (data > 0).astype(np.int32)
            if is_picture(Path(row["mask"]))
            else np.round(data).astype(np.int32)
        )
    return np.zeros(shape, np.int32) if row["label"] == "healthy" else None


def cohort_rows(data: Path, splits: Path | None = None) -> list[dict[str, str]]:
    """Rows of the scans.tsv that `make preprocess` wrote, with the splits of another table (id, split) where one is given.

    Scans that the table leaves out are left out. InputError where a file or a scan is missing, a subject or one image
    under two names stands in two splits.
    """
    table = data / "scans.tsv"
    if not table.is_file():
        raise InputError(
            f"{table}: no such file; run 'make preprocess' first and give its OUT as DATA."
        )
    rows = read_table(table)
    if splits:
        given = {r.get("id", ""): r.get("split", "") for r in read_table(splits)}
        unknown = set(given) - {r["id"] for r in rows}
        wrong = set(given.values()) - set(SPLITS)
        if unknown or wrong:
            what = (
                f"scan '{min(unknown)}' is not in {table}"
                if unknown
                else f"split '{min(wrong)}', expected {', '.join(SPLITS)}"
            )
            raise InputError(f"{splits}: {what}.")
        rows = [r | {"split": given[r["id"]]} for r in rows if r["id"] in given]
    for key, what in (("subject", "subject"), ("digest", "the same image, as")):
        first: dict[str, dict[str, str]] = {}
        for row in rows:
            other = first.setdefault(row.get(key) or row["id"], row)
            if other["split"] != row["split"]:
                raise InputError(
                    f"{splits or table}: {what} '{row[key] if key == 'subject' else other['id']}' is in two splits, '{other['split']}' and "
                    f"'{row['split']}' (scan '{row['id']}'); keep it in one."
                )
    return rows


def learning_rows(
    rows: list[dict[str, str]], split: str, data: Path, supervised: bool = False
) -> list[dict[str, str]]:
    """The rows of one split, all of them healthy or unlabelled; an abnormal one is refused by name.

    A supervised model needs both kinds instead.
    """
    rows = [r for r in rows if r["split"] == split]
    abnormal = next((r for r in rows if r["label"] == "abnormal"), None)
    if supervised and (not abnormal or not any(r["label"] == "healthy" for r in rows)):
        raise InputError(
            f"{data / 'scans.tsv'}: a supervised model needs healthy and abnormal scans in split '{split}'; give a table with --splits, or "
            "compare with PROTOCOL=kfold."
        )
    if abnormal and not supervised:
        raise InputError(
            f"{data / 'scans.tsv'}: abnormal scan '{abnormal['id']}' in split '{split}'; Norma learns from healthy scans alone."
        )
    if not rows:
        raise InputError(
            f"{data / 'scans.tsv'}: no scans in split '{split}'; training needs healthy scans in 'train' and 'val'."
        )
    return rows
