"""Opinions: who may say what, that nothing is overwritten, and the export that commands read."""

import csv
import gzip
import io
import json
import zipfile

import nibabel as nib
import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app import exports
from pipelines.detect.memory import shape_of
from pipelines.study.rejected import read_opinions
from tests.app.conftest import AFFINE, SHAPE, scan_bytes, upload


def studied(site, client, *seeds):
    """Ids of studies that are done."""
    for seed in seeds:
        assert upload(client, scan_bytes(seed), run="t1").status_code == 201
    site.work()
    return [s["id"] for s in client.get("/api/studies?order=asc").json()["studies"]]


def nifti(data, affine=AFFINE):
    image = nib.Nifti1Image(data, affine)
    stream = io.BytesIO()
    image.file_map["image"].fileobj = stream
    image.to_file_map(image.file_map)
    return stream.getvalue()


def say(client, study, **said):
    return client.post(f"/api/studies/{study}/opinions", json=said)


def draw(client, study, data, affine=AFFINE, **said):
    files = [("file", ("drawn.nii", nifti(data, affine)))]
    return client.post(f"/api/studies/{study}/corrections", files=files, data=said)


def test_opinions_are_kept_with_all_that_belongs_to_them(site):
    ann = site.program("ann", "reader")
    bob = site.program("bob", "reader")
    chief = site.program("chief", "reviewer")
    (study,) = studied(site, ann, 0)
    answer = say(ann, study, kind="scan", value="agree", comment="ok", threshold=1.5, seconds=31)
    assert answer.status_code == 201, answer.text
    assert say(ann, study, kind="scan", value="disagree").status_code == 201
    assert say(ann, study, kind="component", value="false", component=1).status_code == 201
    assert say(bob, study, kind="scan", value="uncertain").status_code == 201

    mine = ann.get(f"/api/studies/{study}/opinions").json()
    assert [(o["kind"], o["value"]) for o in mine] == [
        ("scan", "agree"),
        ("scan", "disagree"),
        ("component", "false"),
    ]
    assert (mine[0]["user"], mine[0]["threshold"], mine[0]["seconds"]) == ("ann", 1.5, 31)
    assert mine[0]["run_digest"] == "d" * 64
    assert mine[2]["peak"] == "12,12,10"
    assert len(chief.get(f"/api/studies/{study}/opinions").json()) == 4
    assert len(bob.get(f"/api/studies/{study}/opinions").json()) == 1


def test_an_opinion_must_fit_its_study(site):
    ann = site.program("ann", "reader")
    (study,) = studied(site, ann, 0)
    assert say(ann, study, kind="scan", value="true").status_code == 422
    assert say(ann, study, kind="component", value="true").status_code == 422
    assert say(ann, study, kind="component", value="true", component=2).status_code == 422
    assert say(ann, "0" * 20, kind="scan", value="agree").status_code == 404
    upload(ann, scan_bytes(9))
    waiting = ann.get("/api/studies?state=received").json()["studies"][0]["id"]
    assert "no result yet" in say(ann, waiting, kind="scan", value="agree").json()["detail"]


def test_the_data_base_refuses_to_change_what_was_said(site):
    ann = site.program("ann", "reader")
    (study,) = studied(site, ann, 0)
    say(ann, study, kind="scan", value="agree")
    for statement in (
        "UPDATE opinions SET value = 'disagree'",
        "DELETE FROM opinions",
        "UPDATE audit SET who = 'nobody'",
        "DELETE FROM audit",
    ):
        with pytest.raises(DBAPIError, match="never changed"), site.engine.begin() as connection:
            connection.execute(text(statement))


