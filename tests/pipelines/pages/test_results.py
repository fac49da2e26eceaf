"""The committed pages say what the committed files say, and every figure follows from the files."""

import re
import shlex
from functools import cache

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from evaluation.protocol import LABELS
from pipelines.config import read_yaml
from pipelines.detect.config import load_run_config
from pipelines.pages import results
from pipelines.pages.data_set import Remarks
from pipelines.pages.model_tables import HEADS, classes_text, sizes_text
from pipelines.study.evaluation import Evaluation, all_figures
from pipelines.study.results_file import SUMMARY, Results
from preprocessing.scans import InputError
from tests.pipelines.pages.made_results import made_results, made_run

FOLDERS = sorted(path.parent for path in results.FOLDER.glob(f"*/{SUMMARY}"))
HAND = {"remarks.md", "performance_remarks.md"}
every_comparison = pytest.mark.parametrize("folder", FOLDERS, ids=[f.name for f in FOLDERS])


@cache
def read(folder):
    return Results.read(folder)


@cache
def pages():
    return results.all_pages()


def test_there_are_results():
    assert len(FOLDERS) > 10
    assert set(results.read_measured()) >= set(read_yaml(results.CHOICES)["headline"])


def test_the_pages_are_those_that_the_files_make():
    for path, text in pages().items():
        assert path.read_text() == text, path.name
    written = {path for path in pages() if path.parent == results.FOLDER}
    assert {p for p in results.FOLDER.glob("*.md") if p.name not in HAND} == written


def test_a_changed_number_changes_both_pages(monkeypatch):
    measured = dict(results.read_measured())
    measured["ct_ich"].summary.models[0].figures["scan_auroc"].mean = 0.123456
    monkeypatch.setattr(results, "read_measured", lambda: measured)
    changed = results.all_pages()
    for path in (results.PAGE, results.FOLDER / "ct_ich.md"):
        assert changed[path] != pages()[path] and "0.123" in changed[path]


def test_results_stay_small():
    size = sum(p.stat().st_size for p in results.FOLDER.rglob("*") if p.is_file())
    assert size < 16e6


@every_comparison
def test_the_tables_are_those_that_the_summary_was_written_with(folder):
    read(folder).check()
    for name, table in read(folder).summary.tables.items():
        packed = (folder / name).read_bytes()
        assert packed[3] == 0 and packed[4:8] == bytes(4), "a gzip header with a name or a time"
        assert table.rows >= 0


@pytest.mark.slow
@every_comparison
def test_scikit_learn_gets_the_ranking_figures_from_the_columns(folder):
    found = read(folder)
    for run in found.summary.runs:
        summary = run.summary
        cases = [c for c in found.cases_of(run) if c["label"] in ("healthy", "abnormal")]
        y = np.array([c["label"] == "abnormal" for c in cases])
        score = np.array([c["score"] for c in cases])
        if len(set(y)) < 2:
            assert summary["scan_auroc"] is None
            continue
        assert summary["scan_auroc"] == pytest.approx(roc_auc_score(y, score))
        assert summary["scan_ap"] == pytest.approx(average_precision_score(y, score))
        assert summary["f1"] == pytest.approx(f1_score(y, score > run.point.scan))
        for point in {"share", "few-label"} & {*run.points}:
            f1 = f1_score(y, score > run.points[point])
            assert summary[f"f1_{point.replace('-', '_')}"] == pytest.approx(f1)
        if found.summary.protocol.slices:
            check_slices(found, run, {c["id"]: c["label"] == "abnormal" for c in cases})


