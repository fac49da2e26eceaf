"""The top of an evaluation's page: a sentence in plain words, five figures, three pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.pages.html import Section
from pipelines.pages.text import is_known
from pipelines.study.case_pictures import Images
from pipelines.study.evaluation import Evaluation

FIGURES = {
    "scan_auroc": "healthy and abnormal scans told apart (AUROC, chance 0.5)",
    "lesion_sensitivity": "share of lesions found",
    "abnormal_with_finding": "share of abnormal scans with a finding",
    "healthy_with_finding": "share of healthy scans with a finding, all of them false",
    "dice_mean": "agreement of marks and lesions (Dice, mean per scan)",
    "slicewise_auroc": "abnormal slices told from slices of healthy scans (AUROC)",
    "clinical_slicewise_auroc": "all slices of abnormal scans told from healthy ones (AUROC)",
    "healthy_false_positive_ml": "marked in vain, ml per healthy scan",
}
SHOWN = 5
PLACES = ("best", "median", "worst")
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def headline(result: Evaluation, images: Images) -> Section:
    """What a reader wants to know first; figures that are not defined give way to others."""
    known = [key for key in FIGURES if is_known(result.summary.get(key))]
    rows = [[FIGURES[key], result.summary[key]] for key in known[:SHOWN]]
    text = plain_sentence(result)
    if result.point.promise:
        text += f"\n\nWhat the operating point promises: {result.point.promise}"
    return Section("In short", text, (["figure", "value"], rows), three_cases(result, images))


def plain_sentence(result: Evaluation) -> str:
    """How many lesions are found, and how often a healthy scan is marked, in words."""
    parts: list[str] = []
    lesions: list[dict[str, Any]] = []
    for scan in result.scans:
        lesions += scan.get("lesions") or []
    if lesions:
        hits = sum(found["score"] > 0 for found in lesions)
        parts.append(f"Finds {hits} of {len(lesions)} lesions")
    else:
        marked, count = _with_finding(result, "abnormal")
        if count:
            parts.append(f"Marks something in {marked} of {count} abnormal scans")
    marked, count = _with_finding(result, "healthy")
    if count:
        parts.append(false_findings(marked, count))
    if not parts:
        return "No test scan has a label, so nothing can be said of what is found."
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def false_findings(marked: int, count: int) -> str:
    """How many healthy scans get a false finding: counted, and as one in so many."""
    if marked == 0:
        return f"none of {count} healthy scans gets a false finding"
    each = round(count / marked)
    if marked == count:
        return f"all {count} healthy scans get a false finding"
    if 2 * marked > count:
        return f"{marked} of {count} healthy scans get a false finding"
    often = WORDS[each] if each < len(WORDS) else str(each)
    return f"about one healthy scan in {often} gets a false finding ({marked} of {count})"


def three_cases(result: Evaluation, images: Images) -> Sequence[tuple[str, bytes]]:
    """The pictures of the best, the median and the worst abnormal case."""
    abnormal = {row["id"] for row in result.scans if row["label"] == "abnormal"}
    pictures = [image for image in images if image[0].partition(":")[0] in abnormal]
    if not pictures:
        return []
    last = len(pictures) - 1
    places: dict[int, str] = {}
    for at, place in zip((0, last // 2, last), PLACES, strict=True):
        places.setdefault(at, place)  # of one or two cases there is no median
    return [(f"{places[at]}: {pictures[at][0]}", pictures[at][1]) for at in sorted(places)]


def _with_finding(result: Evaluation, label: str) -> tuple[int, int]:
    """How many scans of a kind have a finding, and how many there are."""
    counts = [row.get("findings", 0) for row in result.scans if row["label"] == label]
    return sum(count > 0 for count in counts), len(counts)