def test_a_correction_lies_on_the_grid_of_its_scan(site):
    ann = site.program("ann", "reader")
    bob = site.program("bob", "reader")
    (study,) = studied(site, ann, 0)
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[1:4, 2:9, 3] = 7
    answer = draw(ann, study, drawn, threshold="1.25", seconds="12", comment="edge")
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert (told["kind"], told["threshold"], told["seconds"]) == ("correction", 1.25, 12)
    content = ann.get(told["correction"]).content
    stored = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    assert np.array_equal(stored.get_fdata(), drawn > 0)
    assert np.allclose(stored.affine, AFFINE, atol=1e-4)
    assert (int(stored.header["qform_code"]), int(stored.header["sform_code"])) == (1, 1)
    assert bob.get(told["correction"]).status_code == 404

    assert "voxels" in draw(ann, study, drawn[:-1]).json()["detail"]
    shifted = AFFINE.copy()
    shifted[0, 3] += 1
    assert "1.00 mm beside" in draw(ann, study, drawn, shifted).json()["detail"]
    assert draw(ann, study, drawn, seconds="soon").status_code == 422


def test_whose_word_counts(site, tmp_path):
    """Six studies: judged, drawn, agreed, uncertain, half judged, and a reviewer over a reader."""
    ann = site.program("ann", "reader")
    chief = site.program("chief", "reviewer")
    ids = studied(site, ann, *range(6))
    judged, drawn, agreed, uncertain, half, over = ids
    say(ann, judged, kind="component", value="true", component=0)
    say(ann, judged, kind="component", value="true", component=1)
    say(ann, judged, kind="component", value="false", component=1)  # a second thought
    line = np.zeros(SHAPE, np.uint8)
    line[5:9, 5, 5] = 1
    draw(ann, drawn, line)
    say(ann, drawn, kind="scan", value="disagree")
    say(ann, agreed, kind="scan", value="agree", comment="=cmd()")
    say(ann, uncertain, kind="scan", value="uncertain")
    say(ann, half, kind="component", value="true", component=0)
    for component in (0, 1):
        say(chief, over, kind="component", value="false", component=component)
    say(ann, over, kind="scan", value="agree")  # later, but a reader's

    out = tmp_path / "export"
    assert exports.export(site.engine, site.settings.data, out) == {"t1": 4}
    entries = json.loads((out / "datalist_t1.json").read_text())["test"]
    labels = {entry["image"].partition("/")[2][:20]: entry["label"] for entry in entries}
    assert labels == {
        judged: f"truth/{judged}.nii.gz",
        drawn: f"truth/{drawn}.nii.gz",
        agreed: f"truth/{agreed}.nii.gz",
        over: 0,
    }
    count = {name: voxels(out / "truth" / f"{name}.nii.gz") for name in (judged, drawn, agreed)}
    assert count == {judged: 3 * 3 * 4, drawn: 4, agreed: 3 * 3 * 4 + 8}
    assert voxels(out / "false" / f"{judged}.nii.gz") == 8
    rows = table(out / "truth.tsv")
    assert {row["study"] for row in rows if not row["label"]} == {uncertain, half}
    rows = table(out / "opinions.tsv")
    assert len(rows) == 11
    assert rows[0]["place"] == "left"
    assert "'=cmd()" in [row["comment"] for row in rows]

    # what `make learn` takes from it: the same word counts, and the shape is that of the mask
    said = read_opinions(out, ["d" * 64])
    found = {(e.study, e.reader, tuple(e.place_mm)): e for e in said.rejected}
    left = (-12.5, 11.0, 3.0)
    right = (20.0, 1.0, -4.0)
    assert set(found) == {
        (judged, "ann", right),
        (over, "chief", left),
        (over, "chief", right),
    }
    block = np.argwhere(np.ones((2, 2, 2)))
    assert found[judged, "ann", right].elongation == round(shape_of(block, AFFINE)[0], 4)
    assert found[judged, "ann", right].strength == 3
    assert [row["id"] for row in said.confirmed] == [judged]

    assert ann.get("/api/export/opinions.tsv").status_code == 403
    assert chief.get("/api/export/opinions.tsv").text.count("\n") == 12
    archive = zipfile.ZipFile(io.BytesIO(chief.get("/api/export/all.zip").content))
    assert "datalist_t1.json" in archive.namelist()
    assert list((site.settings.data / "incoming").iterdir()) == []


def table(path):
    return list(csv.DictReader(io.StringIO(path.read_text()), delimiter="\t"))


def voxels(path):
    return int((nib.load(path).get_fdata() > 0).sum())
