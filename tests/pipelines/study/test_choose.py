"""Choosing by synthetic lesions in healthy validation scans."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from pipelines.detect.folder import seal
from preprocessing.files import read_json, read_table, write_json
from tests.shared import run

pytestmark = pytest.mark.usefixtures("no_figures")

SMALL = [
    "image_size=[32,32]",
    "loop.loader_workers=0",
    "postprocess.rim_mm=0",
    "postprocess.median=0",
]


@pytest.fixture(scope="module")
def data(pictures):
    """The preprocessed pictures that all tests share."""
    return pictures / "heads"


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for name in ("zero", "intensity", "pca"):
        own = (
            ["model.mode=value", "model.tail=bright", "model.smooth=0"]
            if name == "intensity"
            else []
        )
        own += ["model.n_components=4"] if name == "pca" else []
        assert run("train", "--model", name, "--data", data, "--out", out / name, *SMALL, *own) == 0
    return out


def test_what_sees_lesions_is_ranked_above_what_sees_none(runs, data, tmp_path, capsys):
    names = [runs / n for n in ("zero", "pca", "intensity")]
    arguments = [
        "--data",
        data,
        "--runs",
        *names,
        "--kinds",
        "bright",
        "--volumes",
        "0.05,0.1",
        "--out",
        tmp_path / "table.tsv",
    ]
    assert run("choose", *arguments) == 0
    rows = read_table(tmp_path / "table.tsv")
    best = rows[0]
    assert (
        best["run"].endswith("intensity")
        and float(best["auroc"]) > 0.95
        and float(best["voxel_ap"]) > 0.8
    )
    zero = [r for r in rows if r["run"].endswith("zero")]
    assert {r["auroc"] for r in zero} == {"0.500"} and len(rows) == 30
    assert capsys.readouterr().out.splitlines()[0].startswith(best["run"])
    assert [float(r["auroc"]) for r in rows] == sorted(
        (float(r["auroc"]) for r in rows), reverse=True
    )
    about = read_json(tmp_path / "table.json")
    assert about["data"] == data.name and about["kinds"] == ["bright"] and about["validation_scans"]
    first = about["entries"][0]
    assert first["versions"]["numpy"]
    assert (
        first["run"] == best["run"]
        and f"{first['voxel_ap']:.3f}" == best["voxel_ap"]
        and "model.tail=bright" in first["trained_by"]
    )
    assert (
        first["voxel_ap_by_kind"] == {"bright": first["voxel_ap"]}
        and f"{first['scores'][best['score']]['auroc']:.3f}" == best["auroc"]
    )


def test_a_ranking_goes_on_where_it_stopped_and_sees_what_changed(
    runs, data, tmp_path, monkeypatch, capsys
):
    from pipelines.study import choose

    shutil.copytree(runs, tmp_path / "runs")
    names = [tmp_path / "runs" / n for n in ("intensity", "pca")]
    real = choose.score_planted
    seen = []
    arguments = [
        "--data",
        data,
        "--runs",
        *names,
        "--kinds",
        "bright",
        "--volumes",
        "0.05,0.1",
        "--out",
        tmp_path / "table.tsv",
    ]

    def interrupted(run, *rest):
        seen.append(run.folder.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(run, *rest)

    def counted(run, *rest):
        seen.append(run.folder.name)
        return real(run, *rest)

    monkeypatch.setattr(choose, "score_planted", interrupted)
    assert (
        run("choose", *arguments) == 130 and "what was finished is kept" in capsys.readouterr().err
    )
    monkeypatch.setattr(choose, "score_planted", counted)
    assert run("choose", *arguments) == 0 and seen == ["intensity", "pca", "pca"]
    table = (tmp_path / "table.tsv").read_text()
    assert (
        run("choose", *arguments) == 0
        and len(seen) == 3
        and (tmp_path / "table.tsv").read_text() == table
    )
    config = tmp_path / "runs" / "pca" / "config.yaml"
    config.write_text(config.read_text().replace("median: 0", "median: 3"))
    seal(tmp_path / "runs" / "pca")
    assert run("choose", *arguments) == 0 and seen[3:] == ["pca"]
    assert run("choose", *arguments, "--seed", 1) == 0 and seen[4:] == ["intensity", "pca"]


def test_scores_are_those_of_sorted_values_and_no_test_scan_is_read(runs, data):
    """The map of `intensity` by value is the picture itself at this size.

    So the scores can be had from the files.
    """
    from pipelines.detect.run import load_run
    from pipelines.study.choose import (
        Planting,
        planted_scans,
        ranking_entry,
        score_planted,
        validation_cases,
    )

    own = load_run(runs / "intensity", "cpu")
    rows = validation_cases(own.folder, data)
    assert rows and all(c.split == "val" and c.label == "healthy" for c in rows)
    planting = Planting(["bright", "dark"], (0.05, 0.1), 0)
    seen = score_planted(own, data, planting)
    assert (
        len(seen.healthy["map 1"]) == len(rows)
        and len(seen.planted["map 1"]) == 2 * len(rows)
        and seen.kinds == ["bright", "dark"] * len(rows)
    )
    cases = [(s.kind, s.image, s.brain, s.lesion) for s in planted_scans(rows, planting)]
    for kind, image, brain, lesion in cases:
        assert not kind or (
            lesion.any()
            and not lesion[~brain].any()
            and (image[lesion].mean() > image[brain & ~lesion].mean()) == (kind == "bright")
        )
    _, image, brain, _ = cases[0]
    values = np.sort(own.detector.atlas_map(image, brain)[brain])[::-1]
    assert seen.healthy["map 0.05"][0] == pytest.approx(
        values[: round(0.05 * values.size)].mean(), rel=1e-5
    )
    assert seen.healthy["map 1"][0] == pytest.approx(values.mean(), rel=1e-5)
    found = [(kind, own.detector.atlas_map(i, b)[b], t[b]) for kind, i, b, t in cases if kind]
    kinds_of = {"all": ("bright", "dark"), "bright": ("bright",), "dark": ("dark",)}
    ap = {}
    for what, kinds in kinds_of.items():
        truth = np.concatenate([inside for kind, _, inside in found if kind in kinds])
        values = np.concatenate([scores for kind, scores, _ in found if kind in kinds])
        ap[what] = average_precision_score(truth, values)
    summary = ranking_entry("x", [own.folder], [seen])
    assert summary["voxel_ap"] == pytest.approx(ap.pop("all"), abs=2e-3)
    assert (
        summary["voxel_ap_by_kind"] == pytest.approx(ap, abs=2e-3)
        and abs(ap["bright"] - ap["dark"]) > 0.1
    )


def test_runs_of_other_data_and_no_runs_are_refused(runs, data, tmp_path, capsys):
    assert run("choose", "--data", data, "--runs", tmp_path) == 2
    assert "no finished run in this folder" in capsys.readouterr().err
    shutil.copytree(data, tmp_path / "other")
    (tmp_path / "other" / "preprocess.json").unlink()  # it says how many rows were written
    table = (tmp_path / "other" / "scans.tsv").read_text().splitlines()
    (tmp_path / "other" / "scans.tsv").write_text(
        "\n".join(line for line in table if "\tval\t" not in line) + "\n"
    )
    assert run("choose", "--data", tmp_path / "other", "--runs", runs / "zero") == 2
    assert "validation scans of" in capsys.readouterr().err
    assert run("choose", "--data", data, "--runs", runs / "zero", "--kinds", "brigth") == 2
    assert "did you mean 'bright'" in capsys.readouterr().err
    assert run("choose", "--data", data, "--runs", runs / "zero", "--seed", -1) == 2
    assert "--seed: -1; expected 0 or a larger whole number" in capsys.readouterr().err


def test_a_kind_that_is_given_twice_is_planted_once():
    from pipelines.study.choose import planting_of

    assert planting_of("dark,bright,dark", None).kinds == ["dark", "bright"]


ASKED = ("--kinds", "bright", "--volumes", "0.05,0.1")


def test_a_ranking_has_its_own_folder_and_name(runs, data, tmp_path):
    asked = ("--data", data, "--runs", runs / "zero", *ASKED)
    folder = tmp_path / "missing" / "too"
    for name in ("ranking.v1", "ranking.v2", "plain", "table.tsv", "other.json"):
        assert run("choose", *asked, "--out", folder / name) == 0
    stems = ("other", "plain", "ranking.v1", "ranking.v2", "table")
    for suffix in ("json", "tsv"):
        found = sorted(path.name for path in folder.glob(f"*.{suffix}"))
        assert found == [f"{stem}.{suffix}" for stem in stems]


def test_a_folder_that_cannot_be_is_refused_before_the_scoring(
    runs, data, tmp_path, monkeypatch, capsys
):
    from pipelines.study import choose

    monkeypatch.setattr(choose, "score_planted", None)  # which is not called
    (tmp_path / "file").write_text("")
    asked = ("--data", data, "--runs", runs / "zero", *ASKED)
    assert run("choose", *asked, "--out", tmp_path / "file" / "ranking") == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["a list", "no run", "no figures", "no masks"])
def test_a_damaged_ranking_is_named(runs, data, tmp_path, capsys, damage):
    asked = ("--data", data, "--runs", runs / "zero", *ASKED, "--out", tmp_path / "list")
    assert run("choose", *asked) == 0
    path = tmp_path / "list.json"
    ranking = read_json(path)
    (entry,) = ranking["entries"]
    if damage == "no run":
        del entry["run"]
    elif damage == "no figures":
        del entry["voxel_ap"]
    else:
        entry["masks"] = []
    write_json(path, [] if damage == "a list" else ranking)
    capsys.readouterr()
    assert run("choose", *asked) == 2
    said = capsys.readouterr().err
    assert f"error: {path}: not a ranking of 'make choose', or a damaged one; delete it" in said


@pytest.mark.parametrize("damage", ["cut", "four"])
def test_a_damaged_preprocessed_scan_ends_choose_in_a_sentence_and_evaluate_goes_past_it(
    runs, data, tmp_path, capsys, damage
):
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(data.parent / "raw", tmp_path / "raw")  # where its tables look for the pictures
    rows = read_table(data / "scans.tsv")
    for split in ("val", "test"):
        path = tmp_path / "data" / next(r["preproc"] for r in rows if r["split"] == split)
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:300])
        else:
            image = nib.load(path)
            nib.save(
                nib.Nifti1Image(
                    np.stack([image.get_fdata(dtype=np.float32)] * 2, -1), image.affine
                ),
                path,
            )
    sentence = "truncated or damaged" if damage == "cut" else "expected a 3-D scan, got 4-D"
    assert (
        run(
            "choose",
            "--data",
            tmp_path / "data",
            "--runs",
            runs / "intensity",
            "--kinds",
            "bright",
            "--volumes",
            "0.05,0.1",
        )
        == 2
    )
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        said.startswith("error: ")
        and sentence in said
        and said.endswith("delete it and run 'make preprocess' again.")
    )
    assert (
        run(
            "evaluate",
            "--run",
            runs / "intensity",
            "--data",
            tmp_path / "data",
            "--out",
            tmp_path / "evaluation",
        )
        == 1
    )
    failures = read_json(tmp_path / "evaluation" / "evaluation.json")["failures"]
    assert len(failures) == 1 and sentence in str(failures[0])


def test_scans_can_be_scored_by_clusters(runs, data, tmp_path):
    """A run whose score is "cluster" scores a scan by the enhancement of its map.

    The map may be computed or read back.
    """
    from evaluation.postprocess import cluster_enhanced
    from pipelines.cohort.cases import read_cases
    from pipelines.detect.detector import scan_score
    from pipelines.detect.run import load_run

    assert (
        run(
            "train",
            "--model",
            "intensity",
            "--data",
            data,
            "--out",
            tmp_path / "run",
            *SMALL,
            "calibration.score=cluster",
        )
        == 0
    )
    own = load_run(tmp_path / "run", "cpu")
    plain = load_run(runs / "intensity", "cpu")
    case = read_cases(data)[0]
    for _ in range(2):
        found = own.detector.map_case(case, tmp_path / "maps", "w")
        enhanced = np.sort(cluster_enhanced(found.map, found.spacing)[found.brain])[::-1]
        assert scan_score(found, 0.01) == pytest.approx(
            enhanced[: round(0.01 * enhanced.size)].mean()
        )
    assert (
        plain.config.calibration.score == "map"
        and "cluster" in (tmp_path / "run" / "reference.json").read_text()
    )


def test_a_finished_run_is_left_alone_and_one_of_other_settings_refused(runs, data, capsys):
    """Loader workers change no result, so a run with others is the same run."""
    before = (runs / "zero" / "weights.pt").stat().st_mtime_ns
    again = ("train", "--model", "zero", "--data", data, "--out", runs / "zero", *SMALL)
    assert (
        run(*again, "loop.loader_workers=2") == 0
        and (runs / "zero" / "weights.pt").stat().st_mtime_ns == before
    )
    assert (
        run(*again, "loop.seed=5") == 2
        and "holds a run with other settings" in capsys.readouterr().err
    )
