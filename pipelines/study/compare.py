"""Several models on one cohort, over seeds or folds, with intervals."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.bootstrap import STATISTICS, bootstrap
from evaluation.protocol import LABELS, mean_and_sd
from evaluation.statistics import holm, interval, p_value
from models import model_class
from pipelines import cli
from pipelines.cohort.cases import read_cases
from pipelines.config import ConfigError, read_recipe
from pipelines.detect.config import RunConfig, load_run_config
from pipelines.detect.points import point_of
from pipelines.detect.run import Run, load_run
from pipelines.study.case_pictures import Images
from pipelines.study.choose import Planting
from pipelines.study.evaluate import Page, demand_same_recipe, evaluate
from pipelines.study.evaluation import Evaluation
from pipelines.study.folds import Unit, units, write_folds
from pipelines.study.nested import CHOSEN, best_of
from pipelines.study.protocol import Protocol
from pipelines.study.results_file import ENDING
from pipelines.study.results_writer import write_results
from pipelines.training.folds import train_run
from pipelines.versions import command_line, versions
from preprocessing.files import nearest, plain, write_json, write_table
from preprocessing.scans import InputError


@dataclass(frozen=True)
class Question:
    """What a comparison asks: models trained on `data`, tested on the test cases of `test`.

    `name` is the first part of its files' names. Differences are from the model `baseline`. `point`
    is the operating point, None for each run's own. With `planting` a row "chosen" is added: in
    each run the model that finds lesions planted in its validation scans best.
    """

    data: Path
    test: Path
    protocol: Protocol
    baseline: str
    name: str
    point: str | None = None
    accelerator: str = "auto"
    planting: Planting | None = None


@dataclass(frozen=True)
class UnitResult:
    """One run of a comparison and its evaluation, which is named as the variant is.

    `chosen` names the model behind a run of the row "chosen".
    """

    unit: Unit
    evaluation: Evaluation
    chosen: str | None = None

    @property
    def named(self) -> dict[str, Any]:
        """Seed, repeat and fold, and the model that was chosen, where one was."""
        unit = self.unit
        found: dict[str, Any] = {"seed": unit.seed, "repeat": unit.repeat, "fold": unit.fold}
        return found | ({"chosen": self.chosen} if self.chosen else {})

    def as_row(self) -> dict[str, Any]:
        """As the results file takes it."""
        return self.evaluation.as_json() | {"unit": self.unit.name} | self.named


@dataclass(frozen=True)
class Answer:
    """A comparison as it is written to JSON, and what its page shows besides.

    Results and case pictures are by model; `run` is the last model's first run.
    """

    comparison: dict[str, Any]
    results: dict[str, list[Evaluation]]
    images: dict[str, Images]
    run: Run | None


def configs(models: list[str], overrides: list[str], preset: str | None) -> dict[str, RunConfig]:
    """A config per model or variant.

    The override "pca.model.n_components=32" is for one model, "all.image_size=[64,64]" for every
    one. A variant "vae@mean" is the model `vae` with what is said of `vae`, then of "vae@mean".
    """
    kinds = [kind_of(name) for name in models]
    parts: dict[str, list[str]] = {name: [] for name in ["all", *kinds, *models]}
    for text in overrides:
        name, dot, rest = text.partition(".")
        if not dot or name not in parts:
            known = ", ".join(parts)
            raise ConfigError(
                f"'{text}': expected <model>.<key>=<value>, with a model of {known}"
                f"{nearest(name, list(parts))}"
            )
        parts[name].append(rest)

    found: dict[str, RunConfig] = {}
    for name in models:
        told: list[str] = []
        for part in dict.fromkeys(["all", kind_of(name), name]):
            told += parts[part]
        found[name] = load_run_config(kind_of(name), told, preset)
    return found


def kind_of(name: str) -> str:
    """The model of a variant: "vae" of "vae@mean"."""
    return name.partition("@")[0]


def question(data: Path, names: list[str], protocol: Protocol, **given: Any) -> Question:
    """A question with its defaults filled in; ConfigError where its parts do not go together."""
    test = given.pop("test", None) or data
    name = given.pop("name", None)
    baseline = given.pop("baseline", None)
    if name and Path(name).name != name:
        raise ConfigError(
            f"--name {name}: expected the first part of a file name, such as ct_pretraining."
        )
    for each in names:
        if Path(each).name != each:
            raise ConfigError(f"'{each}': expected a model, or a variant such as vae@mean.")
    if not names:
        raise ConfigError(
            'MODELS is empty; name models such as MODELS="zero intensity pca atlas vae_cr".'
        )
    if protocol.folds and test != data:
        raise ConfigError("folds test on the scans they are cut from; leave TEST out.")
    baseline = baseline or ("intensity" if "intensity" in names else names[0])
    if baseline not in names:
        raise ConfigError(
            f"baseline '{baseline}' is not among the models {', '.join(names)}"
            f"{nearest(baseline, names)}"
        )
    return Question(data, test, protocol, baseline, name or test.name, **given)


def compare(
    asked: Question, run_configs: dict[str, RunConfig], out: Path, page: Page | None = None
) -> Answer:
    """Train what is missing, evaluate all, write the comparison and its results folder to `out`.

    Files are <name>_comparison.tsv, <name>_comparison.json and <name>_results/. Runs lie in
    `out`/<model>/<seed or fold>. A finished run is not trained again, an evaluation that stands is
    read, and variants that differ only after training are trained once. `page` makes the page of
    each evaluation. InputError, before anything is trained, where the test scans were preprocessed
    in another way, or for an operating point that is none.
    """
    if asked.point:
        point_of(asked.point)
    demand_same_recipe(asked.test, read_recipe(asked.data), asked.data)
    folds = out / "folds"
    if asked.protocol.folds:
        (folds / "labelled").mkdir(parents=True, exist_ok=True)
        write_folds(read_cases(asked.data), asked.protocol, folds)

    command = shlex.join(command_line("pipelines.compare"))
    results: dict[str, list[UnitResult]] = {}
    entries: list[dict[str, Any]] = []
    draws: dict[str, dict[str, np.ndarray]] = {}
    first_run = None
    for model, config in run_configs.items():
        results[model] = []
        for unit in units(asked.protocol, model_class(config.name), folds):
            first = not results[model]
            run, result = run_unit(asked, model, config, unit, out, page, pictures=first)
            first_run = run if first else first_run
            results[model].append(result)
    if asked.planting:
        results[CHOSEN] = chosen(asked, asked.planting, results, out)
    for model, runs in results.items():
        figures, draws[model] = figures_over_runs(evaluations_of(runs), asked.protocol)
        entries.append(entry_of(model, runs, figures))

    by_model = {model: evaluations_of(runs) for model, runs in results.items()}
    comparison = comparison_of(asked, command, by_model, entries, draws)
    write_json(out / f"{asked.name}_comparison.json", comparison)
    write_table(out / f"{asked.name}_comparison.tsv", table_rows(comparison))
    rows = {model: rows_of(runs) for model, runs in results.items()}
    write_results(out / f"{asked.name}{ENDING}", comparison, rows)
    images: dict[str, Images] = {}
    for model in run_configs:
        images[model] = case_images(out / model / results[model][0].unit.name, asked.test)
    return Answer(comparison, by_model, images, first_run)


def chosen(
    asked: Question, planting: Planting, results: dict[str, list[UnitResult]], out: Path
) -> list[UnitResult]:
    """Of each run of the comparison the result of the model that was chosen without test scans.

    Models with as many runs as the first take part.
    """
    models = list(results)
    units_of = [result.unit for result in results[models[0]]]
    found: list[UnitResult] = []
    for number, unit in enumerate(units_of):
        taking_part = [m for m in models if len(results[m]) == len(units_of)]
        run_dirs = [out / model / unit.name for model in taking_part]
        best = best_of(run_dirs, asked.data, planting, asked.accelerator)
        result = results[best.parent.name][number]
        named = result.evaluation.model_copy(update={"model": CHOSEN})
        found.append(UnitResult(unit, named, best.parent.name))
    return found


def evaluations_of(runs: list[UnitResult]) -> list[Evaluation]:
    """The evaluation of each run of a model."""
    return [run.evaluation for run in runs]


def rows_of(runs: list[UnitResult]) -> list[dict[str, Any]]:
    """Each run of a model as the results file takes it."""
    return [run.as_row() for run in runs]


def run_unit(
    asked: Question,
    model: str,
    config: RunConfig,
    unit: Unit,
    out: Path,
    page: Page | None = None,
    pictures: bool = True,
) -> tuple[Run, UnitResult]:
    """One run of a comparison, trained and evaluated where that is not done yet."""
    run_dir = cli.writable_folder(out / model / unit.name)
    loop = config.loop.model_copy(update={"seed": unit.seed})
    config = config.model_copy(update={"loop": loop})
    others = [p / unit.name for p in sorted(out.iterdir()) if kind_of(p.name) == config.name]
    train_run(config, asked.data, run_dir, unit.splits, others)

    run = load_run(run_dir, asked.accelerator)
    where = run_dir / "evaluation" / asked.test.name
    result = evaluate(run, asked.test, where, asked.protocol, asked.point, pictures, page)
    if not result:
        raise InputError(f"{asked.test}: no test scan could be evaluated.")
    return run, UnitResult(unit, result.model_copy(update={"model": model}))


def figures_over_runs(
    results: Sequence[Evaluation], protocol: Protocol
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Each figure as mean, sd and n over runs, with its bootstrap interval where it has one.

    Gives the bootstrap values too, by figure.
    """
    figures: dict[str, Any] = {}
    for key in LABELS:
        values = [result.summary.get(key) for result in results]
        mean, sd = mean_and_sd(values)
        figures[key] = {"mean": mean, "sd": sd, "n": sum(v is not None for v in values)}

    runs = [(result.scans, result.slices) for result in results]
    draws: dict[str, np.ndarray] = {}
    for key in STATISTICS:
        if np.isfinite(figures[key]["mean"]):
            draws[key] = bootstrap(runs, key, protocol.resamples)
            figures[key]["interval"] = list(interval(draws[key]))
    return figures, draws


