"""`make calibrate`: a run's thresholds and healthy reference anew, from one's own healthy scans."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli


def main(arguments: argparse.Namespace) -> int:
    from pipelines.cohort.cases import read_cases
    from pipelines.cohort.preprocess import existing_input, list_input, preprocess_cohort
    from pipelines.detect.ready import run_folder
    from pipelines.detect.run import load_run
    from pipelines.pages.quality import quality_page
    from pipelines.training.calibrate import child_run

    run = load_run(run_folder(arguments.run), arguments.accelerator)
    source = existing_input(Path(arguments.input))
    out = cli.writable_folder(arguments.out)
    data = cli.writable_folder(out / "data")
    given = list_input(source, run.recipe.name, data, 0, run.recipe.limits.max_gb)
    results = preprocess_cohort(given, run.recipe, data, page=quality_page)
    failed = sum(failure is not None for _, failure in results)
    cases = read_cases(data)

    before = run.point()
    child = child_run(run, cases, out)
    after = child.point()
    print(f"outline {before.voxel:.4g} -> {after.voxel:.4g}")
    if before.component is not None and after.component is not None:
        print(f"level of a component {before.component:.4g} -> {after.component:.4g}")
    print(f"{out}: calibrated on {len(cases)} healthy scans, {failed} left out. {after.promise}")
    return cli.SOME_FAILED if failed else cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("calibrate", "Calibrate a run on healthy scans of your own scanner.")
    p.add_argument("--run", required=True, help="run folder of train, or a ready-made run's name")
    p.add_argument("--input", required=True, help="5 or more healthy scans: folder or table")
    p.add_argument("--out", required=True, help="folder of the new run, which names its parent")
    p.add_argument("--accelerator", "--device", default="auto", choices=["auto", "cpu", "cuda"])
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
