"""`make preprocess`: scans in, preprocessed volumes, the slice store and quality.html out."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli, spread
from pipelines.config import DEMO, ConfigError, load_recipe


def main(arguments: argparse.Namespace) -> int:
    from pipelines.cohort.demo import demo_table
    from pipelines.cohort.preprocess import Workers, list_input, preprocess_cohort
    from pipelines.pages.quality import quality_page
    from preprocessing import register
    from preprocessing.tables import existing_input

    if arguments.input and not arguments.modality:
        raise ConfigError(
            "--modality is missing: say ct, t1, t2, flair, picture, fundus or chest_ct."
        )
    modality = arguments.modality or "t1"  # of the demo cohort
    seed = cli.seed_of(arguments.seed)
    recipe = load_recipe(modality, arguments.overrides, arguments.template)
    if recipe.template:
        register.load_atlas(recipe.template, recipe.grid)

    source = existing_input(Path(arguments.input or demo_table(seed, modality)))
    own_folder = arguments.input or modality != "t1"
    default = Path("work") / modality if own_folder else DEMO / "data"
    out = cli.writable_folder(arguments.out or default)
    given = list_input(source, recipe.name, out, seed, recipe.limits.max_gb)
    if arguments.dry_run:
        print(spread.preview(arguments.executor, arguments.workers, len(given.scans)))
        return cli.OK
    workers = Workers(arguments.executor, arguments.workers)
    results = preprocess_cohort(given, recipe, out, arguments.format, workers, quality_page)
    failed = sum(failure is not None for _, failure in results)
    good = len(results) - failed
    print(f"{out}: {good} scans preprocessed, {failed} left out; look at {out / 'quality.html'}")
    return cli.exit_code(failed, len(results))


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "preprocess",
        "Bring scans to atlas space: 1 mm, brain only, rigid, [0, 1]; write the slice store.",
    )
    p.add_argument(
        "--input",
        help="BIDS folder, folder of scans or DICOM, table, datalist; without it virtual scans "
        "(t1, chest_ct, fundus)",
    )
    p.add_argument(
        "--modality",
        help="a file of configs/modality: ct, t1, t2, flair, picture, fundus, chest_ct; "
        "several sequences: t1+flair",
    )
    p.add_argument(
        "--out",
        help="output folder (default work/<modality>); a second run skips what is unchanged",
    )
    p.add_argument("--template", help="skull-stripped NIfTI to use as atlas instead of ICBM152")
    p.add_argument(
        "--format",
        action="append",
        default=[],
        choices=["nifti"],
        help="also write one NIfTI per slice",
    )
    spread.add_arguments(p)
    p.add_argument("--seed", type=int, default=0, help="for the splits, where the input has none")
    p.add_argument("overrides", nargs="*", help="recipe settings such as brain=none or n4=true")
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
