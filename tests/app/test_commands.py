"""A real scan by a real run, and its opinions read by `make preprocess`."""

import gzip
from functools import partial

import nibabel as nib
import numpy as np
import pytest

import norma
from app.detect import detect
from app.exports import export
from tests.app.conftest import Site
from tests.app.test_opinions import draw, table
from tests.conftest import QUICK


def test_opinions_of_a_real_result_are_read_by_preprocess(
    tmp_path, brain_t1, tiny_run, command, quick_prepare, monkeypatch
):
    monkeypatch.setattr(norma, "prepare", quick_prepare)  # the same scan is prepared once
    site = Site(tmp_path / "data", solo=True, runs=tiny_run.parent)
    client = site.client()
    files = [("file", ("sub-01_T1w.nii", gzip.decompress(brain_t1.read_bytes())))]
    answer = client.post("/api/studies", files=files, data={"run": "vae_cr"})
    study_id = answer.json()[0]["study"]["id"]
    assert site.work(partial(detect, settings=site.settings)) == 1

    study = client.get(f"/api/studies/{study_id}").json()
    assert (study["state"], study["reason"]) == ("done", "")
    scan = nib.load(brain_t1)
    folder = site.settings.data / "results" / study["result_id"]
    found = {
        name: nib.load(folder / f"{name}.nii.gz") for name in ("map", "mask", "reconstruction")
    }
    for image in found.values():
        assert image.shape == scan.shape
        assert np.allclose(image.affine, scan.affine, atol=1e-4)
    report = client.get(f"/api/studies/{study_id}/report.json").json()
    assert report["run_digest"] == norma.result_digest(norma.load_run(tiny_run))
    # the run cuts at 0.2; the score is the mean of the highest hundredth inside the brain
    values = found["map"].get_fdata()
    marked = found["mask"].get_fdata() > 0
    assert marked.any()
    assert (values[marked] > 0.2).mean() > 0.99  # holes are filled
    assert np.median(values[values > 0]) < report["score"] == study["score"] <= values.max()
    volume = marked.sum() * abs(np.linalg.det(scan.affine[:3, :3]))
    assert report["anomalous_mm3"] == pytest.approx(volume, rel=1e-4)

    drawn = np.zeros(scan.shape, np.uint8)
    drawn[40:48, 38:46, 28:34] = 1
    assert draw(client, study_id, drawn, scan.affine).status_code == 201
    out = tmp_path / "export"
    assert export(site.engine, site.settings.data, out) == {"t1": 1}

    source = out / "datalist_t1.json"
    work = tmp_path / "work"
    done = command("preprocess", "--input", source, "--modality", "t1", "--out", work, *QUICK)
    assert done.code == 0, done.err
    (row,) = table(work / "scans.tsv")
    assert (row["id"], row["label"], row["split"]) == (study_id, "abnormal", "test")
    assert row["subject"] == study["subject"]
    read = nib.load(work / row["mask"])
    assert np.array_equal(read.get_fdata(), drawn)
