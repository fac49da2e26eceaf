"""`make table`: the scans of a public data set's folder as the table that preprocess reads."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from pipelines import cli
from preprocessing.datasets import READERS
from preprocessing.files import nearest, write_table
from preprocessing.scans import InputError, Scan, scan_row


def main(arguments: argparse.Namespace) -> int:
    name = arguments.dataset
    if name not in READERS:
        raise InputError(
            f"no reader of DATASET '{name}'; there is one of {', '.join(sorted(READERS))}"
            f"{nearest(name, READERS) or '.'} A BIDS or other folder needs no table."
        )
    out = Path(arguments.out)
    if out.suffix != ".tsv" or out.is_dir():
        raise InputError(f"{out}: give OUT=<table>.tsv.")
    out.parent.mkdir(parents=True, exist_ok=True)

    # One reader at a time: the others' packages are not loaded.
    reader = import_module(f"preprocessing.datasets.{name}")
    modality = arguments.modality or ""
    only = getattr(reader, "MODALITY", modality)
    if modality and modality != only:
        raise InputError(f"{name}: no modality '{modality}'; it has {only}.")
    scans, lost = reader.scans(Path(arguments.input), out.parent, modality)
    for reason in lost.values():
        cli.log.warning("left out: %s", reason)
    if scans:
        write_table(out, [scan_row(scan) for scan in scans])
    print(f"{out}: {_counted(scans)}, {len(lost)} left out")
    return cli.exit_code(len(lost), len(scans) + len(lost))


def _counted(scans: list[Scan]) -> str:
    """How many scans there are, and of which label."""
    labels = [scan.label for scan in scans]
    masks = sum(scan.mask is not None for scan in scans)
    healthy = labels.count("healthy")
    abnormal = labels.count("abnormal")
    labelled = f"{healthy} healthy, {abnormal} abnormal, {masks} with a lesion mask"
    return f"{len(scans)} scans ({labelled})"


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("table", "List the scans of a public data set's folder in a table.")
    p.add_argument("--dataset", required=True, help=f"one of {', '.join(sorted(READERS))}")
    p.add_argument("--input", required=True, help="the set's folder, as it was unpacked")
    p.add_argument("--out", required=True, help="the table, <name>.tsv, for make preprocess IN=")
    p.add_argument("--modality", help="of a set with several sequences, such as t1 or t1+flair")
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
