"""`make demo`: the main job on a virtual cohort, by the commands that a user runs."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time

from pipelines import cli


def step(verb: str, *overrides: str, **options: object) -> int:
    """Run `python -m pipelines.<verb>` as a user would, show the line, and return its exit code.

    A code above 1 ends the demo.
    """
    line = ["-m", f"pipelines.{verb}"]
    for name, value in options.items():
        line += [f"--{name}", str(value)]
    line += overrides
    print(f"\n$ python {shlex.join(line)}", file=sys.stderr, flush=True)
    code = subprocess.run([sys.executable, *line], check=False).returncode
    if code > cli.SOME_FAILED:
        sys.exit(code)
    return code


def main(arguments: argparse.Namespace) -> int:
    from pipelines.detect.config import load_run_config
    from preprocessing.datasets.virtual import make_cohort
    from preprocessing.files import read_table, write_table

    seed = cli.seed_of(arguments.seed)
    out = cli.writable_folder(arguments.out)
    started = time.perf_counter()
    workers = min(2, os.cpu_count() or 1)
    config = load_run_config(arguments.model, arguments.overrides, arguments.preset)
    members = config.model.get("members", [])
    cohort = out / "cohort" / "cohort.tsv"
    data = out / "data"
    run_dir = out / "runs" / arguments.model

    make_cohort(cohort.parent, seed=seed)
    codes = [step("preprocess", input=cohort, modality="t1", out=data, workers=workers)]
    for name in [*members, arguments.model]:  # an ensemble is made of finished runs beside it
        overrides = arguments.overrides if name == arguments.model else []
        options = {"data": data, "out": run_dir.parent / name, "preset": arguments.preset}
        codes.append(step("train", *overrides, model=name, **options))
    test = out / "cohort" / "test.tsv"
    write_table(test, [row for row in read_table(cohort) if row["split"] == "test"])
    codes.append(step("infer", run=run_dir, input=test, out=out / "out"))
    codes.append(step("evaluate", run=run_dir, data=data))

    minutes = (time.perf_counter() - started) / 60
    quality = data / "quality.html"
    page = run_dir / "evaluation" / data.name / "index.html"
    print(f"\nmasks, maps and reports: {out / 'out'}; what preprocessing did: {quality}")
    print(f"demo done in {minutes:.1f} minutes; open {page}")
    return max(codes)


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "demo", "The main job in minutes on a virtual cohort: preprocess, train, infer, evaluate."
    )
    p.add_argument("--out", default="work/demo", help="folder of everything the demo writes")
    p.add_argument("--seed", type=int, default=0, help="of the virtual cohort")
    p.add_argument("--model", default="ensemble", help="a file of configs")
    p.add_argument(
        "--preset",
        default="t1",
        help="a file of configs/preset; small for models that t1 does not name",
    )
    p.add_argument(
        "overrides", nargs="*", help="training settings such as stages.finetune.max_epochs=5"
    )
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
