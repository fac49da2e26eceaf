"""Chest CT from the virtual cohort to masks, reports and figures, by the commands of a user."""

import json

import nibabel as nib
import numpy as np
import pytest

from preprocessing.datasets import virtual_chest
from preprocessing.files import read_table

COUNTS = {"n_train": 2, "n_val": 2, "n_test_healthy": 1, "n_test_abnormal": 1}
TINY = [
    *("model.channels=[4,8]", "model.latent=8", "image_size=[32,32]", "loop.batch_size=32"),
    *("loop.loader_workers=0", "stages.train.max_epochs=1", "stages.train.steps_per_epoch=3"),
]


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    monkeypatch.setattr(virtual_chest, "VOXELS", ((5.0, 5.0, 6.0),))
    return virtual_chest.make_cohort(tmp_path / "chests", seed=1, **COUNTS)


def test_a_chest_goes_from_the_table_to_the_mask_on_its_own_grid(cohort, command, tmp_path):
    data, run, out = (tmp_path / name for name in ("data", "run", "out"))
    settings = ["spacing=5", "grid=[72,72,68]"]
    done = command(
        "preprocess", "--input", cohort, "--modality", "chest_ct", "--out", data, *settings
    )
    assert done.code == 0, done.err
    assert "Outline: the lungs" in (data / "quality.html").read_text()
    done = command("train", "--model", "cae", "--data", data, "--out", run, *TINY)
    assert done.code == 0, done.err
    done = command("infer", "--run", run, "--input", cohort, "--out", out)
    assert done.code == 0, done.err
    done = command("evaluate", "--run", run, "--data", data)
    assert done.code == 0, done.err

    threshold = json.loads((run / "threshold.json").read_text())
    assert threshold["points"]["share"]["voxel"] > 0
    for row in read_table(cohort):
        scan = nib.load(cohort.parent / row["image"])
        mask = nib.load(out / f"{row['subject']}_mask.nii.gz")
        assert mask.shape == scan.shape
        np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
        report = json.loads((out / f"{row['subject']}_report.json").read_text())
        assert report["brain_mask"] == "lungs"
        places = [component["place"] for component in report["components"]]
        assert all(" lung, " in place for place in places)
        marked = np.asarray(mask.dataobj) > 0
        assert (np.asarray(scan.dataobj)[marked] > -990).mean() > 0.8  # in lungs, not in the air
    page = (out / "index.html").read_text()
    assert "Desikan" not in page
    result = json.loads((run / "evaluation" / "data" / "evaluation.json").read_text())
    assert {case["id"] for case in result["scans"]} == {"sub-301", "sub-401"}
