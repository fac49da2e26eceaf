"""`make train`: a preprocessed cohort in, a run folder out."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipelines import cli


def main(arguments: argparse.Namespace) -> int:
    from pipelines.cohort.cases import read_cases
    from pipelines.cohort.demo import demo_data
    from pipelines.detect.config import load_run_config
    from pipelines.pages.quality import quality_page
    from pipelines.training.folds import train_run

    preset = arguments.preset or (None if arguments.data else "small")
    config = load_run_config(arguments.model, arguments.overrides, preset)
    data = Path(arguments.data or demo_data(quality_page))
    splits = Path(arguments.splits) if arguments.splits else None
    read_cases(data, splits)
    default = Path("runs") / (data.name if arguments.data else "demo") / arguments.model
    run_dir = cli.writable_folder(arguments.out or default)
    train_run(config, data, run_dir, splits)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(
            f"{run_dir}: trained; score scans with "
            f"'make infer RUN={run_dir} IN=<scan or folder> OUT=<folder>'"
        )
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("train", "Train a detector on the healthy scans of a preprocessed cohort.")
    p.add_argument("--model", required=True, help="a file of configs, such as vae_cr")
    p.add_argument(
        "--data",
        help="the OUT folder of preprocess; without it the demo's cohort, and the small preset",
    )
    p.add_argument(
        "--out",
        help="run folder (default runs/<data>/<model>); an interrupted run goes on where it "
        "stopped",
    )
    p.add_argument(
        "--splits", help="table (id, split) that stands in for the splits of the data's own table"
    )
    p.add_argument(
        "--preset", help="a file of configs/preset laid over the model's config, such as small"
    )
    p.add_argument(
        "overrides", nargs="*", help="settings such as stages.finetune.max_epochs=50 loop.seed=1"
    )
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
