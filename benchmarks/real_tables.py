"""Tables of the public sets behind docs/results.md: `python -m benchmarks.real_tables`.

`--data` is a folder that holds a folder per set, as preprocessing/datasets names and describes
them. A set that is absent is left out. The tables go to `--out`.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from preprocessing.datasets import ADAPTERS
from preprocessing.files import write_table
from preprocessing.scans import scan_row


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
            scans = adapter.scans(folder, arguments.out)
            write_table(arguments.out / f"{name}.tsv", [scan_row(scan) for scan in scans])
            print(f"{arguments.out / name}.tsv: {len(scans)} scans")


if __name__ == "__main__":
    main()
