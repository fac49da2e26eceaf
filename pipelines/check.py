"""`make check`: how like the training scans of a run some scans are; nothing is scored."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli


def main(arguments: argparse.Namespace) -> int:
    from pipelines.detect.batch import check_scan, listed_scans
    from pipelines.detect.ready import run_folder
    from pipelines.detect.run import load_run
    from preprocessing.tables import existing_input

    run = load_run(run_folder(arguments.run), "cpu")
    source = existing_input(Path(arguments.input))
    failed = 0
    with listed_scans(source, run.recipe) as (scans, lost):
        for scan in scans:
            lines, fault = check_scan(scan, run)
            failed += bool(fault)
            print(f"{scan.id}: {fault or 'prepared as the training scans were'}")
            for line in lines:
                print(f"  {line}")
    for name, reason in lost.items():
        print(f"{name}: {reason}")
    return cli.exit_code(failed + len(lost), len(scans) + len(lost))


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("check", "Say how like a run's training scans some scans are; score nothing.")
    p.add_argument("--run", required=True, help="run folder of train, or a ready-made run's name")
    p.add_argument("--input", required=True, help="scan, folder, table or DICOM folder")
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
