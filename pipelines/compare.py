"""`make compare`: several models on one cohort, over seeds or folds, in one table with intervals."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines import cli
from pipelines.config import ConfigError, RunConfig, load_run_config, read_config
from preprocessing.scans import InputError, nearest, write_atomic, write_table

if TYPE_CHECKING:
    from models.base import AnomalyModel
    from pipelines.config import Protocol

log = logging.getLogger("norma")


@dataclass(frozen=True)
class Unit:
    """One run of a comparison: a seed, or a fold of a repeat with its table of splits."""

    name: str
    seed: int
    repeat: int | None = None
    fold: int | None = None
    splits: Path | None = None


def units(protocol: Protocol, model: type[AnomalyModel], folder: Path) -> list[Unit]:
    """The runs of one model: every fold of every repeat, or every seed; one seed alone for a model that no seed changes."""
    if protocol.folds:
        folder = folder / "labelled" if model.supervised else folder
        pairs = [(r, f) for r in range(protocol.repeats) for f in range(protocol.folds)]
        return [Unit(f"repeat-{r}_fold-{f}", r, r, f, folder / f"repeat-{r}_fold-{f}.tsv") for r, f in pairs]
    return [Unit(f"seed-{s}", s) for s in range(protocol.seeds if model.stages or model.combines else 1)]


def write_folds(rows: list[dict[str, str]], protocol: Protocol, folder: Path) -> None:
    """Tables (id, split) of grouped, stratified, repeated k-fold: scikit-learn's StratifiedGroupKFold, seeded by the repeat.

    The scans of a subject (or group) stay together. In run f of k, fold f is the test; of fold f + 1 the healthy scans
    validate and the abnormal ones are the labelled split "tune"; the healthy ones of all other folds train. InputError for
    scans without a label, or fewer groups of a kind than folds. `labelled`/ holds the same folds for supervised models, which train
    and validate on the abnormal scans too.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    assert protocol.folds
    unknown = next((r for r in rows if r["label"] not in ("healthy", "abnormal")), None)
    if unknown:
        raise InputError(
            f"scan '{unknown['id']}' has no label; folds need healthy and abnormal scans, say so in the table's column 'label'."
        )
    labels, groups = [r["label"] for r in rows], [r["subject"] for r in rows]
    for label in ("healthy", "abnormal"):
        n = len({g for g, own in zip(groups, labels, strict=True) if own == label})
        if n < protocol.folds:
            raise InputError(f"{n} subjects with {label} scans cannot be cut into {protocol.folds} folds; use fewer folds.")
    for repeat in range(protocol.repeats):
        parts = StratifiedGroupKFold(protocol.folds, shuffle=True, random_state=repeat).split(rows, labels, groups)
        tests = [{rows[i]["id"] for i in test} for _, test in parts]
        for fold, test in enumerate(tests):
            nearby = tests[(fold + 1) % protocol.folds]
            table, labelled = [], []
            for row in rows:
                healthy = row["label"] == "healthy"
                if row["id"] in test:
                    split = "test"
                elif row["id"] in nearby:
                    split = "val" if healthy else "tune"
                else:
                    split = "train" if healthy else ""
                table += [{"id": row["id"], "split": split}] if split else []
                part = "test" if row["id"] in test else "val" if row["id"] in nearby else "train"
                labelled.append({"id": row["id"], "split": part})
            write_table(folder / f"repeat-{repeat}_fold-{fold}.tsv", table)
            write_table(folder / "labelled" / f"repeat-{repeat}_fold-{fold}.tsv", labelled)


def configs(models: list[str], overrides: list[str], preset: str | None) -> dict[str, RunConfig]:
    """A config per model or variant; an override "pca.model.n_components=32" is for one, "all.image_size=[64,64]" for every one.

    A variant "vae@mean" is the model `vae` with what is said of `vae` and then of "vae@mean".
    """
    parts: dict[str, list[str]] = {name: [] for name in dict.fromkeys(["all", *(kind_of(n) for n in models), *models])}
    for text in overrides:
        name, dot, rest = text.partition(".")
        if not dot or name not in parts:
            raise ConfigError(f"'{text}': expected <model>.<key>=<value>, with a model of {', '.join(parts)}{nearest(name, list(parts))}")
        parts[name].append(rest)
    own = {name: [text for part in dict.fromkeys(["all", kind_of(name), name]) for text in parts[part]] for name in models}
    return {name: load_run_config(kind_of(name), own[name], preset) for name in models}


