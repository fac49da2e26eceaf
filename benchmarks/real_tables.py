"""Tables for the public sets that docs/results.md is measured on: `python -m benchmarks.real_tables --data FOLDER --out work/tables`.

FOLDER holds a folder per set, as preprocessing/datasets names and describes them; a set that is absent is left out.
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
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    data, out = Path(arguments.data), Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in ADAPTERS:
        if (data / name).is_dir():
            scans = import_module(f"preprocessing.datasets.{name}").scans(data / name, out)
            write_table(out / f"{name}.tsv", [scan_row(s) for s in scans])
            print(f"{out / name}.tsv: {len(scans)} scans")


if __name__ == "__main__":
    main()
