"""`make card`: the model card of a run, from the run and what was measured."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli


def main(arguments: argparse.Namespace) -> int:
    from pipelines.detect.ready import run_folder
    from pipelines.detect.run import load_run
    from pipelines.pages.card import write_card
    from pipelines.study.results_file import Results

    run = load_run(run_folder(arguments.run), "cpu")
    results = Results.read(Path(arguments.results)) if arguments.results else None
    evaluated = [Path(folder) for folder in arguments.evaluation] if arguments.evaluation else None
    path = write_card(run, results, arguments.model or run.config.name, evaluated, arguments.larger)
    print(f"{path}: the model card")
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("card", "Write a run's model card: data, measurements, promise, failures.")
    p.add_argument("--run", required=True, help="run folder of train, evaluated or not")
    p.add_argument("--results", help="results folder whose figures of the same settings count too")
    p.add_argument("--model", help="its name there (default the run's model)")
    p.add_argument(
        "--larger",
        action="store_true",
        help="the figures there are of the same method with more memory; the card says so",
    )
    p.add_argument(
        "--evaluation", nargs="+", help="OUT folders of evaluate (default: the run's own)"
    )
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