def kind_of(name: str) -> str:
    """The model of a variant: "vae" of "vae@mean"."""
    return name.partition("@")[0]


def share_training(config: RunConfig, about: dict[str, str], folder: Path, others: Iterable[Path]) -> None:
    """Give a new run the last checkpoint of another run that was trained in the same way, whatever its map, reference or scores.

    In the same way: with the same settings of all that happens up to the weights, on the data that `about` describes. Training then
    finds every stage done.
    """
    import shutil

    from models import model_class
    from pipelines.runs import read_json

    if (folder / "config.yaml").is_file():
        return
    scoring = model_class(config.name).scoring_arguments

    def trained_by(c: RunConfig) -> tuple[Any, ...]:
        holdout = c.reference.holdout if c.reference.kind != "none" else 0
        model = {k: v for k, v in c.model.items() if k not in scoring}
        return c.name, model, c.image_size, c.patch_size, c.around, c.plane, c.stages, c.augmentation, c.decisive.loop, holdout

    for other in others:
        finished = (other / "weights.pt").is_file() and (other / "checkpoints" / "last.pt").is_file()
        if (
            finished
            and read_json(other / "run.json").get("data_digest") == about["data_digest"]
            and trained_by(read_config(RunConfig, other / "config.yaml")) == trained_by(config)
        ):
            (folder / "checkpoints").mkdir(exist_ok=True)
            for name in ("metrics.csv", "checkpoints/last.pt"):
                shutil.copyfile(other / name, folder / name)
            return


