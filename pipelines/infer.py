"""`make infer`: raw scans in, mask, map and report out, on each scan's own grid."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli, spread
from preprocessing.scans import NOTICE, SUFFIXES


def main(arguments: argparse.Namespace) -> int:
    from pipelines.detect.batch import detect_all, existing_source, listed, make_job

    source = existing_source(Path(arguments.input))
    out = Path(arguments.out)
    given = (arguments.threshold, arguments.accelerator, arguments.keep_nifti)
    job = make_job(Path(arguments.run), source, out, *given)
    cli.writable_folder(out)
    with listed(source, job, shared=bool(arguments.executor)) as (scans, lost):
        if arguments.dry_run:
            print(spread.preview(arguments.executor, arguments.workers, len(scans)))
            return cli.OK
        reports = detect_all(scans, lost, job, arguments.executor, arguments.workers)
    failed = sum(not report.scored for report in reports)
    scored = len(reports) - failed
    print(f"{out}: {scored} scans scored, {failed} not scored; see scores.tsv. {NOTICE}")
    return cli.exit_code(failed, len(reports))


def positive(text: str) -> float:
    """A threshold from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got '{text}'")
    return value


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("infer", f"Mark what should not be there in raw scans. {NOTICE}")
    p.add_argument("--run", required=True, help="run folder of train")
    p.add_argument(
        "--input",
        required=True,
        help=f"scan, folder, BIDS folder ({', '.join(SUFFIXES.values())}), table or DICOM folder",
    )
    p.add_argument("--out", required=True, help="output folder")
    p.add_argument(
        "--threshold", type=positive, help="cut maps here instead of at the run's threshold"
    )
    p.add_argument(
        "--keep-nifti",
        action="store_true",
        help="write what a DICOM series was converted to beside its mask, as <id>_scan.nii.gz",
    )
    spread.add_arguments(p)
    p.add_argument("--accelerator", default="auto", choices=["auto", "cpu", "cuda"])
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
