"""`make results`: docs/results.md from the files in docs/results, and from nothing else.

docs/results/<data>/<model>.json is the file that `compare` writes per model (`<data>_<model>.json`), comparison.json its
comparison, preprocess.json the file that `preprocess` writes into its OUT: copies that `--add FOLDER` makes, no hand in between.
docs/results/choose_*.json are files of `make choose`. docs/performance.md and its plots come from docs/results/performance.json, the
file of `make benchmark`. docs/results/choose.yaml says which model of which comparison stands for which kind of scan, lesion and budget;
its figures come from those files too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli


def main(arguments: argparse.Namespace) -> int:
    from pipelines.config import ROOT
    from pipelines.pages.performance import PERFORMANCE, performance_figure, performance_page
    from pipelines.pages.results import PAGE, add, results_page
    from preprocessing.files import write_atomic

    for folder in arguments.add:
        add(Path(folder))
    write_atomic(PAGE, results_page())
    if PERFORMANCE.is_file():
        write_atomic(ROOT / "docs" / "performance.md", performance_page())
        write_atomic(ROOT / "docs" / "images" / "performance.png", performance_figure())
    print(PAGE)
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("results", "Write docs/results.md from the files in docs/results.")
    p.add_argument(
        "--add",
        action="append",
        default=[],
        help="first copy the results in this OUT folder of compare or preprocess; repeatable",
    )
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
