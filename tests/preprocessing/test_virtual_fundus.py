"""Virtual fundus pictures: folders good and bad, and marks where the record says."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from preprocessing.datasets.virtual_fundus import SHAPE, draw, make_cohort, render
from preprocessing.tables import read_scans


def test_the_cohort_is_a_folder_of_good_and_bad_pictures(tmp_path):
    folder = make_cohort(tmp_path / "eyes", seed=4, n_good=2, n_bad=2)
    scans = {scan.id: scan for scan in read_scans(folder, "picture")}
    labels = {name: scan.label for name, scan in scans.items()}
    assert labels == {
        "eye-001": "healthy",
        "eye-002": "healthy",
        "eye-501": "abnormal",
        "eye-502": "abnormal",
    }
    with Image.open(scans["eye-501"].image) as picture:
        assert (picture.mode, picture.size) == ("RGB", SHAPE[::-1])
    record = json.loads((folder / "cohort.json").read_text())
    marks = [eye["marks"] for eye in record["eyes"]]
    assert marks[:2] == [[], []]
    assert {mark["kind"] for mark in marks[2]} == {"bleeding"}
    assert {mark["kind"] for mark in marks[3]} == {"exudate"}

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    make_cohort(folder, seed=4, n_good=2, n_bad=2)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    first = scans["eye-001"].image.read_bytes()
    make_cohort(folder, seed=5, n_good=2, n_bad=2)
    assert first != scans["eye-001"].image.read_bytes()


@pytest.mark.parametrize(("kind", "sign"), [("bleeding", -1), ("exudate", 1)])
def test_a_bad_picture_differs_from_a_good_one_at_its_marks_alone(kind, sign):
    eye = draw(7, 502, kind)
    shown = render(eye, 7).astype(int)
    apart = shown - render(replace(eye, marks=[]), 7).astype(int)
    rows, columns = np.indices(SHAPE)
    near = np.zeros(SHAPE, bool)
    for mark in eye.marks:
        near |= np.hypot(rows - mark.row, columns - mark.column) < mark.radius + 5
        assert sign * apart[round(mark.row), round(mark.column), 1] > 20  # green
    assert np.abs(apart[~near]).max() == 0
    assert shown[:3].max() == 0  # black around the eye
