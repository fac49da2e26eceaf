"""What `make infer` does once it knows its run and its input."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli, spread
from pipelines.detect.ahead import Ahead
from pipelines.detect.batch import Options, all_reports, detect_all, listed, make_job
from pipelines.detect.table import Table
from pipelines.pages.batch import NAME, batch_page
from preprocessing.files import write_atomic
from preprocessing.scans import NOTICE


def score(arguments: argparse.Namespace, run_dir: Path, source: Path, ahead: Ahead | None) -> int:
    """Score an input by a run as the arguments ask for it; gives the exit code.

    `ahead` prepares the scans, or else this process or its workers.
    """
    out = Path(arguments.out)
    options = Options(arguments.keep_nifti, arguments.overwrite, arguments.refuse_unlike)
    job = make_job(run_dir, source, out, arguments.point, arguments.accelerator, options)
    cli.writable_folder(out)
    if ahead:
        import sklearn.covariance  # noqa: F401 (the gate needs it; the scan is being prepared now)
    spread_over = (arguments.executor, arguments.workers)
    with listed(source, job, shared=bool(arguments.executor)) as (scans, lost):
        if arguments.dry_run:
            print(spread.preview(*spread_over, len(scans)))
            return cli.OK
        tell = Table(scans).say
        reports = detect_all(scans, lost, job, spread_over, tell=tell, ahead=ahead)
        unwritten = 0
        if arguments.dicom:
            from pipelines.export.dicom import write_all  # highdicom takes a second to load

            unwritten = write_all(scans, job, *spread_over)
    write_atomic(out / NAME, batch_page(all_reports(out), out))
    failed = sum(not report.scored for report in reports)
    scored = len(reports) - failed
    print(f"{out}: {scored} scans scored, {failed} not scored; see scores.tsv and {NAME}. {NOTICE}")
    return cli.exit_code(failed, len(reports)) or (cli.SOME_FAILED if unwritten else cli.OK)
