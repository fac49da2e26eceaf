"""`python -m pipelines.bids_app BIDS_DIR OUT participant|group`: Norma as a BIDS App."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import cli
from preprocessing.scans import NOTICE

if TYPE_CHECKING:
    from pipelines.detect.ahead import Ahead


def main(arguments: argparse.Namespace) -> int:
    from pipelines.detect.ahead import preparing_ahead

    if arguments.level == "group":
        return group(arguments)
    with preparing_ahead(arguments.n_cpus == 1) as ahead:
        return participants(arguments, ahead)


def group(arguments: argparse.Namespace) -> int:
    """One table of all reports that were written before."""
    from pipelines.export.bids import group_table
    from preprocessing.tables import existing_input

    existing_input(arguments.bids_dir)
    out = cli.writable_folder(arguments.output_dir)
    reports, damaged = group_table(out)
    print(f"{out / 'scores.tsv'}: {len(reports)} scans, {damaged} left out. {NOTICE}")
    return cli.exit_code(damaged, len(reports) + damaged)


def participants(arguments: argparse.Namespace, ahead: Ahead | None) -> int:
    """Score the scans of the participants; `ahead` prepares them, or else this process."""
    from pipelines.detect.batch import detect_all, listed, loaded_run, make_job
    from pipelines.detect.ready import asked_run
    from pipelines.export.bids import (
        WORK,
        of_people,
        remove_scan,
        validate,
        write_dataset,
        write_scan,
    )
    from preprocessing.tables import existing_input

    source = existing_input(arguments.bids_dir)
    out = cli.writable_folder(arguments.output_dir)
    if not arguments.skip_bids_validation:
        validate(source)
    run_dir = asked_run(arguments.run, arguments.modality)
    # a person's T1w and FLAIR have one id
    modality = loaded_run(run_dir, "auto").recipe.name
    work = cli.writable_folder((arguments.work_dir or out / WORK) / modality)
    job = make_job(run_dir, source, work)
    write_dataset(source, out)
    with listed(source, job) as (scans, lost):
        chosen = of_people(scans, arguments.participant_label, arguments.session_label)
        reports = detect_all(chosen, lost, job, ("", arguments.n_cpus), ahead=ahead)
    for report in reports:
        if report.scored:
            write_scan(report, work, out)
        elif report.id not in lost:
            remove_scan(report, out)
    failed = sum(not report.scored for report in reports)
    print(f"{out}: {len(reports) - failed} scans scored, {failed} not scored. {NOTICE}")
    return cli.exit_code(failed, len(reports))


def build_parser() -> argparse.ArgumentParser:
    from pipelines.versions import __version__

    p = cli.parser("bids_app", f"Norma as a BIDS App: masks as BIDS derivatives. {NOTICE}")
    p.add_argument("bids_dir", type=Path, help="BIDS dataset")
    p.add_argument("output_dir", type=Path, help="folder of the derivatives")
    p.add_argument("level", choices=["participant", "group"], help="score scans, or one table")
    p.add_argument("--participant-label", "--participant_label", nargs="+", default=[])
    p.add_argument("--session-label", "--session_label", nargs="+", default=[])
    p.add_argument("--modality", default="t1", help="of the ready-made run to use (default: t1)")
    p.add_argument("--run", help="a run folder instead")
    p.add_argument("-w", "--work-dir", type=Path, help="for results on the way (default: OUT/work)")
    p.add_argument("--n-cpus", "--n_cpus", type=int, default=1, help="scans at a time")
    p.add_argument("--skip-bids-validation", action="store_true")
    p.add_argument("--version", action="version", version=f"Norma {__version__}")
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
