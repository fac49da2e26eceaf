"""`make infer`: raw scans in, mask, map and report out, on each scan's own grid."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli, spread
from preprocessing.scans import NOTICE, SUFFIXES


def main(arguments: argparse.Namespace) -> int:
    from pipelines.detect.ahead import begin_one_scan, preparing_ahead

    here = not (arguments.executor or arguments.workers > 1 or arguments.dry_run)
    with preparing_ahead(here) as ahead:
        from pipelines.detect.ready import asked_run
        from preprocessing.tables import existing_input

        run_dir = asked_run(arguments.run, arguments.modality)
        source = existing_input(Path(arguments.input))
        if ahead:
            begin_one_scan(ahead, run_dir, source, Path(arguments.out), arguments.overwrite)
            import torch  # noqa: F401 (slow to load, while the scan is read)

            ahead.find_first_brain()

        from pipelines.export.infer import score  # slow to load, while the scan is prepared

        return score(arguments, run_dir, source, ahead)


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("infer", f"Mark what should not be there in raw scans. {NOTICE}")
    p.add_argument("--run", help="run folder of train, or the name of a ready-made run")
    p.add_argument("--modality", help="score by the ready-made run of this modality, such as t1")
    p.add_argument(
        "--input",
        required=True,
        help=f"scan, folder, BIDS folder ({', '.join(SUFFIXES.values())}), table or DICOM folder",
    )
    p.add_argument("--out", "--output", required=True, help="output folder")
    p.add_argument(
        "--point",
        help="operating point instead of the run's own: finding=0.05, quantile=0.99, conformal, "
        "share, fixed=0.3",
    )
    p.add_argument(
        "--keep-nifti",
        action="store_true",
        help="write what a DICOM series was converted to beside its mask, as <id>_scan.nii.gz",
    )
    p.add_argument(
        "--dicom",
        action="store_true",
        help="write mask, map and report of a DICOM series as DICOM too, with the patient's name",
    )
    p.add_argument(
        "--overwrite",
        action="store_true",
        help="score again what is done already, and replace what stands",
    )
    p.add_argument(
        "--refuse-unlike",
        action="store_true",
        help="do not score a scan that as a whole is unlike the run's training scans",
    )
    spread.add_arguments(p)
    p.add_argument(
        "--accelerator", "--device", default="auto", choices=["auto", "cpu", "cuda"], help="device"
    )
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