def check_slices(found, run, abnormal):
    """Both readings of slices; `abnormal` by the id of a scan."""
    y: list[bool] = []
    slicewise: list[bool] = []
    score: list[float] = []
    for row in found.slices_of(run):
        scan = row["id"].rpartition("/")[0]
        if scan in abnormal:
            y.append(abnormal[scan])
            slicewise.append(not abnormal[scan] or row["label"] == 1)
            score.append(row["score"])
    summary = run.summary
    assert summary["clinical_slicewise_auroc"] == pytest.approx(roc_auc_score(y, score))
    assert summary["clinical_slicewise_ap"] == pytest.approx(average_precision_score(y, score))
    known = np.array(y)[slicewise]
    if len(set(known)) == 2:
        auroc = roc_auc_score(known, np.array(score)[slicewise])
        ap = average_precision_score(known, np.array(score)[slicewise])
        assert summary["slicewise_auroc"] == pytest.approx(auroc)
        assert summary["slicewise_ap"] == pytest.approx(ap)


@pytest.mark.slow
@every_comparison
def test_numpy_gets_the_overlap_figures_from_the_columns(folder):
    found = read(folder)
    for run in found.summary.runs:
        summary = run.summary
        cases = found.cases_of(run)
        ill = [c for c in cases if c["truth_voxels"]]
        dice = pytest.approx(np.mean([c["dice"] for c in ill])) if ill else None
        assert summary["dice_mean"] == dice
        if ill:
            check_voxels(summary, ill, found.voxels_of(run))
        well = [c["false_positive_ml"] for c in cases if c["label"] == "healthy"]
        falsely = pytest.approx(np.mean(well)) if well else None
        assert summary["healthy_false_positive_ml"] == falsely


def check_voxels(summary, ill, voxels):
    """Pooled Dice, voxel AP, oracle Dice, voxel AUROC, lesions found and how precisely."""
    marked = sum(c["mask_voxels"] + c["truth_voxels"] for c in ill)
    pooled = 2 * sum(c["overlap_voxels"] for c in ill) / marked
    assert summary["dice_pooled"] == pytest.approx(pooled)

    edges, healthy, lesion = np.array(voxels).T[:, ::-1]  # highest scores first
    assert (np.diff(edges) < 0).all()
    hits = np.cumsum(lesion)
    size = np.cumsum(lesion + healthy)
    assert summary["voxel_ap"] == pytest.approx(np.sum(hits / size * lesion) / lesion.sum())
    assert summary["oracle_dice_pooled"] == pytest.approx(np.max(2 * hits / (size + hits[-1])))
    y = np.repeat([0, 1], len(edges))
    auroc = roc_auc_score(y, [*edges, *edges], sample_weight=[*healthy, *lesion])
    assert summary["voxel_auroc"] == pytest.approx(auroc)

    lesions: list[bool] = []
    components: list[bool] = []
    for case in ill:
        lesions += [found["score"] > 0 for found in case["lesions"]]
        components += [found["true"] for found in case["candidates"]]
    assert summary["lesion_sensitivity"] == pytest.approx(np.mean(lesions))
    precision = pytest.approx(np.mean(components)) if components else None
    assert summary["lesion_precision"] == precision


@pytest.mark.slow
@every_comparison
def test_norma_gets_every_figure_from_the_columns(folder):
    found = read(folder)
    for run in found.summary.runs:
        again = all_figures(
            Evaluation.model_construct(
                scans=found.cases_of(run),
                slices=found.slices_of(run),
                voxels=found.voxels_of(run),
                others=found.others_of(run),
                point=run.point,
                points=run.points,
                protocol=found.summary.protocol.model_dump(),
            )
        )
        for key, value in run.summary.items():
            got = again["summary"][key]
            assert (value is None and np.isnan(got)) or got == pytest.approx(value, rel=1e-6), key
        for size, other in zip(run.lesions_by_size, again["lesions_by_size"], strict=True):
            assert (size.n, size.detected) == (other["n"], other["detected"])
        for column, classes in run.classes.items():
            others = again["classes"][column]
            assert [(c.name, c.n, c.n_slices) for c in classes] == [
                (other["class"], other["n"], other["n_slices"]) for other in others
            ]


