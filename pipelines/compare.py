"""`make compare`: several models on one cohort, over seeds or folds, with intervals."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli


def main(arguments: argparse.Namespace) -> int:
    from pipelines.pages.comparison import comparison_page
    from pipelines.pages.evaluation import evaluation_page
    from pipelines.pages.text import comparison_line
    from pipelines.study.choose import planting_of
    from pipelines.study.compare import compare, configs, question
    from pipelines.study.protocol import protocol_for
    from preprocessing.files import write_atomic

    data = Path(arguments.data)
    test = Path(arguments.test or data)
    names = list(dict.fromkeys(arguments.models.split()))
    counts = {key: getattr(arguments, key) for key in ("seeds", "folds", "repeats")}
    settings = [f"{key}={count}" for key, count in counts.items() if count is not None]
    protocol = protocol_for(test, arguments.protocol, settings)
    given = {key: getattr(arguments, key) for key in ("baseline", "name", "point", "accelerator")}
    if arguments.choose:
        given["planting"] = planting_of(arguments.kinds, arguments.volumes)
    asked = question(data, names, protocol, test=test, **given)
    run_configs = configs(names, arguments.overrides, arguments.preset)
    out = cli.writable_folder(arguments.out or Path("runs") / data.name)

    answer = compare(asked, run_configs, out, evaluation_page)
    page = comparison_page(answer.comparison, answer.results, answer.images, answer.run)
    path = out / f"{asked.name}_comparison.html"
    write_atomic(path, page)
    for entry in answer.comparison["models"]:
        print(comparison_line(entry))
    print(f"look at {path}")
    return cli.SOME_FAILED if answer.comparison["failures"] else cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "compare", "Train what is missing, evaluate all, and compare models with intervals."
    )
    p.add_argument("--data", required=True, help="the OUT folder of preprocess to train on")
    p.add_argument(
        "--test",
        help="another OUT folder of preprocess whose test scans are scored (default: the same)",
    )
    p.add_argument(
        "--models",
        required=True,
        help='names in one argument: "zero intensity pca vae_cr"; variants of a model: '
        '"vae vae@mean"',
    )
    p.add_argument("--out", help="folder of the runs and of the comparison (default runs/<data>)")
    p.add_argument(
        "--name",
        help="first part of the comparison's file names (default: the name of the test folder)",
    )
    p.add_argument(
        "--baseline",
        help="the model that others are tested against (default intensity, else the first)",
    )
    p.add_argument("--protocol", help="a file of configs/protocol: volumes, pictures, kfold")
    p.add_argument("--seeds", type=int, help="runs per model (default by protocol: 5)")
    p.add_argument("--folds", type=int, help="folds by subject instead of seeds")
    p.add_argument("--repeats", type=int, help="how often the folds are drawn anew")
    p.add_argument("--point", help="operating point, as in evaluate")
    p.add_argument(
        "--choose",
        action="store_true",
        help="add the row 'chosen': in each run the model that finds planted lesions best, by its "
        "validation scans alone",
    )
    p.add_argument("--kinds", help="planted lesions of --choose, as in choose")
    p.add_argument("--volumes", help="their volumes in ml, as in choose")
    p.add_argument("--preset", help="a file of configs/preset, such as small")
    p.add_argument("--accelerator", default="auto", choices=["auto", "cpu", "cuda"])
    p.add_argument(
        "overrides",
        nargs="*",
        help="settings by model: vae_cr.stages.finetune.max_epochs=20 all.image_size=[64,64]",
    )
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
