"""docs/results.md says what the committed files say, and the files are true to themselves."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pipelines import results

FILES = [p for p in results.FOLDER.glob("*/*.json") if p.name != "preprocess.json"]


def test_the_page_is_the_one_that_the_files_make():
    assert results.PAGE.read_text() == results.page()


def test_a_changed_number_changes_the_page(monkeypatch):
    real = results.read_json

    def doctored(path):
        content = real(path)
        if "summary" in content:
            content["summary"]["scan_auroc"] = 0.123456
        return content

    monkeypatch.setattr(results, "read_json", doctored)
    assert results.page() != results.PAGE.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_summary_follows_from_its_cases(path):
    result = json.loads(path.read_text())
    summary = result["summary"]
    cases = [c for c in result["cases"] if c["label"] in ("healthy", "abnormal")]
    labels, scores = [c["label"] == "abnormal" for c in cases], [c["score"] for c in cases]
    if len(set(labels)) == 2:
        assert summary["scan_auroc"] == pytest.approx(roc_auc_score(labels, scores))
        assert summary["scan_ap"] == pytest.approx(average_precision_score(labels, scores))
        every = [(s["score"], c["label"] == "abnormal") for c in cases for s in c["slices"]]
        assert summary["clinical_slicewise_auroc"] == pytest.approx(roc_auc_score([k for _, k in every], [s for s, _ in every]))
    else:
        assert summary["scan_auroc"] is None
    dice = [c["dice"] for c in cases if c.get("truth_voxels")]
    assert summary["dice_mean"] == (pytest.approx(np.mean(dice)) if dice else None)
    healthy = [c["false_positive_ml"] for c in cases if c["label"] == "healthy"]
    assert summary["healthy_false_positive_ml"] == (pytest.approx(np.mean(healthy)) if healthy else None)
