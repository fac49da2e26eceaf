"""`python -m pipelines.mood IN OUT --task sample|pixel`: results in the form of MOOD."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import cli
from preprocessing.scans import NOTICE

if TYPE_CHECKING:
    from pipelines.detect.ahead import Ahead


def main(arguments: argparse.Namespace) -> int:
    from pipelines.detect.ahead import preparing_ahead

    with preparing_ahead(arguments.n_cpus == 1) as ahead:
        return filled(arguments, ahead)


def filled(arguments: argparse.Namespace, ahead: Ahead | None) -> int:
    """Score the scans and fill the form; `ahead` prepares them, or else this process."""
    from pipelines.detect.batch import detect_all, listed, make_job
    from pipelines.detect.ready import run_folder
    from pipelines.export.mood import (
        ap_of_form,
        check_folder,
        check_labels,
        check_names,
        check_place,
        remove_form,
        write_form,
    )
    from preprocessing.tables import existing_input

    task = arguments.task
    source = existing_input(arguments.input)
    check_folder(arguments.output, source, arguments.labels)
    if arguments.labels:
        check_labels(arguments.labels, task)
    out = cli.writable_folder(arguments.output)
    with tempfile.TemporaryDirectory(prefix="norma-mood-") as temporary:
        work = cli.writable_folder(arguments.work_dir or temporary)
        job = make_job(run_folder(arguments.run), source, work)
        with listed(source, job) as (scans, lost):
            check_names(scans, source)
            check_place(scans, out, task)
            reports = detect_all(scans, lost, job, ("", arguments.n_cpus), ahead=ahead)
        of_id = {scan.id: scan for scan in scans}
        for report in reports:
            if report.scored:
                write_form(report, of_id[report.id], work, out, job.run, task)
            elif report.id in of_id:
                remove_form(of_id[report.id], out, task)
        cli.release()  # the log in the temporary folder is closed before that is gone

    failed = sum(not report.scored for report in reports)
    print(
        f"{out}: {len(reports) - failed} scans in the form of MOOD, {failed} not scored; a scan "
        f"without a result counts as 0 there. {NOTICE}"
    )
    if arguments.labels:
        ap, count = ap_of_form(out, arguments.labels, task)
        print(f"{task} AP by the rule of MOOD, {count} labelled scans: {ap:.4f}")
    return cli.exit_code(failed, len(reports))


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("mood", f"Scores or maps of a folder of scans as MOOD wants them. {NOTICE}")
    p.add_argument("input", type=Path, help="folder of the scans, x.nii.gz")
    p.add_argument("output", type=Path, help="folder for x.nii.gz.txt (sample) or x.nii.gz (pixel)")
    p.add_argument("--run", required=True, help="run folder, or the name of a ready-made run (t1)")
    p.add_argument("--task", required=True, choices=["sample", "pixel"])
    p.add_argument(
        "--labels",
        type=Path,
        help="folder of the labels, toy_label/sample or toy_label/pixel: prints the AP",
    )
    p.add_argument(
        "-w",
        "--work-dir",
        type=Path,
        help="folder for results on the way; both tasks can share it, and a second command goes on "
        "(default: a temporary folder)",
    )
    p.add_argument("--n-cpus", type=int, default=1, help="scans at a time")
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