@every_comparison
def test_figures_are_means_over_runs_of_scans_that_were_not_learned_from(folder):
    found = read(folder)
    summary = found.summary
    assert summary.versions["commit"] and summary.baseline in found.names()
    own_data = summary.data.startswith(summary.trained_on)  # elsewhere an id may name two people
    for name in found.names():
        runs = found.runs(name)
        entry = found.model(name)
        model = runs[0].chosen or name
        assert entry.config["name"] == model.partition("@")[0]
        assert [run.run for run in runs] == list(range(len(runs))) and runs
        for key, figure in entry.figures.items():
            values = [run.summary[key] for run in runs if run.summary[key] is not None]
            assert figure.n == len(values)
            assert figure.mean == (pytest.approx(np.mean(values)) if values else None)
            if len(values) > 1:
                assert figure.sd == pytest.approx(np.std(values, ddof=1), abs=1e-12)
        for run in runs:
            setup = found.setup(run)
            tested = {case["id"] for case in found.cases_of(run)}
            learned = {*setup.train_scans, *setup.val_scans}
            assert tested and learned and not (own_data and tested & learned)


def test_every_figure_of_the_protocol_has_a_place_in_the_tables():
    assert set(HEADS) == set(LABELS)


def test_no_page_shows_a_machine_name_or_a_long_cell():
    for path, text in pages().items():
        names = [key for key in LABELS if "_" in key and re.search(rf"\b{key}\b", text)]
        assert not names, f"{path.name}: {names}"
        for line in text.splitlines():
            if line.startswith("|"):
                cells = re.sub(r"`[^`]*`", "code", line).split("|")
                assert max(len(cell.split()) for cell in cells) < 15, f"{path.name}: {line[:90]}"


@every_comparison
def test_the_tables_in_remarks_hold_figures_of_the_files(folder):
    """A row that begins with a model of the comparison holds its figures, or those of its `@z`.

    Figures of others stand in brackets, or in a column whose head names them.
    """
    found = read(folder)
    heads = []
    for line in Remarks.read(folder).text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = cells
        elif cells[0].strip("`") in found.names():
            model = cells[0].strip("`")
            known = figures_of(found, model) | figures_of(found, f"{model}@z")
            for head, cell in zip(heads, cells, strict=True):
                own = re.sub(r"\([^)]*\)", "", cell)
                if "of the slides" not in head:
                    assert set(re.findall(r"\d+\.\d{3}", own)) <= known, f"{line} ({head})"


def figures_of(found, model):
    if model not in found.names():
        return set()
    means = [figure.mean for figure in found.model(model).figures.values()]
    return {f"{mean:.3f}" for mean in means if mean is not None}


