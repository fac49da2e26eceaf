"""`make evaluate`: a run against the test scans of a preprocessed cohort.

Numbers per scan and overall, and a page.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines import cli


def main(arguments: argparse.Namespace) -> int:
    from evaluation.protocol import LABELS
    from pipelines.detect.ready import run_folder
    from pipelines.detect.run import load_run
    from pipelines.pages.evaluation import evaluation_page
    from pipelines.pages.headline import plain_sentence
    from pipelines.pages.text import is_known, value_text
    from pipelines.study.evaluate import evaluate
    from pipelines.study.protocol import existing_data, protocol_for

    data = existing_data(Path(arguments.data))
    run = load_run(run_folder(arguments.run), arguments.accelerator)
    out = cli.writable_folder(arguments.out or run.folder / "evaluation" / data.name)
    protocol = protocol_for(data, arguments.protocol, arguments.overrides)
    result = evaluate(run, data, out, protocol, arguments.point, page=evaluation_page)
    if not result:
        print("error: no test scan could be evaluated.", file=sys.stderr)
        return cli.NOTHING_DONE
    print(f"operating point: {result.point.point}, {result.point.rule}")
    for key, label in LABELS.items():
        if is_known(result.summary[key]):
            print(f"{label}: {value_text(result.summary[key])}")
    print(plain_sentence(result))
    if result.point.promise:
        print(result.point.promise)
    print(f"look at {out / 'index.html'}")
    return cli.SOME_FAILED if result.failures else cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("evaluate", "Measure a run on the test scans of a preprocessed cohort.")
    p.add_argument("--run", required=True, help="run folder of train, or a ready-made run's name")
    p.add_argument("--data", required=True, help="the OUT folder of preprocess")
    p.add_argument(
        "--out", help="where the numbers and the page go (default <run>/evaluation/<data>)"
    )
    p.add_argument(
        "--point",
        help="operating point: finding, quantile, conformal, share, few-label, fixed=0.3, oracle; "
        "finding=0.05 and the like too",
    )
    p.add_argument(
        "--protocol", help="a file of configs/protocol (default volumes, or pictures for pictures)"
    )
    p.add_argument("--accelerator", default="auto", choices=["auto", "cpu", "cuda"])
    p.add_argument(
        "overrides", nargs="*", help="settings of the protocol such as by=[pathology,sex]"
    )
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
