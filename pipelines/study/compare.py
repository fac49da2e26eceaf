"""Several models on one cohort, over seeds or folds, with intervals."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.protocol import LABELS, STATISTICS, bootstrap, mean_and_sd
from evaluation.statistics import holm, interval, p_value
from models import model_class
from pipelines import cli
from pipelines.cohort.cases import cohort_rows
from pipelines.config import ConfigError, read_config
from pipelines.detect.config import RunConfig, load_run_config
from pipelines.detect.run import Run, load_run
from pipelines.study.evaluate import Images, evaluate
from pipelines.study.folds import Unit, units, write_folds
from pipelines.study.protocol import Protocol
from pipelines.study.results_file import results_file
from pipelines.training.fit import describe_data, train
from pipelines.versions import versions
from preprocessing.files import nearest, plain, read_json, write_json, write_rows, write_table
from preprocessing.scans import InputError

log = logging.getLogger("norma")


def configs(models: list[str], overrides: list[str], preset: str | None) -> dict[str, RunConfig]:
    """A config per model or variant; an override "pca.model.n_components=32" is for one, "all.image_size=[64,64]" for every one.

    A variant "vae@mean" is the model `vae` with what is said of `vae` and then of "vae@mean".
    """
    parts: dict[str, list[str]] = {
        name: [] for name in dict.fromkeys(["all", *(kind_of(n) for n in models), *models])
    }
    for text in overrides:
        name, dot, rest = text.partition(".")
        if not dot or name not in parts:
            raise ConfigError(
                f"'{text}': expected <model>.<key>=<value>, with a model of {', '.join(parts)}{nearest(name, list(parts))}"
            )
        parts[name].append(rest)
    own = {
        name: [text for part in dict.fromkeys(["all", kind_of(name), name]) for text in parts[part]]
        for name in models
    }
    return {name: load_run_config(kind_of(name), own[name], preset) for name in models}


def kind_of(name: str) -> str:
    """The model of a variant: "vae" of "vae@mean"."""
    return name.partition("@")[0]


def share_training(
    config: RunConfig, about: dict[str, str], folder: Path, others: Iterable[Path]
) -> None:
    """Give a new run the last checkpoint of another run that was trained in the same way, whatever its map, reference or scores.

    In the same way: with the same settings of all that happens up to the weights, on the data that `about` describes. Training then
    finds every stage done.
    """
    if (folder / "config.yaml").is_file():
        return
    scoring = model_class(config.name).scoring_arguments

    def trained_by(c: RunConfig) -> tuple[Any, ...]:
        holdout = c.reference.holdout if c.reference.kind != "none" else 0
        model = {k: v for k, v in c.model.items() if k not in scoring}
        return (
            c.name,
            model,
            c.image_size,
            c.patch_size,
            c.around,
            c.plane,
            c.stages,
            c.augmentation,
            c.decisive.loop,
            holdout,
        )

    for other in others:
        finished = (other / "weights.pt").is_file() and (
            other / "checkpoints" / "last.pt"
        ).is_file()
        if (
            finished
            and read_json(other / "run.json").get("data_digest") == about["data_digest"]
            and trained_by(read_config(RunConfig, other / "config.yaml")) == trained_by(config)
        ):
            (folder / "checkpoints").mkdir(exist_ok=True)
            for name in ("metrics.csv", "checkpoints/last.pt"):
                shutil.copyfile(other / name, folder / name)
            return


def figures_over_runs(
    results: list[dict[str, Any]], protocol: Protocol
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Each figure as mean, sd and n over runs, with its bootstrap interval where it has one; and the bootstrap values."""
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


def differences(
    models: list[dict[str, Any]], draws: dict[str, dict[str, np.ndarray]], baseline: str
) -> list[dict[str, Any]]:
    """Every model against the baseline, figure by figure: paired bootstrap, Holm-corrected over the models."""
    base = next(m for m in models if m["model"] == baseline)
    found = []
    for figure in draws[baseline]:
        rows = []
        for m in models:
            if m["model"] != baseline and figure in draws[m["model"]]:
                apart = draws[m["model"]][figure] - draws[baseline][figure]
                mean = m["figures"][figure]["mean"] - base["figures"][figure]["mean"]
                rows.append(
                    {
                        "model": m["model"],
                        "figure": figure,
                        "difference": mean,
                        "interval": list(interval(apart)),
                        "p": p_value(apart),
                    }
                )
        for row, corrected in zip(rows, holm([r["p"] for r in rows]), strict=True):
            row["p_holm"] = corrected
        found += rows
    return found


@dataclass(frozen=True)
class Question:
    """What a comparison asks: models trained on `data` and tested on the test scans of `test`, by a protocol.

    `name` is the first part of its files' names; differences are from the model `baseline`; `point` is the operating point, None for
    each run's own.
    """

    data: Path
    test: Path
    protocol: Protocol
    baseline: str
    name: str
    point: str | None = None
    accelerator: str = "auto"


@dataclass(frozen=True)
class Answer:
    """A comparison as it is written to JSON, and what its page shows besides.

    Results and case pictures by model; the first run of the last model.
    """

    comparison: dict[str, Any]
    results: dict[str, list[dict[str, Any]]]
    images: dict[str, Images]
    run: Run | None


EvaluationPage = Callable[[dict[str, Any], Run, Images], str]


