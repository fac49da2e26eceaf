"""`make choose`: which run, map and score finds synthetic lesions in healthy validation scans.

No test scan is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli


def main(arguments: argparse.Namespace) -> int:
    from pipelines.study.choose import planting_of, rank, ranking_rows

    planting = planting_of(arguments.kinds, arguments.volumes, arguments.seed)
    out = Path(arguments.out) if arguments.out else None
    entries = rank(Path(arguments.data), arguments.runs, planting, out, arguments.accelerator)
    for r in ranking_rows(entries):
        print(
            f"{r['run']}: AUROC {r['auroc']} ± {r['sd']} by the score '{r['score']}', "
            f"voxel AP {r['voxel_ap']} ({r['runs']} runs)"
        )
    for entry in entries:
        best = entry["masks"][0]
        print(
            f"{entry['run']}: best masks by calibration.strength={best['strength']} "
            f"calibration.outline={best['outline']:g}: Dice {best['dice']:.3f}, "
            f"{best['found']:.0%} of the lesions found"
        )
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "choose",
        "Rank runs, and ways to score a scan, by synthetic lesions planted in healthy validation "
        "scans.",
    )
    p.add_argument(
        "--data",
        required=True,
        help="OUT folder of 'make preprocess' that the runs were trained on",
    )
    p.add_argument(
        "--runs",
        required=True,
        nargs="+",
        help="run folders; one that holds several (seeds, folds) counts as one, averaged",
    )
    p.add_argument(
        "--kinds", help="of bright, dark, blend, deform, noise, mirror, swap; default all"
    )
    p.add_argument("--volumes", help="smallest and largest lesion in ml, log-uniform; default 1,20")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--out",
        help="table (.tsv) of the ranking; a .json beside it tells more, and runs that it holds "
        "are not ranked again",
    )
    p.add_argument("--accelerator", default="auto", choices=["auto", "cpu", "cuda"])
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
