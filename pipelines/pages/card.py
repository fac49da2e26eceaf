"""The model card of a run, as Markdown with YAML front matter (Mitchell et al. 2019)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from models.patchcore import Patchcore
from pipelines.cohort.cases import count_parts
from pipelines.cohort.public import Dataset, dataset_of
from pipelines.detect.run import Run
from pipelines.pages.headline import plain_sentence
from pipelines.pages.text import figure_text, is_known, markdown_table
from pipelines.study.evaluation import Evaluation
from pipelines.study.results_file import Results
from preprocessing.files import write_atomic
from preprocessing.scans import InputError

SHOWN = {
    "scan_auroc": "AUROC per scan",
    "slicewise_auroc": "AUROC slicewise",
    "clinical_slicewise_auroc": "AUROC clinical slicewise",
    "dice_mean": "Dice, mean per scan",
    "lesion_sensitivity": "lesions found",
    "abnormal_with_finding": "abnormal scans with a finding",
    "healthy_with_finding": "healthy scans with a finding",
    "healthy_false_positive_ml": "marked in vain, ml per healthy scan",
}
NAME = "README.md"


def write_card(
    run: Run,
    results: Results | None = None,
    model: str = "",
    evaluated: Sequence[Path] | None = None,
    larger: bool = False,
) -> Path:
    """Write the card of a run into its folder, with pictures of its worst cases; gives its path.

    Figures are those of `model` in a results folder and of evaluations: `evaluated` are OUT folders
    of `make evaluate`; left out, those in the run's folder. `larger`: `model` is the same method
    with more memory.
    """
    if evaluated is None:
        evaluated = sorted(path for path in (run.folder / "evaluation").glob("*") if path.is_dir())
    evaluations: list[Evaluation] = []
    pictures: list[tuple[str, str]] = []
    for folder in evaluated:
        result = Evaluation.read(folder / "evaluation.json")
        evaluations.append(result)
        known = dataset_of(result.data)
        if known is None or known.pictures:
            pictures += _failures(run, result, folder / "cases")
    text = card_text(run, evaluations, pictures, _of_results(results, model, larger))
    write_atomic(run.folder / NAME, text)
    return run.folder / NAME


def card_text(
    run: Run,
    evaluations: Sequence[Evaluation],
    pictures: Sequence[tuple[str, str]],
    compared: str,
) -> str:
    """The card; `pictures` are captions and files beside it, `compared` figures of a comparison."""
    data = str(run.history.get("data", ""))
    known = dataset_of(data)
    parts = [
        _front_matter(run, data, known),
        f"# {run.folder.name}: `{run.config.name}` for {run.recipe.name} scans",
        "**Research software, not a medical device. Not for diagnosis.**",
        "## What it does\n\n" + _what(run),
        "## What it learned from\n\n" + _learned(run, data, known),
        "## What its marks promise\n\n" + _promised(run),
        "## What was measured\n\n" + _measured(evaluations, compared),
        "## Where it fails\n\n" + _fails(pictures),
        "## How it was made\n\n" + _made(run),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(run: Run, data: str, known: Dataset | None) -> str:
    content: dict[str, Any] = {
        "license": known.licence.lower() if known else "other",
        "library_name": "norma",
        "tags": ["anomaly-detection", "medical-imaging", _organ(run), run.recipe.name],
        "datasets": [data] if data else [],
        "model_name": run.config.name,
    }
    return "---\n" + yaml.safe_dump(content, sort_keys=False) + "---"


def _organ(run: Run) -> str:
    return "lung" if run.recipe.modality == "chest_ct" else "brain"


def _what(run: Run) -> str:
    return (
        f"It marks what is unusual in a {run.recipe.name} scan of a {_organ(run)}: a mask, a map "
        "and a report on the scan's own grid. It is made for research: to compare detectors, and "
        "to try one on one's own scans. A person who reads the scan decides, not the marks. Other "
        "scanners, ages and sequences than those named below were not seen in training; the report "
        "of a scan says how like the training scans it is."
    )


def _learned(run: Run, data: str, known: Dataset | None) -> str:
    history = run.history
    scans = len(history.get("train_scans", []))
    rows = [["cohort", data or "not named"], ["healthy scans to train on", str(scans)]]
    rows.append(["healthy scans to calibrate on", str(len(run.reference.scans))])
    parts = count_parts(history.get("train_scans", []))
    if parts:
        rows.append(["of them to train: slices without lesion of patients' scans", str(parts)])
    for name, text in history.get("people", {}).items():
        rows.append([name, str(text)])
    if known:
        rows += [
            ["data", f"[{known.title}]({known.address})"],
            ["licence", known.licence],
            ["people", known.people],
            ["scanners", known.scanners],
            ["citation", known.citation],
        ]
    return markdown_table(["what", "value"], rows) + "\n\n" + _held(run)


def _held(run: Run) -> str:
    """What of people the files hold."""
    text = (
        "The files hold network weights, voxel means and variances, features and thresholds: "
        "no picture of a person."
    )
    for part in run.model.modules():
        if isinstance(part, Patchcore):
            memory = part.get_buffer("memory")
            text += (
                f" The features are those of {memory.shape[1]} single slices: {memory.shape[2]} "
                f"numbers for each of {part.cells} x {part.cells} cells, averaged over 3 x 3 cells."
            )
    return text


def _promised(run: Run) -> str:
    point = run.point()
    parts = [f"Operating point `{point.point}`: {point.rule}."]
    if point.promise:
        parts.append(point.promise)
    if run.memory:
        lost = run.memory.loss
        parts.append(
            f"It remembers {len(run.memory.entries)} findings that readers have rejected, and does "
            f"not mark what is like them. Of {lost['found']} planted lesions that it finds, that "
            f"memory took away {lost['lost']}; of {lost['found_near']} planted where it remembers "
            f"something, {lost['lost_near']}."
        )
    return "\n\n".join(parts)


def _measured(evaluations: Sequence[Evaluation], compared: str) -> str:
    parts = [compared] if compared else []
    for result in evaluations:
        rows = [
            [head, f"{result.summary[key]:.3f}"]
            for key, head in SHOWN.items()
            if is_known(result.summary.get(key))
        ]
        counts = f"{result.summary['n_healthy']} healthy, {result.summary['n_abnormal']} abnormal"
        said = f"This run on the test scans of `{result.data}` ({counts}). {plain_sentence(result)}"
        parts.append(said + "\n\n" + markdown_table(["figure", "value"], rows))
    return "\n\n".join(parts) or "Nothing yet: `make evaluate` measures it, then `make card` again."


def _of_results(results: Results | None, model: str, larger: bool) -> str:
    """The figures of the same model by cross-validation or seeds, with intervals."""
    if not results:
        return ""
    if model not in results.names():
        raise InputError(
            f"{results.folder}: no model '{model}', only {', '.join(results.names())}."
        )
    figures = results.model(model).figures
    rows: list[list[str]] = []
    for key, head in SHOWN.items():
        if key in figures and figures[key].mean is not None:
            rows.append([head, figure_text(figures[key].model_dump())])
    runs = "Runs of the same settings"
    if larger:
        runs = "**Not this run, which is smaller:** runs of the same method with more memory"
    return (
        f"{runs} (`{model}` in `{results.summary.name}`), each tested on scans that it had not "
        f"seen. {results.summary.protocol_text} Mean ± sd over runs, in brackets the 95 % "
        "interval.\n\n" + markdown_table(["figure", "value"], rows)
    )


def _failures(run: Run, result: Evaluation, folder: Path) -> list[tuple[str, str]]:
    """Caption and file of the worst abnormal case and the healthy one with the highest score."""
    found: list[tuple[str, str]] = []
    labels = {row["id"]: row["label"] for row in result.scans}
    paths = sorted(folder.glob("*.png"), key=lambda path: int(path.name.partition("_")[0]))
    for label, what in (("abnormal", "worst abnormal"), ("healthy", "highest healthy")):
        of_kind = [p for p in paths if labels.get(p.stem.partition("_")[2]) == label]
        if of_kind:
            name = re.sub(r"\W+", "_", f"card_{result.data}_{what}") + ".png"
            write_atomic(run.folder / name, of_kind[-1].read_bytes())
            found.append((f"{what} test scan of {result.data}", name))
    return found


def _fails(pictures: Sequence[tuple[str, str]]) -> str:
    if not pictures:
        return "No picture of a test scan may be shown, or none was made."
    return "\n\n".join(f"![{caption}]({name})\n\n*{caption}.*" for caption, name in pictures)


def _made(run: Run) -> str:
    history = run.history
    size = sum(path.stat().st_size for path in run.folder.iterdir() if path.is_file())
    rows = [
        ["command", f"`python -m pipelines.train {shlex.join(history.get('command', []))}`"],
        ["versions", ", ".join(f"{k} {v}" for k, v in history.get("versions", {}).items())],
        ["trained parameters", f"{history.get('parameters', 0):,}"],
        ["seconds of training", str(history.get("seconds", "-"))],
        ["size", f"{size / 1e6:.1f} MB"],
    ]
    packed = history.get("packed")
    if packed:
        change = f"{packed['largest_change']:.2%} at most"
        about = f"maps of {len(packed['scans'])} scans change by {change}"
        rows.append(["half precision", about])
    return markdown_table(["what", "value"], rows)
