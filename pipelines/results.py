"""`make results`: docs/results.md, a page per data set, docs/performance.md, from committed files.

docs/results holds those files; pipelines/pages/results.py says what each is and who writes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli


def main(arguments: argparse.Namespace) -> int:
    from pipelines.config import ROOT
    from pipelines.pages.performance import PERFORMANCE, performance_figure, performance_page
    from pipelines.pages.results import PAGE, add, all_pages
    from pipelines.pages.schemas import write_schemas
    from preprocessing.files import write_atomic

    for folder in arguments.add:
        add(Path(folder))
    for path, text in all_pages().items():
        write_atomic(path, text)
    if PERFORMANCE.is_file():
        write_atomic(ROOT / "docs" / "performance.md", performance_page())
        write_atomic(ROOT / "docs" / "images" / "performance.png", performance_figure())
    write_schemas()
    print(PAGE)
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("results", "Write docs/results.md and its pages from the files in docs/results.")
    p.add_argument(
        "--add",
        action="append",
        default=[],
        help="first copy the results in this OUT folder of compare or preprocess; repeatable",
    )
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
