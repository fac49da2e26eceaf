"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.detect.run import Run
from pipelines.pages.evaluation import (
    CASES,
    Images,
    Results,
    claim_checklist,
    class_sections,
    curve_pictures,
    lesion_sections,
    limit_sentences,
    threshold_picture,
)
from pipelines.pages.html import Section, page
from pipelines.pages.text import COMPARED, SHORT, figure_text, interval_text, is_known


def comparison_page(
    comparison: dict[str, Any], results: Results, images: Mapping[str, Images], run: Run | None
) -> str:
    """The HTML page of a comparison: `results` by model, a list of one evaluation per seed or fold."""
    shown = [
        k
        for k in COMPARED
        if any(is_known(m["figures"].get(k, {}).get("mean")) for m in comparison["models"])
    ]
    table = [
        [
            m["model"],
            len(m["runs"]),
            *[figure_text(m["figures"].get(k, {})) for k in shown],
            m["train_seconds"],
            m["seconds_per_scan"],
        ]
        for m in comparison["models"]
    ]
    head = ["model", "runs", *[SHORT[k] for k in shown], "training s", "s per scan"]
    first = next(iter(results.values()))[0]
    text = (
        f"{comparison['protocol_text']} Figures are means over runs ± standard deviation over runs, in brackets the 95 % interval by "
        f"bootstrap over test subjects ({comparison['protocol']['resamples']} resamples). Thresholds come from healthy validation scans "
        "alone; 'oracle' was chosen with the test labels."
    )
    tests = [
        [
            d["model"],
            SHORT.get(d["figure"], d["figure"]),
            d["difference"],
            interval_text(d["interval"]),
            d["p"],
            d["p_holm"],
        ]
        for d in comparison["differences"]
        if d["p"] is not None
    ]
    sections = [
        Section("Comparison", text + "\n\n" + limit_sentences(first), (head, table)),
        Section(
            f"Differences from {comparison['baseline']}",
            "Paired bootstrap over the same subjects; p two-sided, and corrected for the number of models by Holm's method, per figure.",
            (["model", "figure", "difference", "95 % interval", "p", "p (Holm)"], tests),
        ),
        Section("Curves", "One line per seed or fold.", images=curve_pictures(results)),
        *class_sections(first, results),
        *lesion_sections(results),
    ]
    if run is not None:
        name, points = list(results)[-1], {k: p.get("voxel", np.nan) for k, p in run.points.items()}
        sections.append(
            Section(
                "Choice of threshold",
                images=[(f"Model {name}", threshold_picture(run, results[name][0], points))],
            )
        )
    sections += [
        Section(f"Cases of {name}", CASES, images=own) for name, own in images.items() if own
    ]
    sections.append(
        Section(
            "For the methods section (CLAIM)",
            table=(["item", "what the runs can say"], claim_checklist(first)),
        )
    )
    sections.append(
        Section(
            "How this was made", table=(["what", "value"], [["command", comparison["command"]]])
        )
    )
    return page(
        f"Norma: comparison on {comparison['data']}",
        [s for s in sections if s.text or s.table or s.images],
    )
