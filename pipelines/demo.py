"""`make demo`: the main job on a virtual cohort, by the commands that a user runs."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time

from pipelines import cli


def step(verb: str, *arguments: object) -> int:
    """Run `python -m pipelines.<verb>` as a user would and show the line; its exit code (a code above 1 ends the demo)."""
    line = ["-m", f"pipelines.{verb}", *map(str, arguments)]
    print(f"\n$ python {shlex.join(line)}", file=sys.stderr, flush=True)
    code = subprocess.run([sys.executable, *line], check=False).returncode
    if code > cli.SOME_FAILED:
        sys.exit(code)
    return code


def main(arguments: argparse.Namespace) -> int:
    from pipelines.detect.config import load_run_config
    from preprocessing.datasets.virtual import make_cohort
    from preprocessing.files import read_table, write_table

    out = cli.writable_folder(arguments.out)
    started, workers = time.perf_counter(), min(2, os.cpu_count() or 1)
    members = load_run_config(arguments.model, arguments.overrides, arguments.preset).model.get(
        "members", []
    )
    cohort, data, run = out / "cohort" / "cohort.tsv", out / "data", out / "runs" / arguments.model
    make_cohort(cohort.parent, seed=arguments.seed)
    codes = [
        step(
            "preprocess", "--input", cohort, "--modality", "t1", "--out", data, "--workers", workers
        )
    ]
    for name in [*members, arguments.model]:  # an ensemble is made of finished runs beside it
        own = arguments.overrides if name == arguments.model else []
        codes += [
            step(
                "train",
                "--model",
                name,
                "--data",
                data,
                "--out",
                run.parent / name,
                "--preset",
                arguments.preset,
                *own,
            )
        ]
    test = out / "cohort" / "test.tsv"
    write_table(test, [row for row in read_table(cohort) if row["split"] == "test"])
    codes += [step("infer", "--run", run, "--input", test, "--out", out / "out")]
    codes += [step("evaluate", "--run", run, "--data", data)]
    print(
        f"\nmasks, maps and reports: {out / 'out'}; what preprocessing did: {data / 'quality.html'}"
    )
    print(
        f"demo done in {(time.perf_counter() - started) / 60:.1f} minutes; open {run / 'evaluation' / data.name / 'index.html'}"
    )
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
