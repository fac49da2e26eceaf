"""The chain as a user runs it, on three small virtual subjects.

Preprocess, train, infer and evaluate agree with each other.
"""

import json

import nibabel as nib
import numpy as np
import pytest

import norma
from pipelines.config import ROOT
from preprocessing.files import read_table
from tests.shared import FIT, GRID, TINY, draw_nothing, run


def test_preprocessing_writes_what_it_promises(chain):
    data = chain / "data"
    rows = read_table(data / "scans.tsv")
    assert [r["split"] for r in rows] == ["train", "val", "test", "test"] and len(
        read_table(data / "failures.tsv")
    ) == 0
    for row in rows:
        image = nib.load(data / row["preproc"])
        brain = nib.load(data / row["brain"])
        assert image.shape == brain.shape == GRID
        np.testing.assert_allclose(image.header.get_zooms(), 1, atol=1e-6)
        values = image.get_fdata()
        inside = brain.get_fdata() > 0
        assert image.get_data_dtype() == np.float32 and brain.get_data_dtype() == np.uint8
        assert values.min() >= 0 and values.max() <= 1 and not values[~inside].any()
        side = json.loads((data / row["sidecar"]).read_text())
        np.testing.assert_allclose(
            np.linalg.det(np.array(side["world"])[:3, :3]), 1, atol=1e-9
        )  # rigid
        assert all(c["passed"] for c in side["checks"]) and side["brain_method"] == "none"
        z = [
            int(r["z"]) for r in read_table(data / "slices" / "index.tsv") if r["scan"] == row["id"]
        ]
        assert z == np.flatnonzero(inside.sum((0, 1)) >= 10).tolist()
        exported = sorted((data / "slices" / "nifti" / row["id"]).iterdir())
        assert len(exported) == len(z)
        np.testing.assert_allclose(
            nib.load(exported[10]).get_fdata()[:, :, 0], values[:, :, z[10]], atol=1e-6
        )
        stored = np.load(data / "slices" / f"{row['id']}_image.npy", mmap_mode="r")
        np.testing.assert_allclose(stored[10, 0], values[:, :, z[10]], atol=1e-3)
    page = (data / "quality.html").read_text()
    assert (
        all(r["id"] in page for r in rows)
        and "not a medical device" in page
        and page.count("data:image/png") == 4
    )


def test_a_virtual_head_lands_where_the_generator_put_it(chain):
    """Registration finds the pose that was drawn, within what deformation and size leave open."""
    rows = read_table(chain / "data" / "scans.tsv")
    drawn = {
        s["id"]: s for s in json.loads((chain / "cohort" / "cohort.json").read_text())["subjects"]
    }
    from scipy.spatial.transform import Rotation

    for row in rows:
        world = np.array(json.loads((chain / "data" / row["sidecar"]).read_text())["world"])
        want = Rotation.from_euler("xyz", drawn[row["subject"]]["rotation_degrees"], degrees=True)
        apart = np.degrees((Rotation.from_matrix(world[:3, :3]) * want.inv()).magnitude())
        assert apart < 4, f"{row['id']}: {apart:.1f} degrees from the drawn pose"
        centre = np.array([0, -18, 8, 1.0])
        assert (
            np.linalg.norm((world @ centre)[:3] - centre[:3] - drawn[row["subject"]]["shift_mm"])
            < 5
        )


def test_a_second_run_skips_what_is_unchanged(chain, monkeypatch):
    from pipelines.cohort import store

    before = {p: p.stat().st_mtime_ns for p in (chain / "data").rglob("*_desc-preproc_*.nii.gz")}
    monkeypatch.setattr(
        store, "prepare", lambda *a: pytest.fail("a scan that is done was prepared again")
    )
    assert (
        run(
            "preprocess",
            "--input",
            chain / "cohort" / "cohort.tsv",
            "--modality",
            "t1",
            "--out",
            chain / "data",
            *FIT,
        )
        == 0
    )
    assert before == {p: p.stat().st_mtime_ns for p in before} and len(before) == 4


def test_changed_settings_or_input_are_not_taken_for_done(chain):
    from pipelines.cohort.store import fingerprint
    from pipelines.config import load_recipe
    from preprocessing.tables import read_scans

    one, two, *_ = read_scans(chain / "cohort" / "cohort.tsv", "t1")
    recipe = load_recipe("t1")
    keys = {
        fingerprint(one, recipe),
        fingerprint(two, recipe),
        fingerprint(one, load_recipe("t1", ["n4=true"])),
    }
    assert len(keys) == 3 and fingerprint(one, recipe) in keys


