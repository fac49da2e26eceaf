"""docs/results.md says what the committed files say, and anyone can compute every figure again from the files."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from pipelines.pages import results
from pipelines.study.evaluate import all_figures

FILES = sorted(p for p in results.FOLDER.glob("*/*.json") if p.name not in results.OTHER)
COMPARISONS = sorted(results.FOLDER.glob("*/comparison.json"))


def name(path):
    return f"{path.parent.name}/{path.stem}"


def rows_of(result, number):
    return [
        [
            {k: v for k, v in row.items() if k != "run"}
            for row in result[key]
            if row["run"] == number
        ]
        for key in ("scans", "slices")
    ]


def test_there_are_results():
    assert FILES and COMPARISONS


def test_the_page_is_the_one_that_the_files_make():
    assert results.PAGE.read_text() == results.results_page()


def test_a_changed_number_changes_the_page(monkeypatch):
    real = results.read_json

    def doctored(path):
        content = real(path)
        if "figures" in content:
            content["figures"]["scan_auroc"] = {"mean": 0.123456, "sd": 0.1, "n": 2}
        return content

    monkeypatch.setattr(results, "read_json", doctored)
    assert results.results_page() != results.PAGE.read_text()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_scikit_learn_gets_the_ranking_figures_from_the_cases(path):
    result = json.loads(path.read_text())
    for number, run in enumerate(result["runs"]):
        scans, slices = rows_of(result, number)
        summary = run["summary"]
        known = [s for s in scans if s["label"] in ("healthy", "abnormal")]
        y, score = (
            np.array([s["label"] == "abnormal" for s in known]),
            np.array([s["score"] for s in known]),
        )
        if len(set(y)) < 2:
            assert summary["scan_auroc"] is None
            continue
        assert summary["scan_auroc"] == pytest.approx(roc_auc_score(y, score))
        assert summary["scan_ap"] == pytest.approx(average_precision_score(y, score))
        assert summary["f1"] == pytest.approx(f1_score(y, score > run["point"]["scan"]))
        for point, threshold in run["points"].items():
            if point in ("share", "few-label"):
                assert summary[f"f1_{point.replace('-', '_')}"] == pytest.approx(
                    f1_score(y, score > threshold)
                )
        if slices and result["protocol"]["slices"]:
            ill = {s["id"]: s["label"] == "abnormal" for s in known}
            every = [
                (ill[r["id"].rpartition("/")[0]], r)
                for r in slices
                if r["id"].rpartition("/")[0] in ill
            ]
            clinical = roc_auc_score([k for k, _ in every], [r["score"] for _, r in every])
            assert summary["clinical_slicewise_auroc"] == pytest.approx(clinical)
            own = [(k, r["score"]) for k, r in every if not k or r["label"] == 1]
            if len({k for k, _ in own}) == 2:
                assert summary["slicewise_auroc"] == pytest.approx(
                    roc_auc_score(*zip(*own, strict=True))
                )


@pytest.mark.parametrize("path", FILES, ids=name)
def test_numpy_gets_the_overlap_figures_from_the_cases(path):
    result = json.loads(path.read_text())
    for number, run in enumerate(result["runs"]):
        scans, _ = rows_of(result, number)
        ill = [s for s in scans if s.get("truth_voxels")]
        summary = run["summary"]
        assert summary["dice_mean"] == (
            pytest.approx(np.mean([s["dice"] for s in ill])) if ill else None
        )
        if ill:
            marked = sum(s["mask_voxels"] + s["truth_voxels"] for s in ill)
            assert summary["dice_pooled"] == pytest.approx(
                2 * sum(s["overlap_voxels"] for s in ill) / marked
            )
            edges, healthy, lesion = np.array(run["voxels"]).T[:, ::-1]  # highest scores first
            precision = np.cumsum(lesion) / np.cumsum(lesion + healthy)
            assert summary["voxel_ap"] == pytest.approx(np.sum(precision * lesion) / lesion.sum())
            assert summary["oracle_dice_pooled"] == pytest.approx(
                np.max(2 * np.cumsum(lesion) / (np.cumsum(lesion + healthy) + lesion.sum()))
            )
            assert (np.diff(edges) < 0).all()
        well = [s["false_positive_ml"] for s in scans if s["label"] == "healthy"]
        assert summary["healthy_false_positive_ml"] == (
            pytest.approx(np.mean(well)) if well else None
        )


@pytest.mark.parametrize("path", FILES, ids=name)
def test_norma_gets_every_figure_from_the_file(path):
    result = json.loads(path.read_text())
    for number, run in enumerate(result["runs"]):
        scans, slices = rows_of(result, number)
        again = all_figures(
            {
                "scans": scans,
                "slices": slices,
                "voxels": run["voxels"],
                "point": run["point"],
                "points": run["points"],
                "protocol": result["protocol"],
            }
        )
        for key, value in run["summary"].items():
            got = again["summary"][key]
            assert (value is None and np.isnan(got)) or got == pytest.approx(value, rel=1e-6), key
    for key, figure in result["figures"].items():
        values = [r["summary"][key] for r in result["runs"] if r["summary"][key] is not None]
        assert figure["mean"] == (pytest.approx(np.mean(values)) if values else None)
        if len(values) > 1:
            assert figure["sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)


@pytest.mark.parametrize("path", COMPARISONS, ids=name)
def test_every_model_of_a_comparison_has_its_file_and_its_figures(path):
    comparison = json.loads(path.read_text())
    for m in comparison["models"]:
        result = json.loads((path.parent / f"{m['model']}.json").read_text())
        assert (
            result["figures"] == m["figures"]
            and result["versions"]["commit"]
            and len(result["runs"]) == len(m["runs"])
        )
        assert (
            result["command"] == comparison["command"]
            and result["config"]["name"] == m["model"].partition("@")[0]
        )
        for run in result["runs"]:
            tested = {s["id"] for s in result["scans"] if s["run"] == result["runs"].index(run)}
            learned = {*run["training"]["train_scans"], *run["training"]["val_scans"]}
            own = result["data"].startswith(
                result["trained_on"]
            )  # elsewhere one id may name two people
            assert tested and learned and not (own and tested & learned)


def test_results_are_copied_as_they_are_and_other_folders_refused(tmp_path, monkeypatch):
    from preprocessing.scans import InputError

    monkeypatch.setattr(results, "FOLDER", tmp_path / "docs")
    source = tmp_path / "runs" / "ct"
    source.mkdir(parents=True)
    (source / "other_comparison.json").write_text('{"models": [{"model": "pca"}]}')
    (source / "other_pca.json").write_text('{"any": 1}')
    (source / "other_left_over.json").write_text("{}")
    results.add(source)
    assert {p.name for p in (tmp_path / "docs" / "other").iterdir()} == {
        "comparison.json",
        "pca.json",
    }
    assert (tmp_path / "docs" / "other" / "pca.json").read_text() == '{"any": 1}'
    cohort = tmp_path / "work" / "ct"
    cohort.mkdir(parents=True)
    (cohort / "preprocess.json").write_text('{"n_scans": 3}')
    results.add(cohort)
    assert json.loads((tmp_path / "docs" / "ct" / "preprocess.json").read_text()) == {"n_scans": 3}
    with pytest.raises(InputError, match=r"neither a \*_comparison\.json"):
        results.add(tmp_path / "work")


def test_what_is_recommended_is_what_was_measured():
    """The command of each choice gives the model and the healthy reference of the run whose figures stand beside it."""
    import shlex

    from pipelines.config import read_yaml
    from pipelines.detect.config import load_run_config

    for choice in read_yaml(results.CHOICES)["choices"]:
        parts = dict(part.split("=", 1) for part in shlex.split(choice["command"]))
        config = load_run_config(parts["MODEL"], parts.get("ARGS", "").split(), parts.get("PRESET"))
        measured = json.loads(
            (results.FOLDER / choice["measured"] / f"{choice['model']}.json").read_text()
        )["config"]
        assert config.name == measured["name"] == choice["model"].partition("@")[0]
        pairs = [(config, measured)]
        if config.name == "ensemble":
            members = [m["config"] for m in measured["model"]["members"]]
            assert (
                config.model["members"] == [m["name"] for m in members]
                and config.calibration.context == measured["calibration"]["context"]
            )
            pairs = [(load_run_config(m["name"], [], parts["PRESET"]), m) for m in members]
        for one, other in pairs:
            own = one.model_dump(mode="json")
            assert (
                own["model"] == {**other["model"], "channels": own["model"].get("channels")}
                or own["model"] == other["model"]
            )
            assert {k: own["reference"][k] for k in other["reference"]} == other["reference"]


def test_classes_and_sizes_of_the_page_are_means_over_runs_by_hand():
    def run(found, dice, voxel_ap):
        sizes = [
            {"from_ml": 1.0, "to_ml": 5.0, "n": 4, "sensitivity": found},
            {"from_ml": 5.0, "to_ml": None, "n": 0, "sensitivity": None},
        ]
        kind = {
            "class": "dark",
            "n": 2,
            "scan_auroc": 0.5,
            "slicewise_auroc": None,
            "dice_mean": dice,
            "voxel_ap_mean": voxel_ap,
        }
        return {"lesions_by_size": sizes, "classes": {"pathology": [kind]}}

    def scan(name, truth_ml, dice, voxel_ap):
        return {"id": name, "truth_ml": truth_ml, "dice": dice, "voxel_ap": voxel_ap}

    scans = [
        scan("a", 1.0, 0.2, 0.3),
        scan("b", 4.9, 0.4, None),
        scan("c", 5.0, 0.9, 0.8),
        scan("d", 0.0, None, None),
    ]
    again = [
        scan("a", 1.0, 0.6, 0.5),
        scan("b", 4.9, 0.0, None),
        scan("c", 5.0, 0.7, 0.8),
        scan("d", None, None, None),
    ]
    files = {"m": {"runs": [run(0.25, 0.3, 0.1), run(0.75, 0.5, None)], "scans": scans + again}}
    assert results._sizes(files, ["m"]).splitlines()[-2:] == [
        "| 1 to 5 ml | 4 | 2 | 0.500 / 0.300 / 0.400 |",
        "| from 5 ml | 0 | 1 | – / 0.800 / 0.800 |",
    ]
    assert (
        results._classes(files, ["m"], "pathology").splitlines()[-1]
        == "| dark | 2 | 0.500 / – / 0.400 / 0.100 |"
    )
