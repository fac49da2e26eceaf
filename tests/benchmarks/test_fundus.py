"""The benchmark of virtual fundus pictures: where a map lies in its picture, who is tested."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from benchmarks.fundus import labelled_splits, rows_and_columns
from preprocessing.images import read_picture


def test_a_place_in_the_scan_is_that_of_the_picture(tmp_path):
    picture = np.zeros((20, 30), np.uint8)
    picture[4, 23] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    read = np.asarray(read_picture(tmp_path / "a.png", 1).dataobj)
    found = rows_and_columns(read.reshape(30, 20, 1))
    assert np.unravel_index(found.argmax(), found.shape) == (4, 23)


def test_of_the_bad_pictures_a_third_is_tested_and_none_of_the_good_moves():
    cases = [SimpleNamespace(id=f"g{i}", label="healthy", split="val") for i in range(2)]
    cases += [SimpleNamespace(id=f"h{i}", label="abnormal", split="test") for i in range(6)]
    splits = {row["id"]: row["split"] for row in labelled_splits(cases)}
    assert splits["g0"] == splits["g1"] == "val"
    bad = [splits[f"h{i}"] for i in range(6)]
    assert bad == ["test", "train", "train", "test", "train", "val"]
