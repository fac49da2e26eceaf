"""The top of an evaluation's page: words and figures counted by hand."""

import pytest

from pipelines.pages.headline import false_findings, headline, plain_sentence
from pipelines.study.evaluation import Evaluation
from tests.pipelines.pages.made_results import made_run


def scan(id, label, findings, lesions=None):
    row = {"id": id, "subject": id, "label": label, "pathology": "", "score": 1.0}
    row |= {"percentile": 50.0, "findings": findings}
    return row | ({} if lesions is None else {"lesions": lesions})


def evaluation(scans, **summary):
    point = {"point": "finding", "voxel": 1.0, "component": 2.0, "promise": "At most one in ten."}
    more = {"model": "atlas", "data": "set", "protocol": {"by": []}, "command": "", "key": ""}
    known = {"n_healthy_reference": 20, "versions": {}, "summary": summary, "point": point}
    return Evaluation(**(made_run() | more | known | {"scans": scans}))


def test_the_sentence_counts_lesions_and_false_findings():
    found = {"volume_ml": 1.0, "covered": 0.5, "score": 3.0}
    missed = found | {"score": 0.0}
    scans = [scan("a", "abnormal", 2, [found, missed]), scan("b", "abnormal", 1, [found])]
    scans += [scan(f"h{i}", "healthy", int(i == 0)) for i in range(5)]
    assert plain_sentence(evaluation(scans)) == (
        "Finds 2 of 3 lesions; about one healthy scan in five gets a false finding (1 of 5)."
    )
    assert plain_sentence(evaluation(scans[2:])).startswith("About one healthy scan in five")
    unlabelled = [scan("x", "", 1)]
    assert "nothing can be said" in plain_sentence(evaluation(unlabelled))
    without_masks = [scan("a", "abnormal", 0), scan("b", "abnormal", 3)]
    assert plain_sentence(evaluation(without_masks)) == (
        "Marks something in 1 of 2 abnormal scans."
    )


@pytest.mark.parametrize(
    ("marked", "count", "words"),
    [
        (0, 6, "none of 6 healthy scans gets"),
        (6, 6, "all 6 healthy scans get"),
        (4, 6, "4 of 6 healthy scans get"),
        (3, 6, "about one healthy scan in two gets a false finding (3 of 6)"),
        (1, 30, "about one healthy scan in 30 gets a false finding (1 of 30)"),
    ],
)
def test_how_often_in_words(marked, count, words):
    assert words in false_findings(marked, count)


def test_five_figures_and_the_best_the_median_and_the_worst_case():
    scans = [scan(id, "abnormal", 1) for id in "abcde"] + [scan("h", "healthy", 0)]
    figures = {
        "scan_auroc": 0.9,
        "lesion_sensitivity": None,
        "abnormal_with_finding": 0.8,
        "healthy_with_finding": 0.1,
        "dice_mean": float("nan"),
        "slicewise_auroc": 0.7,
        "clinical_slicewise_auroc": 0.6,
        "healthy_false_positive_ml": 2.0,
    }
    images = [(f"{id}: abnormal", b"") for id in "abcde"] + [("h: healthy", b"")]
    section = headline(evaluation(scans, **figures), images)
    assert [value for _, value in section.table[1]] == [0.9, 0.8, 0.1, 0.7, 0.6]
    captions = [caption for caption, _ in section.images]
    assert captions == ["best: a: abnormal", "median: c: abnormal", "worst: e: abnormal"]
    assert "At most one in ten." in section.text
    one = headline(evaluation(scans, **figures), images[:1])
    assert [caption for caption, _ in one.images] == ["best: a: abnormal"]
