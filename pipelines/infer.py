"""`make infer`: raw scans in, mask, map and report out, on each scan's own grid."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli, spread
from preprocessing.scans import NOTICE, SUFFIXES, InputError


def main(arguments: argparse.Namespace) -> int:
    from pipelines.detect.batch import Options, all_reports, detect_all, listed, make_job
    from pipelines.detect.ready import ready_run, run_folder
    from pipelines.detect.table import Table
    from pipelines.pages.batch import NAME, batch_page
    from preprocessing.files import write_atomic
    from preprocessing.tables import existing_input

    if not (arguments.run or arguments.modality):
        raise InputError("give RUN=<run folder>, or MODALITY= for the ready-made run of it.")
    run_dir = run_folder(arguments.run) if arguments.run else ready_run(arguments.modality)
    source = existing_input(Path(arguments.input))
    out = Path(arguments.out)
    options = Options(arguments.keep_nifti, arguments.overwrite, arguments.refuse_unlike)
    job = make_job(run_dir, source, out, arguments.point, arguments.accelerator, options)
    cli.writable_folder(out)
    with listed(source, job, shared=bool(arguments.executor)) as (scans, lost):
        if arguments.dry_run:
            print(spread.preview(arguments.executor, arguments.workers, len(scans)))
            return cli.OK
        spread_over = (arguments.executor, arguments.workers)
        reports = detect_all(scans, lost, job, *spread_over, tell=Table(scans).say)
        unwritten = 0
        if arguments.dicom:
            from pipelines.export.dicom import write_all  # highdicom takes a second to load

            unwritten = write_all(scans, job, *spread_over)
    write_atomic(out / NAME, batch_page(all_reports(out), out))
    failed = sum(not report.scored for report in reports)
    scored = len(reports) - failed
    print(f"{out}: {scored} scans scored, {failed} not scored; see scores.tsv and {NAME}. {NOTICE}")
    return cli.exit_code(failed, len(reports)) or (cli.SOME_FAILED if unwritten else cli.OK)


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