def test_a_results_folder_reads_as_it_was_written(tmp_path):
    lesion = {"volume_ml": 1.25, "covered": 0.1, "score": 0.0, "strength": 2.5}
    marked = {"volume_ml": 0.206, "score": 0.4070925, "true": False}
    healthy = {"id": "001", "subject": "001", "label": "healthy", "pathology": "", "score": 1e-07}
    ill = {
        "id": "a, b",
        "subject": "x",
        "label": "abnormal",
        "pathology": 'an "ill" one',
        "site": "7",
        "score": 0.4935675,
        "brain_voxels": 1099369,
        "truth_voxels": 3,
        "truth_ml": 0.1 + 0.2,
        "dice": None,
        "lesions": [lesion],
        "candidates": [marked, marked | {"true": True}],
        "outlined": [marked | {"score": 0.2}],
    }
    slices = [{"id": "001/18", "label": None, "score": 0.0}, {"id": "001/2", "label": 1}]
    voxels = [[0.0, 7573744, 1440], [5.768602262534728e-10, 1, 0]]
    others = [[0.0, 900], [2.5, 4]]
    run = made_run(scans=[healthy, ill], slices=slices, voxels=voxels, others=others)
    other = made_run(scans=[healthy], voxels=[[0.0, 1, 0]], seed=1)
    found = made_results(tmp_path / "set", {"a": [run, other], "a@z": [made_run(scans=[healthy])]})
    first, second = found.runs("a")
    back = [drop_empty(case) for case in found.cases_of(first)]
    assert back == [drop_empty(healthy), drop_empty(ill)]
    assert isinstance(back[1]["brain_voxels"], int) and isinstance(back[1]["truth_ml"], float)
    assert [drop_empty(row) for row in found.slices_of(first)] == list(map(drop_empty, slices))
    assert found.voxels_of(first) == voxels and found.voxels_of(second) == [[0.0, 1, 0]]
    assert found.others_of(first) == others and found.others_of(second) == []
    assert found.setup(first) == found.setup(second) and len(found.summary.setups) == 1
    assert [run.seed for run in found.runs("a")] == [0, 1] and found.names() == ["a", "a@z"]

    written = {path: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    made_results(tmp_path / "set", {"a": [run, other], "a@z": [made_run(scans=[healthy])]})
    assert written == {path: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    assert len(written) == 5


def drop_empty(row):
    return {key: value for key, value in row.items() if value not in (None, "")}


def test_a_folder_that_cannot_be_read_says_why(tmp_path):
    found = made_results(tmp_path / "set", {"a": [made_run(voxels=[[0.0, 1, 0]])]})
    with pytest.raises(InputError, match=r"no model 'b', only a"):
        found.model("b")
    table = tmp_path / "set" / "voxels.csv.gz"
    other = made_results(tmp_path / "other", {"a": [made_run(voxels=[[0.0, 2, 0]])]})
    table.write_bytes((other.folder / table.name).read_bytes())
    with pytest.raises(InputError, match=r"voxels.csv.gz: not the table that summary.json was"):
        found.check()
    table.write_bytes(b"cut")
    with pytest.raises(InputError, match=r"voxels.csv.gz: not a readable gzip file"):
        found.voxels_of(found.summary.runs[0])
    path = tmp_path / "set" / SUMMARY
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(InputError, match=r"results of format 2; this version of Norma reads up"):
        Results.read(tmp_path / "set")
    path.write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"summary.json: damaged at 'name': field required"):
        Results.read(tmp_path / "set")


def test_results_are_copied_as_they_are_and_other_folders_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "docs")
    source = tmp_path / "runs" / "ct"
    made_results(source / "other_results", {"pca": [made_run()]}, name="other")
    (source / "other_results" / "left_over.txt").write_text("")
    results.add(source)
    copied = {p.name: p.read_bytes() for p in (tmp_path / "docs" / "other").iterdir()}
    assert len(copied) == 5 and "left_over.txt" not in copied
    for name, content in copied.items():
        assert content == (source / "other_results" / name).read_bytes()

    cohort = tmp_path / "work" / "ct"
    cohort.mkdir(parents=True)
    (cohort / "preprocess.json").write_text('{"n_scans": 3}')
    results.add(cohort)
    assert (tmp_path / "docs" / "ct" / "preprocess.json").read_text() == '{"n_scans": 3}'
    evaluated = tmp_path / "runs" / "ready_ct"
    evaluated.mkdir()
    measured = (results.RESULTS / "ready_ct.json").read_text()
    (evaluated / "evaluation.json").write_text(measured)
    results.add(evaluated)
    assert (tmp_path / "docs" / "ready_ct.json").read_text() == measured
    with pytest.raises(InputError, match=r"neither a \*_results folder of 'make compare', nor a"):
        results.add(tmp_path / "work")

    made_results(source / "cut_results", {"pca": [made_run(voxels=[[0.0, 1, 0]])]}, name="cut")
    table = source / "cut_results" / "voxels.csv.gz"
    table.write_bytes((source / "other_results" / "voxels.csv.gz").read_bytes())
    with pytest.raises(InputError, match=r"not the table that summary.json was written with"):
        results.add(source)
    assert not (tmp_path / "docs" / "cut").exists()