def test_a_finished_run_holds_all_that_inference_needs(chain):
    from pipelines.detect.run import load_run

    loaded = load_run(chain / "run", "cpu")
    assert loaded.config.model["channels"] == [4, 8, 8] and loaded.recipe.modality == "t1"
    about = json.loads((chain / "run" / "run.json").read_text())
    assert about["train_scans"] == ["sub-001"] and about["val_scans"] == ["sub-201"]
    assert (
        run("train", "--model", "vae_cr", "--data", chain / "data", "--out", chain / "run", *TINY)
        == 0
    )  # at once: it is finished
    assert (
        run(
            "train",
            "--model",
            "vae_cr",
            "--data",
            chain / "data",
            "--out",
            chain / "run",
            *TINY,
            "loop.seed=5",
        )
        == 2
    )


def test_the_closed_form_part_sees_every_training_slice_once(chain, tmp_path, monkeypatch):
    from models.vae_cr import VaeCr

    seen = []
    monkeypatch.setattr(
        VaeCr, "fit_reference", lambda self, batches: seen.extend(len(b["image"]) for b in batches)
    )
    assert (
        run("train", "--model", "vae_cr", "--data", chain / "data", "--out", tmp_path, *TINY) == 0
    )
    slices = [
        r for r in read_table(chain / "data" / "slices" / "index.tsv") if r["split"] == "train"
    ]
    assert sum(seen) == len(slices)


def test_the_outline_is_the_quantile_of_healthy_validation_voxels(chain):
    from pipelines.cohort.cases import load, read_cases
    from pipelines.detect.detector import top_mean
    from pipelines.detect.run import load_run

    loaded = load_run(chain / "run", "cpu")
    case = next(c for c in read_cases(chain / "data") if c.split == "val")
    native = loaded.detector.map(load(case))
    values = np.sort(native.map[native.brain])
    assert loaded.threshold == pytest.approx(np.quantile(values, 0.998), rel=2e-3)
    quantile = loaded.points["quantile"].voxel
    assert quantile == pytest.approx(np.quantile(values, 0.99), rel=2e-3)
    n = round(0.01 * values.size)
    assert loaded.healthy_scores.tolist() == [pytest.approx(values[-n:].mean(), rel=1e-5)]
    assert (
        top_mean(np.array([1.0, 5, 3, 2]), 0.5) == 4
        and top_mean(np.array([]), 0.5) == 0
        and top_mean(np.array([1.0, 5]), 0.01) == 5
    )


@pytest.fixture(scope="session")
def inferred(chain):
    test = chain / "cohort" / "test.tsv"
    lines = (chain / "cohort" / "cohort.tsv").read_text().splitlines()
    test.write_text("\n".join([lines[0], *[line for line in lines if "\ttest\t" in line]]) + "\n")
    assert run("infer", "--run", chain / "run", "--input", test, "--out", chain / "out") == 0
    return chain / "out"


def test_inference_answers_on_the_scan_s_own_grid(chain, inferred):
    for row in read_table(chain / "cohort" / "test.tsv"):
        scan = nib.load(chain / "cohort" / row["image"])
        mask, anomaly = (
            nib.load(inferred / f"{row['subject']}_{kind}.nii.gz") for kind in ("mask", "map")
        )
        for image, dtype in ((mask, np.uint8), (anomaly, np.float32)):
            assert image.shape == scan.shape and image.get_data_dtype() == dtype
            np.testing.assert_array_equal(image.affine, scan.affine)
            for code in ("qform_code", "sform_code"):
                assert image.header[code] == scan.header[code]
        assert set(np.unique(mask.get_fdata())) <= {0, 1} and anomaly.get_fdata().min() >= 0
        brain = scan.get_fdata() != 0
        assert anomaly.get_fdata()[brain].any() and (anomaly.get_fdata()[~brain] > 0).mean() < 0.01


def test_the_version_stands_in_run_and_changelog(chain):
    assert (
        json.loads((chain / "run" / "run.json").read_text())["versions"]["norma"]
        == norma.__version__
    )
    assert f"## {norma.__version__} - " in (ROOT / "CHANGELOG.md").read_text()


