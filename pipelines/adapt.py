"""`make adapt`: a run brought to one's own scanner by healthy scans of it, as a child run.

`make calibrate` is HOW=calibration.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import cli

if TYPE_CHECKING:
    from pipelines.detect.run import Run

HOW = ("calibration", "harmonise", "adabn", "finetune", "fada")


def main(arguments: argparse.Namespace) -> int:
    from pipelines.cohort.cases import read_cases
    from pipelines.cohort.preprocess import earlier_rows, list_input, preprocess_cohort
    from pipelines.detect.ready import run_folder
    from pipelines.detect.run import load_run
    from pipelines.pages.quality import quality_page
    from pipelines.training.adapt import adapt, demand_way
    from pipelines.training.calibrate import demand_child_place, demand_enough
    from preprocessing.tables import existing_input

    run = load_run(run_folder(arguments.run), arguments.accelerator)
    learned = Path(arguments.source) if arguments.source else None
    demand_way(run, arguments.how, learned)
    source = existing_input(Path(arguments.input))
    calibrates = arguments.how == "calibration"
    demand_child_place(run, Path(arguments.out), None if calibrates else arguments.how)
    out = cli.writable_folder(arguments.out)
    data = cli.writable_folder(out / "data")
    given = list_input(source, run.recipe.name, data, 0, run.recipe.limits.max_gb)
    if calibrates:  # before minutes of preparing; scans of earlier commands in OUT count too
        demand_enough(len(given.scans) + len(earlier_rows(data, given.scans)))
    results = preprocess_cohort(given, run.recipe, data, page=quality_page)
    failed = sum(failure is not None for _, failure in results)

    child = adapt(run, read_cases(data), out, arguments.how, learned)
    before = run.point()
    after = child.point()
    print(f"outline {before.voxel:.4g} -> {after.voxel:.4g}")
    if before.component is not None and after.component is not None:
        print(f"level of a component {before.component:.4g} -> {after.component:.4g}")
    print(f"{out}: {made(child, arguments.how)}, {failed} left out. {after.promise}")
    return cli.SOME_FAILED if failed else cli.OK


def made(child: Run, how: str) -> str:
    """How a child run was made, in words."""
    calibrated = len(child.history["calibrated_on"])
    if how == "calibration":
        return f"calibrated on {calibrated} healthy scans"
    adapted = len(child.history["adapted"]["scans"])
    text = f"adapted by {how} on {adapted} healthy scans"
    return f"{text}, calibrated on {calibrated}" if calibrated else f"{text}, not calibrated"


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("adapt", "Adapt a run to healthy scans of your own scanner.")
    p.add_argument("--run", required=True, help="run folder of train, or a ready-made run's name")
    p.add_argument("--input", required=True, help="healthy scans, 5 to calibrate: folder or table")
    p.add_argument("--out", required=True, help="folder of the new run, which names its parent")
    p.add_argument("--how", default="calibration", choices=HOW, help="what the scans change")
    p.add_argument("--source", help="with --how fada: OUT of preprocess that the run learned from")
    p.add_argument("--accelerator", "--device", default="auto", choices=["auto", "cpu", "cuda"])
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