def test_what_is_recommended_is_what_was_measured():
    """The command of each choice gives the settings of the run whose figures stand beside it."""
    for choice in read_yaml(results.CHOICES)["choices"]:
        parts = dict(part.split("=", 1) for part in shlex.split(choice["command"]))
        config = load_run_config(parts["MODEL"], parts.get("ARGS", "").split(), parts.get("PRESET"))
        measured = read(results.FOLDER / choice["measured"]).model(choice["model"]).config
        assert config.name == measured["name"] == choice["model"].partition("@")[0]
        pairs = [(config, measured)]
        if config.name == "ensemble":
            members = [m["config"] for m in measured["model"]["members"]]
            assert config.model["members"] == [m["name"] for m in members]
            assert config.calibration.context == measured["calibration"]["context"]
            pairs = [(load_run_config(m["name"], [], parts["PRESET"]), m) for m in members]
        for one, other in pairs:
            own = one.model_dump(mode="json")
            same_channels = {**other["model"], "channels": own["model"].get("channels")}
            assert own["model"] in (same_channels, other["model"])
            assert {k: own["reference"][k] for k in other["reference"]} == other["reference"]


def test_classes_and_sizes_of_the_page_are_means_over_runs_by_hand(tmp_path):
    def run(found, dice, voxel_ap, scans):
        sizes = [
            {"from_ml": 1.0, "to_ml": 5.0, "n": 4, "detected": 4 * found, "sensitivity": found},
            {"from_ml": 5.0, "to_ml": None, "n": 0, "detected": 0, "sensitivity": None},
        ]
        kind = {
            "class": "dark",
            "n": 2,
            "n_slices": 0,
            "scan_auroc": 0.5,
            "slicewise_auroc": None,
            "dice_mean": dice,
            "voxel_ap_mean": voxel_ap,
        }
        return made_run(lesions_by_size=sizes, classes={"pathology": [kind]}, scans=scans)

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
    runs = [run(0.25, 0.3, 0.1, scans), run(0.75, 0.5, None, again)]
    found = made_results(tmp_path / "set", {"m": runs})
    assert [line for line in sizes_text(found).splitlines() if line.startswith("| ")] == [
        "| model | 1 to 5 ml, 4 lesions |",
        "| `m` | 0.500 |",
        "| model | 1 to 5 ml, 2 scans | from 5 ml, 1 scan |",
        "| `m` | 0.300 | 0.800 |",
        "| model | 1 to 5 ml, 2 scans | from 5 ml, 1 scan |",
        "| `m` | 0.400 | 0.800 |",
    ]
    assert [line for line in classes_text(found, "pathology").splitlines() if "`m`" in line] == [
        "| `m` | 0.500 |",
        "| `m` | 0.400 |",
        "| `m` | 0.100 |",
    ]


def test_scans_and_lesions_of_all_folds_are_counted_once(tmp_path):
    """Two repeats of two folds: 4 and 1 lesions, of which 1 and 1, then 3 and 0 are found."""

    def run(repeat, fold, n, detected):
        sizes = [{"from_ml": 0.0, "to_ml": None, "n": n, "detected": detected}]
        sizes[0]["sensitivity"] = detected / n
        kind = dict.fromkeys(("scan_auroc", "slicewise_auroc", "dice_mean", "voxel_ap_mean"), 0.5)
        kind |= {"class": "dark", "n": n, "n_slices": 0}
        return made_run(
            repeat=repeat,
            fold=fold,
            lesions_by_size=sizes,
            found_at_1_by_size=sizes,
            classes={"pathology": [kind]},
        )

    runs = [run(0, 0, 4, 1), run(0, 1, 1, 1), run(1, 0, 4, 3), run(1, 1, 1, 0)]
    found = made_results(tmp_path / "set", {"m": runs})
    text = sizes_text(found)
    assert text.count("| model | from 0 ml, 5 lesions |") == 2
    assert text.count("| `m` | 0.500 |") == 2  # 5 of 10, where the mean of the shares is 0.5625
    assert "#### Share of lesions found at 1 false finding per scan" in text
    assert "| model | dark, 5 scans |" in classes_text(found, "pathology")