def test_the_report_says_what_the_mask_shows(chain, inferred):
    from scipy import ndimage

    for row in read_table(inferred / "scores.tsv"):
        report = json.loads((inferred / f"{row['id']}_report.json").read_text())
        mask = nib.load(inferred / f"{row['id']}_mask.nii.gz")
        anomaly = nib.load(inferred / f"{row['id']}_map.nii.gz").get_fdata()
        voxel = abs(np.linalg.det(mask.affine[:3, :3]))
        marked = np.asarray(mask.dataobj) > 0
        assert report["status"] == "scored" and "not a medical device" in report["notice"]
        assert report["norma"] == norma.__version__
        assert report["anomalous_mm3"] == pytest.approx(marked.sum() * voxel, rel=1e-4)
        labels, n = ndimage.label(marked, np.ones((3, 3, 3)))
        assert report["n_components"] == n
        sizes = sorted(np.bincount(labels.ravel())[1:] * voxel, reverse=True)
        np.testing.assert_allclose(
            [c["volume_mm3"] for c in report["components"]], sizes[:20], rtol=1e-4
        )
        assert all(size >= 50 for size in sizes)
        top = np.unravel_index(anomaly.argmax(), anomaly.shape)
        assert report["maximum"]["value"] == pytest.approx(anomaly.max(), rel=1e-5)
        np.testing.assert_allclose(
            report["maximum"]["mm"], (mask.affine @ [*top, 1])[:3], atol=0.01
        )
        world = np.array(
            json.loads((chain / "data" / row["id"] / f"{row['id']}_preproc.json").read_text())[
                "world"
            ]
        )
        np.testing.assert_allclose(
            world @ [*report["maximum"]["atlas_mm"], 1], [*report["maximum"]["mm"], 1], atol=0.2
        )
        assert 0 <= report["percentile"] <= 100


def test_infer_from_the_raw_scan_equals_evaluate_from_the_preprocessed_one(chain, inferred):
    code = run(
        "evaluate", "--run", chain / "run", "--data", chain / "data", "--out", chain / "evaluation"
    )
    assert code == 0
    result = json.loads((chain / "evaluation" / "evaluation.json").read_text())
    assert {c["id"] for c in result["scans"]} == {"sub-301", "sub-401"}
    for case in result["scans"]:
        report = json.loads((inferred / f"{case['id']}_report.json").read_text())
        assert case["score"] == pytest.approx(report["score"], rel=1e-3)
        assert case["marked_ml"] * 1000 == pytest.approx(report["anomalous_mm3"], rel=0.02, abs=20)
    ill = next(c for c in result["scans"] if c["label"] == "abnormal")
    mask, truth = (
        np.asarray(nib.load(p).dataobj) > 0
        for p in (
            inferred / "sub-401_mask.nii.gz",
            chain / "cohort/sub-401/sub-401_lesion_mask.nii.gz",
        )
    )
    by_hand = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    assert ill["dice"] == pytest.approx(by_hand, abs=0.02)
    assert result["summary"]["dice_mean"] == ill["dice"] and result["summary"][
        "dice_pooled"
    ] == pytest.approx(ill["dice"])
    assert result["summary"]["oracle_dice_pooled"] >= ill["dice"] - 0.02
    healthy = next(c for c in result["scans"] if c["label"] == "healthy")
    assert healthy["dice"] is None and healthy["false_positive_ml"] == pytest.approx(
        healthy["marked_ml"]
    )
    page = (chain / "evaluation" / "index.html").read_text()
    assert (
        "oracle" in page
        and "chosen with the test labels" in page
        and page.count("data:image/png") == 9
    )


def test_data_of_another_intensity_scale_is_refused_and_other_limits_are_not(
    chain, tmp_path, capsys
):
    recipe = (chain / "data" / "recipe.yaml").read_text()
    (tmp_path / "scans.tsv").write_text("id\tsplit\n")
    (tmp_path / "recipe.yaml").write_text(recipe.replace("high: 95.0", "high: 99.0"))
    assert run("evaluate", "--run", chain / "run", "--data", tmp_path) == 2
    assert "preprocessed with another intensity than the scans of" in capsys.readouterr().err
    (tmp_path / "recipe.yaml").write_text(recipe.replace("min_overlap: 0.65", "min_overlap: 0.6"))
    assert run("evaluate", "--run", chain / "run", "--data", tmp_path) == 2
    assert "no scans in split 'test'" in capsys.readouterr().err


def test_the_threshold_can_be_given_and_the_map_cut_again(chain, inferred):
    from evaluation.postprocess import binarise

    scan = chain / "cohort" / "sub-401" / "sub-401_T1w.nii.gz"
    out = chain / "recut"
    assert (
        run("infer", "--run", chain / "run", "--input", scan, "--out", out, "--point", "fixed=0.4")
        == 0
    )
    one, two = (nib.load(folder / "sub-401_map.nii.gz") for folder in (inferred, out))
    np.testing.assert_allclose(one.get_fdata(), two.get_fdata(), atol=2e-3)
    values = np.asarray(two.dataobj)
    again = binarise(values, values >= 0, two.header.get_zooms()[:3], 0.4, 2, 50)
    mask = np.asarray(nib.load(out / "sub-401_mask.nii.gz").dataobj) > 0
    assert (again != mask).sum() <= 0.01 * max(mask.sum(), 100)
    assert json.loads((out / "sub-401_report.json").read_text())["threshold"] == 0.4