def question(data: Path, names: list[str], protocol: Protocol, **about: Any) -> Question:
    """A question with its defaults filled in; ConfigError where its parts do not go together."""
    test, name, baseline = (
        about.pop("test", None) or data,
        about.pop("name", None),
        about.pop("baseline", None),
    )
    if name and Path(name).name != name:
        raise ConfigError(
            f"--name {name}: expected the first part of a file name, such as ct_pretraining."
        )
    if not names:
        raise ConfigError(
            'MODELS is empty; name models such as MODELS="zero intensity pca atlas vae_cr".'
        )
    if protocol.folds and test != data:
        raise ConfigError("folds test on the scans they are cut from; leave TEST out.")
    baseline = baseline or ("intensity" if "intensity" in names else names[0])
    if baseline not in names:
        raise ConfigError(
            f"baseline '{baseline}' is not among the models {', '.join(names)}{nearest(baseline, names)}"
        )
    return Question(data, test, protocol, baseline, name or test.name, **about)


def compare(
    asked: Question,
    run_configs: dict[str, RunConfig],
    out: Path,
    page: EvaluationPage | None = None,
) -> Answer:
    """Train what is missing, evaluate all, write <name>_comparison.tsv, .json and <name>_<model>.json to `out`.

    Runs lie in `out`/<model>/<seed or fold>; a finished run is not trained again, an evaluation that stands is read, and variants of
    a model that differ only in what is done after training are trained once. `page` makes the page of each evaluation.
    """
    folds = out / "folds"
    if asked.protocol.folds:
        (folds / "labelled").mkdir(parents=True, exist_ok=True)
        write_folds(cohort_rows(asked.data, None), asked.protocol, folds)
    command = "python -m pipelines.compare " + shlex.join(sys.argv[1:])
    results: dict[str, list[dict[str, Any]]] = {}
    entries, draws, first_run = [], {}, None
    for model, config in run_configs.items():
        results[model] = []
        for unit in units(asked.protocol, model_class(config.name), folds):
            run, result = run_unit(
                asked, model, config, unit, out, page, pictures=not results[model]
            )
            first_run = run if not results[model] else first_run
            results[model].append(result)
        figures, draws[model] = figures_over_runs(results[model], asked.protocol)
        entries.append(entry_of(model, results[model], figures))
        write_rows(
            out / f"{asked.name}_{model}.json",
            results_file(results[model], figures, command, asked.protocol, versions()),
        )
    comparison = {
        "name": asked.name,
        "data": asked.test.name,
        "trained_on": asked.data.name,
        "protocol": asked.protocol.model_dump(),
        "protocol_text": _protocol_text(asked),
        "command": command,
        "versions": versions(),
        "baseline": asked.baseline,
        "failures": sorted(
            {f["id"] for runs in results.values() for r in runs for f in r["failures"]}
        ),
        "models": entries,
        "differences": differences(entries, draws, asked.baseline),
    }
    comparison = plain(comparison)
    write_json(out / f"{asked.name}_comparison.json", comparison)
    write_table(out / f"{asked.name}_comparison.tsv", table_rows(comparison))
    images: dict[str, Images] = {
        model: case_images(runs[0], out / model, asked.test) for model, runs in results.items()
    }
    return Answer(comparison, results, images, first_run)


def run_unit(
    asked: Question,
    model: str,
    config: RunConfig,
    unit: Unit,
    out: Path,
    page: EvaluationPage | None = None,
    pictures: bool = True,
) -> tuple[Run, dict[str, Any]]:
    """One run of a comparison: trained and evaluated where that is not done yet, and what it is called there."""
    run_dir = cli.writable_folder(out / model / unit.name)
    config = config.model_copy(update={"loop": config.loop.model_copy(update={"seed": unit.seed})})
    about = describe_data(asked.data, cohort_rows(asked.data, unit.splits))
    share_training(
        config,
        about,
        run_dir,
        [p / unit.name for p in sorted(out.iterdir()) if kind_of(p.name) == config.name],
    )
    train(config, asked.data, run_dir, unit.splits)
    run = load_run(run_dir, asked.accelerator)
    result = evaluate(
        run,
        asked.test,
        run_dir / "evaluation" / asked.test.name,
        asked.protocol,
        asked.point,
        pictures,
        page,
    )
    if not result["scans"]:
        raise InputError(f"{asked.test}: no test scan could be evaluated.")
    return run, result | {
        "model": model,
        "unit": unit.name,
        "seed": unit.seed,
        "repeat": unit.repeat,
        "fold": unit.fold,
    }


def entry_of(model: str, results: list[dict[str, Any]], figures: dict[str, Any]) -> dict[str, Any]:
    """A model's part of the comparison."""
    return {
        "model": model,
        "figures": figures,
        "runs": [
            {k: r[k] for k in ("seed", "repeat", "fold")} | {"summary": r["summary"]}
            for r in results
        ],
        "train_seconds": float(np.mean([r["training"]["seconds"] for r in results])),
        "seconds_per_scan": float(np.mean([r["seconds_per_scan"] for r in results])),
    }


def _protocol_text(asked: Question) -> str:
    data, test, protocol, point = asked.data, asked.test, asked.protocol, asked.point
    how = (
        f"{protocol.repeats} x {protocol.folds} folds by subject"
        if protocol.folds
        else f"{protocol.seeds} seeds on one split by subject"
    )
    where = (
        f"test scans of {test.name}"
        if test == data
        else f"test scans of {test.name}, trained on {data.name}"
    )
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
