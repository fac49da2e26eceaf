"""Tables of the public sets behind docs/results.md: `python -m benchmarks.real_tables`.

`--data` is a folder that holds a folder per set, as preprocessing/datasets names and describes
them. A set that is absent is left out. The tables go to `--out`. Of each set with enough healthy
scans there is a second table, `ready_<set>.tsv`: the splits of its ready-made run. Further
sequences of a set have tables of their own, such as `open_ms_flair.tsv`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from pipelines import cli
from preprocessing.datasets import ADAPTERS
from preprocessing.files import write_table
from preprocessing.scans import Scan, scan_row

CALIBRATE = 9  # healthy subjects
FURTHER = {"open_ms": ("flair",)}  # sequences with a table of their own, by set


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of the public sets")
    parser.add_argument("--out", required=True, type=Path, help="folder for the tables")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in ADAPTERS:
        folder = arguments.data / name
        if folder.is_dir():
            # One adapter at a time: a set that is absent asks for none of its packages.
            adapter = import_module(f"preprocessing.datasets.{name}")
            scans, _ = adapter.scans(folder, arguments.out)
            write_scans(arguments.out / f"{name}.tsv", scans)
            for modality in FURTHER.get(name, ()):
                others, _ = adapter.scans(folder, arguments.out, modality)
                write_scans(arguments.out / f"{name}_{modality}.tsv", others)
            rows = ready_splits(scans)
            if rows:
                write_table(arguments.out / f"ready_{name}.tsv", rows)
            elif len(scans) > 1 and all(scan.label == "healthy" for scan in scans):
                write_table(arguments.out / f"site_{name}.tsv", site_splits(scans))


def write_scans(path: Path, scans: Sequence[Scan]) -> None:
    """Write a table that preprocess reads, and say so."""
    write_table(path, [scan_row(scan) for scan in scans])
    print(f"{path}: {len(scans)} scans")


def ready_splits(scans: Sequence[Scan]) -> list[dict[str, str]]:
    """Splits of a ready-made run: 9 healthy subjects calibrate, all other healthy ones train.

    With nine the promise of one false finding in ten healthy scans can be kept. Abnormal scans
    test. Empty for fewer than 18 healthy subjects.
    """
    subjects = sorted({scan.subject for scan in scans if scan.label == "healthy"})
    if len(subjects) < 2 * CALIBRATE:
        return []
    drawn = set(np.random.default_rng(0).permutation(subjects)[:CALIBRATE].tolist())
    rows: list[dict[str, str]] = []
    for scan in scans:
        split = "test"
        if scan.label == "healthy":
            split = "val" if scan.subject in drawn else "train"
        rows.append({"id": scan.id, "split": split})
    return rows


def site_splits(scans: Sequence[Scan]) -> list[dict[str, str]]:
    """Splits of a few healthy scans: the last subject calibrates, the others train."""
    last = max(scan.subject for scan in scans)
    return [{"id": s.id, "split": "val" if s.subject == last else "train"} for s in scans]


if __name__ == "__main__":
    cli.leave(main)