def test_another_operating_point_recuts_the_maps_without_the_network(chain, monkeypatch, capsys):
    """Every point of the table, from stored maps.

    The thresholds follow the rules, counted by hand from the maps.
    """
    import pipelines.detect.detector as scoring

    draw_nothing(monkeypatch)
    assert (
        run(
            "evaluate",
            "--run",
            chain / "run",
            "--data",
            chain / "data",
            "--out",
            chain / "evaluation",
        )
        == 0
    )
    again = lambda *a: pytest.fail("a map was made again")  # noqa: E731
    monkeypatch.setattr(scoring.Detector, "atlas_map", again)
    maps = {
        r["id"]: nib.load(chain / "evaluation" / "maps" / f"{r['id']}_map.nii.gz").get_fdata()
        for r in read_table(chain / "data/scans.tsv")
        if r["split"] == "test"
    }
    stored = json.loads((chain / "run" / "threshold.json").read_text())["points"]
    seen = {}
    for point in ("share", "quantile=0.95", "fixed=0.25", "oracle"):
        assert (
            run(
                "evaluate",
                "--run",
                chain / "run",
                "--data",
                chain / "data",
                "--out",
                chain / "evaluation",
                "--point",
                point,
            )
            == 0
        )
        seen[point] = json.loads((chain / "evaluation" / "evaluation.json").read_text())
    assert seen["share"]["point"] == stored["share"]
    assert (
        seen["quantile=0.95"]["point"]["voxel"] < stored["quantile"]["voxel"]
        and seen["fixed=0.25"]["point"]["voxel"] == 0.25
    )
    case = next(s for s in seen["fixed=0.25"]["scans"] if s["id"] == "sub-401")
    assert case["above_voxels"] == (maps["sub-401"] > 0.25).sum()
    assert (
        seen["oracle"]["summary"]["f1"] == seen["oracle"]["summary"]["oracle_f1"] == 1
    )  # one scan of each kind
    assert "oracle" not in stored and "not achievable" in seen["oracle"]["point"]["rule"]
    for bad, sentence in (
        ("median", "unknown operating point 'median'; known: finding"),
        ("fixed", "needs a value"),
        ("quantile=2", "between 0 and 1"),
        ("conformal", "needs at least 9 healthy validation scans, there are 1"),
        ("few-label", "no abnormal scan was in split 'tune'"),
    ):
        assert (
            run(
                "evaluate",
                "--run",
                chain / "run",
                "--data",
                chain / "data",
                "--out",
                chain / "evaluation",
                "--point",
                bad,
            )
            == 2
        )
        assert sentence in capsys.readouterr().err


def test_a_test_scan_that_the_run_has_learned_from_is_refused(chain, tmp_path, capsys):
    """The training image under another name and subject in another cohort's test split."""
    import shutil

    lines = (chain / "data" / "scans.tsv").read_text().splitlines()
    train = next(line for line in lines if line.startswith("sub-001")).replace(
        "\ttrain\t", "\ttest\t"
    )
    shutil.copy(chain / "data" / "recipe.yaml", tmp_path)
    (tmp_path / "scans.tsv").write_text("\n".join([lines[0], "stranger" + train[7:]]) + "\n")
    assert run("evaluate", "--run", chain / "run", "--data", tmp_path) == 2
    assert "test scan 'stranger' is an image that" in capsys.readouterr().err


def test_a_slice_counts_more_where_its_scan_does():
    from pipelines.detect.detector import NativeMap, scan_score, slice_scores
    from preprocessing.images import Grid

    values = np.random.default_rng(0).random((6, 7, 4)).astype(np.float32)
    grid = Grid(values.shape, np.diag([1.0, 1.0, 2.0, 1.0]))
    native = NativeMap(values, np.ones(values.shape, bool), grid)
    plain = {i: np.sort(values[:, :, i].ravel())[-4:].mean() for i in range(4)}  # a tenth of 42
    own = np.sort(values.ravel())[-17:].mean()
    assert slice_scores(native, 0.1) == pytest.approx(plain) and scan_score(
        native, 0.1
    ) == pytest.approx(own)
    assert slice_scores(native, 0.1, 2.0) == pytest.approx(
        {i: v + 2 * own for i, v in plain.items()}
    )