def summary_of(results: list[dict[str, Any]], protocol: Protocol) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Each figure as mean, sd and n over runs, with its bootstrap interval where it has one; and the bootstrap values."""
    from evaluation.protocol import LABELS, STATISTICS, bootstrap, mean_and_sd
    from evaluation.statistics import interval

    figures: dict[str, Any] = {}
    for key in LABELS:
        values = [r["summary"].get(key) for r in results]
        mean, sd = mean_and_sd(values)
        figures[key] = {"mean": mean, "sd": sd, "n": sum(v is not None for v in values)}
    runs, draws = [(r["scans"], r["slices"]) for r in results], {}
    for key in STATISTICS:
        if np.isfinite(figures[key]["mean"]):
            draws[key] = bootstrap(runs, key, protocol.resamples)
            figures[key]["interval"] = list(interval(draws[key]))
    return figures, draws


def differences(models: list[dict[str, Any]], draws: dict[str, dict[str, np.ndarray]], baseline: str) -> list[dict[str, Any]]:
    """Every model against the baseline, figure by figure: paired bootstrap, Holm-corrected over the models."""
    from evaluation.statistics import holm, interval, p_value

    base = next(m for m in models if m["model"] == baseline)
    found = []
    for figure in draws[baseline]:
        rows = []
        for m in models:
            if m["model"] != baseline and figure in draws[m["model"]]:
                apart = draws[m["model"]][figure] - draws[baseline][figure]
                mean = m["figures"][figure]["mean"] - base["figures"][figure]["mean"]
                rows.append(
                    {"model": m["model"], "figure": figure, "difference": mean, "interval": list(interval(apart)), "p": p_value(apart)}
                )
        for row, corrected in zip(rows, holm([r["p"] for r in rows]), strict=True):
            row["p_holm"] = corrected
        found += rows
    return found


def compare(
    data: Path,
    test: Path,
    run_configs: dict[str, RunConfig],
    protocol: Protocol,
    out: Path,
    baseline: str,
    point: str | None = None,
    accelerator: str = "auto",
    name: str | None = None,
) -> dict[str, Any]:
    """Train what is missing, evaluate all, write <name>_comparison.tsv, .json, .html and <name>_<model>.json to `out`.

    `name` is that of `test` where nothing else is said.

    Runs lie in `out`/<model>/<seed or fold>; a finished run is not trained again, an evaluation that stands is read, and variants of
    a model that differ only in what is done after training are trained once.
    """
    from models import model_class
    from pipelines.evaluate import evaluate
    from pipelines.pages import comparison_page
    from pipelines.runs import load_run, plain, versions, write_json, write_rows
    from pipelines.train import about_data, cohort_rows, train

    folds, name = out / "folds", name or test.name
    if protocol.folds:
        (folds / "labelled").mkdir(parents=True, exist_ok=True)
        write_folds(cohort_rows(data, None), protocol, folds)
    command = "python -m pipelines.compare " + shlex.join(sys.argv[1:])
    results: dict[str, list[dict[str, Any]]] = {}
    entries, draws, first_run = [], {}, None
    for model, config in run_configs.items():
        kept: list[dict[str, Any]] = []
        for unit in units(protocol, model_class(config.name), folds):
            folder = cli.writable_folder(out / model / unit.name)
            own = config.model_copy(update={"loop": config.loop.model_copy(update={"seed": unit.seed})})
            about = about_data(data, cohort_rows(data, unit.splits))
            share_training(own, about, folder, [p / unit.name for p in sorted(out.iterdir()) if kind_of(p.name) == config.name])
            train(own, data, folder, unit.splits)
            run = load_run(folder, accelerator)
            first_run = run if not kept else first_run
            result = evaluate(run, test, folder / "evaluation" / test.name, protocol, point, pictures=not kept)
            if not result["scans"]:
                raise InputError(f"{test}: no test scan could be evaluated.")
            kept.append(result | {"model": model, "unit": unit.name, "seed": unit.seed, "repeat": unit.repeat, "fold": unit.fold})
        results[model] = kept
        figures, draws[model] = summary_of(kept, protocol)
        entries.append(
            {
                "model": model,
                "figures": figures,
                "runs": [{k: r[k] for k in ("seed", "repeat", "fold")} | {"summary": r["summary"]} for r in kept],
                "train_seconds": float(np.mean([r["training"]["seconds"] for r in kept])),
                "seconds_per_scan": float(np.mean([r["seconds_per_scan"] for r in kept])),
            }
        )
        write_rows(out / f"{name}_{model}.json", results_file(kept, figures, command, protocol, versions()))
    comparison = {
        "name": name,
        "data": test.name,
        "trained_on": data.name,
        "protocol": protocol.model_dump(),
        "protocol_text": _protocol_text(data, test, protocol, point),
        "command": command,
        "versions": versions(),
        "baseline": baseline,
        "failures": sorted({f["id"] for runs in results.values() for r in runs for f in r["failures"]}),
        "models": entries,
        "differences": differences(entries, draws, baseline),
    }
    comparison = plain(comparison)
    write_json(out / f"{name}_comparison.json", comparison)
    write_table(out / f"{name}_comparison.tsv", table_rows(comparison))
    images = {model: case_images(runs[0], out / model, test) for model, runs in results.items()}
    write_atomic(out / f"{name}_comparison.html", comparison_page(comparison, results, images, first_run))
    return comparison


def results_file(
    runs: list[dict[str, Any]], figures: dict[str, Any], command: str, protocol: Protocol, made_with: dict[str, str]
) -> dict[str, Any]:
    """What is committed of one model: everything its figures are computed from, run by run and case by case.

    `scans` and `slices` are one list each, with the number of their run; `runs` holds what a run has once.
    """
    first = runs[0]
    training = ("data", "seconds", "device", "threads", "parameters", "train_scans", "val_scans", "tune_scans", "versions", "command")
    content: dict[str, Any] = {
        "model": first["model"],
        "data": first["data"],
        "trained_on": first["training"]["data"].rpartition("/")[2],
        "protocol": protocol.model_dump(),
        "command": command,
        "versions": made_with,
        "config": first["config"],
        "recipe": first["recipe"],
        "figures": figures,
        "runs": [
            {
                k: r[k]
                for k in (
                    "seed",
                    "repeat",
                    "fold",
                    "point",
                    "points",
                    "summary",
                    "classes",
                    "lesions_by_size",
                    "precision_by_size",
                    "seconds_per_scan",
                    "voxels",
                )
            }
            | {"training": {k: r["training"].get(k) for k in training}, "failures": r["failures"]}
            for r in runs
        ],
    }
    for key in ("scans", "slices"):
        content[key] = [{"run": i} | row for i, r in enumerate(runs) for row in r[key]]
    return content


def _protocol_text(data: Path, test: Path, protocol: Protocol, point: str | None) -> str:
    how = f"{protocol.repeats} x {protocol.folds} folds by subject" if protocol.folds else f"{protocol.seeds} seeds on one split by subject"
    where = f"test scans of {test.name}" if test == data else f"test scans of {test.name}, trained on {data.name}"
    return f"Protocol {protocol.name}: {how}; {where}; operating point {point or 'of each run'}."


def table_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """comparison.tsv: one row per model and figure."""
    rows = []
    for m in comparison["models"]:
        for key, f in m["figures"].items():
            if f["mean"] is not None:
                low, high = f.get("interval", (None, None))
                numbers = {"mean": f["mean"], "sd": f["sd"], "low95": low, "high95": high}
                rows.append(
                    {
                        "model": m["model"],
                        "figure": key,
                        "runs": f["n"],
                        **{k: None if v is None else f"{v:.5g}" for k, v in numbers.items()},
                    }
                )
    return rows


def case_images(result: dict[str, Any], folder: Path, test: Path) -> list[tuple[str, bytes]]:
    """The case panels that the evaluation of a model's first run drew."""
    cases = folder / result["unit"] / "evaluation" / test.name / "cases"
    return [(p.stem.partition("_")[2], p.read_bytes()) for p in sorted(cases.glob("*.png"))]


