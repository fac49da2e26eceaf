"""`make pack`: a small copy of a run for others, measured against the run itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli


def main(arguments: argparse.Namespace) -> int:
    from pipelines.cohort.cases import read_cases
    from pipelines.detect.pack import check_packed, pack
    from pipelines.detect.ready import is_place_of, register

    run_dir = Path(arguments.run)
    cases = read_cases(Path(arguments.data))[: arguments.scans]
    out = cli.writable_folder(arguments.out)
    again = bool(arguments.ready) and is_place_of(arguments.ready, out)
    pack(run_dir, out, again)
    change = check_packed(run_dir, out, cases)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: {size:.1f} MB; maps differ by {change:.3%} at most")
    if arguments.ready:
        print(f"{register(arguments.ready, out)}: names it and its digest")
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("pack", "Write a small copy of a run: half precision, compressed, measured.")
    p.add_argument("--run", required=True, help="run folder of train")
    p.add_argument("--data", required=True, help="OUT folder of preprocess to measure the maps on")
    p.add_argument("--scans", type=int, default=3, help="how many of its scans")
    p.add_argument("--out", required=True, help="folder of the small run")
    p.add_argument(
        "--ready", help="name under which Norma ships it: writes configs/ready/<name>.yaml"
    )
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