def entry_of(model: str, results: Sequence[UnitResult], figures: dict[str, Any]) -> dict[str, Any]:
    """A model's part of the comparison."""
    return {
        "model": model,
        "figures": figures,
        "runs": [result.named | {"summary": result.evaluation.summary} for result in results],
        "train_seconds": float(np.mean([r.evaluation.training["seconds"] for r in results])),
        "seconds_per_scan": float(np.mean([r.evaluation.seconds_per_scan for r in results])),
    }


def comparison_of(
    asked: Question,
    command: str,
    results: dict[str, list[Evaluation]],
    entries: list[dict[str, Any]],
    draws: dict[str, dict[str, np.ndarray]],
) -> dict[str, Any]:
    """The comparison as it is written to JSON."""
    failures: set[str] = set()
    for evaluations in results.values():
        for evaluation in evaluations:
            failures |= {failure.id for failure in evaluation.failures}
    comparison = {
        "name": asked.name,
        "data": asked.test.name,
        "trained_on": asked.data.name,
        "protocol": asked.protocol.model_dump(),
        "protocol_text": _protocol_text(asked),
        "command": command,
        "versions": versions(),
        "baseline": asked.baseline,
        "failures": sorted(failures),
        "models": entries,
        "differences": differences(entries, draws, asked.baseline),
    }
    return plain(comparison)


