"""`make synthesise`: plant synthetic lesions in the healthy scans of a preprocessed cohort."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli


def main(arguments: argparse.Namespace) -> int:
    from pipelines.config import read_recipe
    from pipelines.study.synthesise import healthy_cases, make_plan, synthesise, without_blend
    from preprocessing.scans import InputError

    data = Path(arguments.data)
    given = (arguments.kinds, arguments.per_scan, arguments.volumes, arguments.masks)
    plan = make_plan(*given, arguments.seed)
    cases = healthy_cases(data, arguments.every)
    plan = without_blend(plan, cases)
    recipe = read_recipe(data)
    modality = recipe.modality
    if len(recipe.suffixes) > 1:
        raise InputError(
            f"{data}: its scans have several channels, and a lesion is planted in one image; "
            f"preprocess MODALITY={modality} alone."
        )
    out = cli.writable_folder(arguments.out)
    table, failures = synthesise(data, cases, out, plan)
    planted = sum(row["label"] == "abnormal" for row in table)
    if not table:
        print(f"{out}: nothing was written; {out / 'failures.tsv'} says why")
        return cli.NOTHING_DONE
    print(
        f"{out / 'cohort.tsv'}: {len(table) - planted} healthy scans and {planted} synthetic "
        f"copies, {len(failures)} scans left out; next: make preprocess "
        f"IN={out / 'cohort.tsv'} MODALITY={modality} OUT={out / 'preprocessed'}"
    )
    return cli.SOME_FAILED if failures else cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "synthesise", "Plant synthetic lesions in the healthy test scans of a preprocessed cohort."
    )
    p.add_argument("--data", required=True, help="OUT folder of 'make preprocess'")
    p.add_argument("--out", required=True, help="folder of the new cohort")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--per-scan", type=int, default=3, help="synthetic copies of each scan, one lesion each"
    )
    p.add_argument(
        "--every",
        action="store_true",
        help="in every healthy scan, for a comparison by folds (PROTOCOL=kfold)",
    )
    p.add_argument(
        "--kinds",
        help="of bright, dark, blend, deform, noise, mirror, swap, in the order to use; "
        "default all",
    )
    p.add_argument("--volumes", help="smallest and largest volume in ml, log-uniform; default 1,20")
    p.add_argument(
        "--masks", help="folder of lesion masks (NIfTI) whose largest lesions give the shapes"
    )
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
