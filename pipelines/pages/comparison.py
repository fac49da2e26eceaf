"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.detect.run import Run
from pipelines.pages.evaluation import (
    CASES,
    Results,
    Table,
    claim_checklist,
    class_sections,
    curve_pictures,
    lesion_sections,
    limit_sentences,
    threshold_picture,
)
from pipelines.pages.html import Section, page
from pipelines.pages.text import COMPARED, SHORT, figure_text, interval_text, is_known, tally
from pipelines.study.case_pictures import Images
from pipelines.study.nested import CHOSEN


def comparison_page(
    comparison: dict[str, Any], results: Results, images: Mapping[str, Images], run: Run | None
) -> str:
    """The HTML page of a comparison; `results` by model, one evaluation per seed or fold."""
    first = next(iter(results.values()))[0]
    said = _rules(comparison) + "\n\n" + limit_sentences(first)
    sections = [
        Section("Comparison", said, _figures_table(comparison)),
        Section(
            f"Differences from {comparison['baseline']}",
            "Paired bootstrap over the same subjects; p two-sided, and corrected for the number of "
            "models by Holm's method, per figure.",
            _differences_table(comparison),
        ),
        Section("Curves", "One line per seed or fold.", images=curve_pictures(results)),
        *class_sections(first, results),
        *lesion_sections(results),
    ]
    if run is not None:
        name = list(results)[-1]
        points = {key: point.voxel for key, point in run.points.items()}
        picture = threshold_picture(run, results[name][0], points)
        sections.append(Section("Choice of threshold", images=[(f"Model {name}", picture)]))
    for name, pictures in images.items():
        if pictures:
            sections.append(Section(f"Cases of {name}", CASES, images=pictures))
    checklist = (["item", "what the runs can say"], claim_checklist(first))
    sections.append(Section("For the methods section (CLAIM)", table=checklist))
    made = (["what", "value"], [["command", comparison["command"]]])
    sections.append(Section("How this was made", table=made))
    title = f"Norma: comparison on {comparison['data']}"
    return page(title, [s for s in sections if s.text or s.table or s.images])


def _rules(comparison: dict[str, Any]) -> str:
    resamples = comparison["protocol"]["resamples"]
    chosen: list[str] = []
    for entry in comparison["models"]:
        chosen += [run["chosen"] for run in entry["runs"] if "chosen" in run]
    nested = ""
    if chosen:
        nested = (
            f" '{CHOSEN}' is the model that best finds lesions planted in the validation scans of "
            f"a run: {tally(chosen)}."
        )
    return (
        f"{comparison['protocol_text']} Figures are means over runs ± standard deviation over "
        "runs, in brackets the 95 % interval by bootstrap over test subjects "
        f"({resamples} resamples). "
        "Thresholds come from healthy validation scans alone; 'oracle' was chosen with the test "
        f"labels.{nested}"
    )


def _figures_table(comparison: dict[str, Any]) -> Table:
    """A row per model, a column per figure that some model has."""
    entries = comparison["models"]
    shown = [key for key in COMPARED if _is_known_of_some(entries, key)]
    rows: list[list[Any]] = []
    for entry in entries:
        figures = [figure_text(entry["figures"].get(key, {})) for key in shown]
        costs = [entry["train_seconds"], entry["seconds_per_scan"]]
        rows.append([entry["model"], len(entry["runs"]), *figures, *costs])
    return ["model", "runs", *[SHORT[key] for key in shown], "training s", "s per scan"], rows


def _is_known_of_some(entries: list[dict[str, Any]], key: str) -> bool:
    """Whether some model has a mean of this figure."""
    return any(is_known(entry["figures"].get(key, {}).get("mean")) for entry in entries)


def _differences_table(comparison: dict[str, Any]) -> Table:
    rows: list[list[Any]] = []
    for difference in comparison["differences"]:
        if difference["p"] is None:
            continue
        figure = difference["figure"]
        rows.append(
            [
                difference["model"],
                SHORT.get(figure, figure),
                difference["difference"],
                interval_text(difference["interval"]),
                difference["p"],
                difference["p_holm"],
            ]
        )
    return ["model", "figure", "difference", "95 % interval", "p", "p (Holm)"], rows