def differences(
    models: list[dict[str, Any]], draws: dict[str, dict[str, np.ndarray]], baseline: str
) -> list[dict[str, Any]]:
    """Every model against the baseline, figure by figure.

    Paired bootstrap; p is corrected over the models by Holm's method.
    """
    base = next(m for m in models if m["model"] == baseline)
    found: list[dict[str, Any]] = []
    for figure in draws[baseline]:
        rows: list[dict[str, Any]] = []
        for entry in models:
            name = entry["model"]
            if name == baseline or figure not in draws[name]:
                continue
            apart = draws[name][figure] - draws[baseline][figure]
            rows.append(
                {
                    "model": name,
                    "figure": figure,
                    "difference": entry["figures"][figure]["mean"]
                    - base["figures"][figure]["mean"],
                    "interval": list(interval(apart)),
                    "p": p_value(apart),
                }
            )
        corrected = holm([row["p"] for row in rows])
        for row, p in zip(rows, corrected, strict=True):
            row["p_holm"] = p
        found += rows
    return found


def _protocol_text(asked: Question) -> str:
    """In a sentence: seeds or folds, the test scans, the operating point."""
    protocol = asked.protocol
    how = f"{protocol.seeds} seeds on one split by subject"
    if protocol.folds:
        how = f"{protocol.repeats} x {protocol.folds} folds by subject"
    where = f"test scans of {asked.test.name}"
    if asked.test != asked.data:
        where += f", trained on {asked.data.name}"
    point = asked.point or "of each run"
    return f"Protocol {protocol.name}: {how}; {where}; operating point {point}."


def table_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """comparison.tsv: one row per model and figure."""
    rows: list[dict[str, Any]] = []
    for entry in comparison["models"]:
        for key, figure in entry["figures"].items():
            if figure["mean"] is None:
                continue
            low, high = figure.get("interval", (None, None))
            numbers = {"mean": figure["mean"], "sd": figure["sd"], "low95": low, "high95": high}
            row: dict[str, Any] = {"model": entry["model"], "figure": key, "runs": figure["n"]}
            for name, value in numbers.items():
                row[name] = None if value is None else f"{value:.5g}"
            rows.append(row)
    return rows


def case_images(run_dir: Path, test: Path) -> Images:
    """The case pictures that the evaluation of a run drew, by the name of the case."""
    cases = run_dir / "evaluation" / test.name / "cases"
    return [(p.stem.partition("_")[2], p.read_bytes()) for p in sorted(cases.glob("*.png"))]
