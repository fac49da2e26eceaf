"""`make stress`: healthy test scans under graded shifts, one page of what is taken for a lesion."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines import cli
from preprocessing.scans import InputError


def main(arguments: argparse.Namespace) -> int:
    from evaluation.shifts import shifts_of
    from pipelines.detect.ready import run_folder
    from pipelines.detect.run import load_run
    from pipelines.pages.stress import stress_page
    from pipelines.study.protocol import existing_data
    from pipelines.study.stress import (
        Asked,
        demand_shifts,
        healthy_test_cases,
        stress,
        summary,
    )
    from preprocessing.files import write_atomic, write_json

    if arguments.scans is not None and arguments.scans < 1:
        raise InputError(f"--scans: {arguments.scans}; expected at least one scan.")
    loaded = [load_run(run_folder(name), arguments.accelerator) for name in arguments.run]
    runs = {run.folder.name: run for run in loaded}
    if len(runs) < len(loaded):
        raise InputError("two runs are called the same; give each folder another name.")
    if len({run.recipe.model_dump_json() for run in loaded}) > 1:
        raise InputError("the runs prepare scans in different ways; stress them one by one.")
    modality = loaded[0].recipe.modality
    named = list(dict.fromkeys(arguments.shifts.split(","))) if arguments.shifts else []
    demand_shifts(named, modality)
    if loaded[0].recipe.channels > 1:
        raise InputError("pictures of several planes cannot be stressed, only grey ones.")
    data = existing_data(Path(arguments.data))
    sites = {f"scans of {Path(d).name}": existing_data(Path(d)) for d in arguments.site}
    if len(sites) < len(arguments.site):
        raise InputError("two sites are called the same; give each folder another name.")
    out = cli.writable_folder(arguments.out or loaded[0].folder / "stress" / data.name)
    asked = Asked(
        runs,
        healthy_test_cases(loaded, data),
        named or shifts_of(modality),
        {name: healthy_test_cases(loaded, site) for name, site in sites.items()},
        arguments.seed,
        arguments.scans,
    )

    rows = stress(asked, out)
    table = summary(rows)
    write_json(out / "summary.json", table)
    write_atomic(out / "index.html", stress_page(asked, rows, table))
    print(f"look at {out / 'index.html'}")
    if all(row.score is None for row in rows):
        print(f"error: no scan could be scored: {rows[0].reason}", file=sys.stderr)
        return cli.NOTHING_DONE
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "stress", "What a run takes for a lesion in healthy scans of another scanner or quality."
    )
    p.add_argument("--run", required=True, nargs="+", help="run folders, or ready-made runs' names")
    p.add_argument("--data", required=True, help="the OUT folder of preprocess")
    p.add_argument("--site", nargs="*", default=[], help="further cohorts, of other scanners")
    p.add_argument("--out", help="folder of the page (default <run>/stress/<data>)")
    p.add_argument(
        "--shifts",
        help='names between commas, such as "noise,blur"; all that change a scan by default',
    )
    p.add_argument("--scans", type=int, help="at most so many healthy test scans")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--accelerator", default="auto", choices=["auto", "cpu", "cuda"])
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
