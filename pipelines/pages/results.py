"""docs/results.md, and a page per data set beside the files that its figures come from.

| in docs/results | written by |
|---|---|
| `<comparison>/` | `make compare`; `--add` copies its results folder as it is |
| `<data>/preprocess.json` | `make preprocess`; `--add` copies it |
| `choose_*.json` | `make choose` |
| `choose.yaml` | hand: which measured run stands for which kind of scan |
| `remarks.md`, `<data>/remarks.md` | hand: what the figures mean |
| `<data>.md` | `make results` |

docs/results/remarks.md is the hand-written part of docs/results.md. Its comments such as
`<!-- choices -->` say where tables go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.config import RESULTS, ROOT, read_yaml
from pipelines.pages.data_set import Remarks, data_set_page
from pipelines.pages.model_tables import HEADS, NOTHING
from pipelines.pages.performance import PERFORMANCE
from pipelines.pages.text import figure_text, markdown_table, short_number
from pipelines.study.evaluation import Evaluation
from pipelines.study.results_file import ENDING, SUMMARY, Results
from preprocessing.files import read_json, write_atomic
from preprocessing.scans import InputError

FOLDER = RESULTS
PAGE = ROOT / "docs" / "results.md"
CHOICES = RESULTS / "choose.yaml"
REMARKS = RESULTS / "remarks.md"

HEADLINE = ("scan_auroc", "slicewise_auroc", "voxel_ap", "dice_pooled")

Measured = Mapping[str, Results]  # by the name of the comparison


def all_pages() -> dict[Path, str]:
    """Every page that `make results` writes, as Markdown."""
    measured = read_measured()
    pages = {PAGE: results_page(measured)}
    for data in data_sets(measured):
        comparisons = [results for results in measured.values() if results.summary.data == data]
        rankings = [path for path in rankings_of() if read_json(path)["data"] == data]
        pages[FOLDER / f"{data}.md"] = data_set_page(FOLDER / data, comparisons, rankings)
    return pages


def read_measured() -> dict[str, Results]:
    """Every committed comparison."""
    folders = sorted(path.parent for path in FOLDER.glob(f"*/{SUMMARY}"))
    return {folder.name: Results.read(folder) for folder in folders}


def rankings_of() -> list[Path]:
    """The committed files of `make choose`."""
    return sorted(FOLDER.glob("choose_*.json"))


def data_sets(measured: Measured) -> list[str]:
    """The data sets that have a page: those preprocessed, and those that a comparison tested."""
    names = {path.parent.name for path in FOLDER.glob("*/preprocess.json")}
    names |= {results.summary.data for results in measured.values()}
    return sorted(names)


def results_page(measured: Measured) -> str:
    """docs/results.md: the remarks with the generated tables in their places."""
    page = REMARKS.read_text(encoding="utf-8")
    parts = {
        "choices": choices_text(measured),
        "costs": costs_text(measured),
        "headline": headline_text(measured),
        "defaults": defaults_text(),
        "pages": pages_text(measured),
    }
    for name, text in parts.items():
        mark = f"<!-- {name} -->"
        if mark not in page:
            raise InputError(f"{REMARKS}: no line '{mark}', which is where a table goes.")
        page = page.replace(mark, text)
    return page


def choices_text(measured: Measured) -> str:
    """What to take for which scan, lesion and budget, with the figures where it was measured."""
    rows: list[list[str]] = []
    for choice in read_yaml(CHOICES)["choices"]:
        results = measured[choice["measured"]]
        figures = results.model(choice["model"]).figures
        about = [choice[key] for key in ("scan", "lesion", "budget")]
        measured_on = [_link(results.summary.data), _test_scans(results)]
        texts = [figure_text(figures[key].model_dump()) for key in HEADLINE]
        rows.append([*about, f"`{choice['command']}`", *measured_on, *texts])
    heads = ["scan", "lesion", "budget", "make train", "measured on", "test scans"]
    return markdown_table([*heads, *(HEADS[key] for key in HEADLINE)], rows)


def _test_scans(results: Results) -> str:
    """How many test scans a comparison has, over all its folds."""
    labels: dict[str, str] = {}
    for run in results.runs(results.names()[0]):
        labels |= {case["id"]: case["label"] for case in results.cases_of(run)}
    counts = [list(labels.values()).count(label) for label in ("healthy", "abnormal")]
    return f"{counts[0]} healthy, {counts[1]} abnormal"


def costs_text(measured: Measured) -> str:
    """What each choice costs: training with all its members, and `make infer` of one scan."""
    cost: dict[str, str] = {}
    if PERFORMANCE.is_file():
        for row in read_json(PERFORMANCE)["rows"]:
            cost[row["name"]] = f"{short_number(row['value'])} {row['unit']}"
    rows: list[list[str]] = []
    for choice in read_yaml(CHOICES)["choices"]:
        command = choice["command"]
        seconds = training_seconds(measured[choice["measured"]], choice["model"])
        rows.append(
            [
                f"`{command}`",
                f"{seconds:.0f} s",
                cost.get(f"make infer of one raw scan, {command}", NOTHING),
                cost.get(f"peak memory of make infer, {command}", NOTHING),
            ]
        )
    heads = ["make train", "training, members included", "infer of one scan", "memory of infer"]
    return markdown_table(heads, rows)


def training_seconds(results: Results, model: str) -> float:
    """Seconds of training, median over runs; of an ensemble with all its members."""
    members = results.model(model).config["model"].get("members", [])
    names = [model, *(member["run"] for member in members)]
    seconds = 0.0
    for name in names:
        seconds += median([run.train_seconds for run in results.runs(name)])
    return seconds


def headline_text(measured: Measured) -> str:
    """Per data set the few headline figures of every model, the best model first."""
    by_data: dict[str, list[Results]] = {}
    for name in read_yaml(CHOICES)["headline"]:
        results = measured[name]
        by_data.setdefault(results.summary.data, []).append(results)
    parts: list[str] = []
    for data, comparisons in by_data.items():
        title = Remarks.read(FOLDER / data).title
        parts += [f"### {title}", _headline_table(comparisons), f"All tables: {_link(data)}."]
    return "\n\n".join(parts)


def _headline_table(comparisons: Iterable[Results]) -> str:
    """A row per model; a model of two comparisons is taken from the first."""
    means: dict[str, list[float | None]] = {}
    for results in comparisons:
        for name in results.names():
            figures = results.model(name).figures
            means.setdefault(name, [figures[key].mean for key in HEADLINE])

    shown: list[int] = []
    for i in range(len(HEADLINE)):
        if any(row[i] is not None for row in means.values()):
            shown.append(i)
    # Where lesions are outlined, marking them counts; else telling scans apart does.
    leading = HEADLINE.index("voxel_ap")
    if leading not in shown:
        leading = shown[0]
    ordered = sorted(means, key=lambda name: -(means[name][leading] or 0.0))

    rows: list[list[str]] = []
    for name in ordered:
        values = [means[name][i] for i in shown]
        rows.append([f"`{name}`", *(NOTHING if v is None else f"{v:.3f}" for v in values)])
    return markdown_table(["model", *(HEADS[HEADLINE[i]] for i in shown)], rows)


def defaults_text() -> str:
    """The rankings of `make choose` in brief."""
    rows: list[list[str]] = []
    for path in rankings_of():
        ranking = read_json(path)
        best, second = sorted(ranking["entries"], key=lambda e: -e["voxel_ap"])[:2]
        low, high = ranking["volumes_ml"]
        rows.append(
            [
                _link(ranking["data"]),
                str(ranking["validation_scans"]),
                f"{', '.join(ranking['kinds'])}; {low:g} to {high:g} ml",
                str(len(ranking["entries"])),
                *(_ranked(entry) for entry in (best, second)),
            ]
        )
    heads = ["data", "validation scans", "planted lesions", "runs ranked", "best", "second"]
    return markdown_table(heads, rows)


def _ranked(entry: dict[str, Any]) -> str:
    return f"`{Path(entry['run']).name}` {entry['voxel_ap']:.3f}"


def pages_text(measured: Measured) -> str:
    """A line per data set that has a page."""
    titles = {data: Remarks.read(FOLDER / data).title for data in data_sets(measured)}
    return "\n".join(f"- [{title}](results/{data}.md)" for data, title in titles.items())


def _link(data: str) -> str:
    """A link to the page of a data set, named by the first part of its title."""
    title = Remarks.read(FOLDER / data).title
    return f"[{title.partition(':')[0]}](results/{data}.md)"


def add(folder: Path) -> None:
    """Copy the results in a command's OUT into docs/results.

    They are those of a comparison, the preprocess.json of a cohort, or the evaluation.json of a
    run, which gets the name of its folder.
    """
    found = sorted(folder.glob(f"*{ENDING}/{SUMMARY}"))
    cohort = folder / "preprocess.json"
    evaluation = folder / "evaluation.json"
    if not found and not cohort.is_file() and not evaluation.is_file():
        raise InputError(
            f"{folder}: neither a *{ENDING} folder of 'make compare', nor a preprocess.json of "
            "'make preprocess', nor an evaluation.json of 'make evaluate' in it."
        )
    for path in found:
        results = Results.read(path.parent)
        results.check()
        for name in [*results.summary.tables, SUMMARY]:
            _copy(path.parent / name, FOLDER / results.summary.name / name)
    if cohort.is_file():
        _copy(cohort, FOLDER / folder.name / cohort.name)
    if evaluation.is_file():
        Evaluation.read(evaluation)  # InputError for one that is damaged
        _copy(evaluation, FOLDER / f"{folder.name}.json")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, source.read_bytes())