def main(arguments: argparse.Namespace) -> int:
    from pipelines.evaluate import load_for
    from pipelines.loop import TrainingError
    from pipelines.pages import COMPARED, SHORT, figure_text

    data = Path(arguments.data)
    test = Path(arguments.test or data)
    names = list(dict.fromkeys(arguments.models.split()))
    if arguments.name and Path(arguments.name).name != arguments.name:
        raise ConfigError(f"--name {arguments.name}: expected the first part of a file name, such as ct_pretraining.")
    if not names:
        raise ConfigError('MODELS is empty; name models such as MODELS="zero intensity pca atlas vae_cr".')
    settings = [f"{k}={v}" for k, v in (("seeds", arguments.seeds), ("folds", arguments.folds), ("repeats", arguments.repeats)) if v]
    protocol = load_for(test, arguments.protocol, settings)
    if protocol.folds and test != data:
        raise ConfigError("folds test on the scans they are cut from; leave TEST out.")
    baseline = arguments.baseline or ("intensity" if "intensity" in names else names[0])
    if baseline not in names:
        raise ConfigError(f"baseline '{baseline}' is not among the models {', '.join(names)}{nearest(baseline, names)}")
    run_configs = configs(names, arguments.overrides, arguments.preset)
    out = cli.writable_folder(arguments.out or Path("runs") / data.name)
    try:
        comparison = compare(data, test, run_configs, protocol, out, baseline, arguments.point, arguments.accelerator, arguments.name)
    except TrainingError as error:
        raise ConfigError(str(error)) from None
    for m in comparison["models"]:
        texts = [f"{SHORT[k]} {figure_text(m['figures'][k])}" for k in COMPARED if m["figures"][k]["mean"] is not None]
        print(f"{m['model']} ({len(m['runs'])} runs): " + "; ".join(texts))
    print(f"look at {out / (comparison['name'] + '_comparison.html')}")
    return cli.SOME_FAILED if comparison["failures"] else cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("compare", "Train what is missing, evaluate all, and compare models with intervals.")
    p.add_argument("--data", required=True, help="the OUT folder of preprocess to train on")
    p.add_argument("--test", help="another OUT folder of preprocess whose test scans are scored (default: the same)")
    p.add_argument(
        "--models", required=True, help='names in one argument: "zero intensity pca vae_cr"; variants of a model: "vae vae@mean"'
    )
    p.add_argument("--out", help="folder of the runs and of the comparison (default runs/<data>)")
    p.add_argument("--name", help="first part of the comparison's file names (default: the name of the test folder)")
    p.add_argument("--baseline", help="the model that others are tested against (default intensity, else the first)")
    p.add_argument("--protocol", help="a file of configs/protocol: volumes, pictures, kfold")
    p.add_argument("--seeds", type=int, help="runs per model (default by protocol: 5)")
    p.add_argument("--folds", type=int, help="folds by subject instead of seeds")
    p.add_argument("--repeats", type=int, help="how often the folds are drawn anew")
    p.add_argument("--point", help="operating point, as in evaluate")
    p.add_argument("--preset", help="a file of configs/preset, such as small")
    p.add_argument("--accelerator", default="auto", choices=["auto", "cpu", "cuda"])
    p.add_argument("overrides", nargs="*", help="settings by model: vae_cr.stages.finetune.max_epochs=20 all.image_size=[64,64]")
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
