"""Fundus pictures in folders good and bad: labels, two channels, percentiles of each plane."""

import numpy as np
import pytest
from PIL import Image

from pipelines.config import load_recipe
from preprocessing.prepare import prepare
from preprocessing.scans import InputError
from preprocessing.tables import read_scans

Y, X = np.mgrid[:60, :70]
DISC = ((Y - 30) / 27) ** 2 + ((X - 35) / 30) ** 2 < 1


def save(path, seed, blurred=False):
    """A disc of red and green with a dark vessel, which a bad picture hardly shows."""
    rng = np.random.default_rng(seed)
    red = 0.6 + 0.03 * rng.normal(size=DISC.shape)
    green = 0.35 + 0.03 * rng.normal(size=DISC.shape)
    vessel = np.abs(Y - 30 - 0.3 * (X - 35) - rng.integers(-8, 8)) < 2
    green[vessel] = 0.32 if blurred else 0.15
    picture = np.stack([red, green, 0 * red], 2) * DISC[..., None]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        save(tmp_path / "good" / f"{i}.png", i)
        save(tmp_path / "bad" / f"{i}.png", 10 + i, blurred=True)
    return tmp_path


def test_the_folder_says_what_a_picture_is(folder):
    scans = read_scans(folder, load_recipe("fundus").name)
    labels = {scan.id: scan.label for scan in scans}
    assert len(labels) == len({scan.subject for scan in scans}) == 6
    assert all((label == "healthy") == ("good" in name) for name, label in labels.items())
    save(folder / "c.png", 20)
    with pytest.raises(InputError, match=r"c\.png: beside the folders good and bad"):
        read_scans(folder, "picture")


def test_each_plane_runs_from_its_lowest_value_to_its_99_99th_percentile(folder):
    scan = read_scans(folder / "good" / "0.png", "picture")[0]
    prepared = prepare(scan, load_recipe("fundus"))
    assert prepared.image.shape == (256, 256, 1, 2)
    stored = np.asarray(Image.open(scan.image), float)[..., :2] / 255
    for plane in range(2):
        found = np.sort(prepared.image[..., plane][prepared.brain])
        values = stored[..., plane][DISC]
        low, high = np.percentile(values, (0, 99.99))
        expected = np.sort(np.clip((values - low) / (high - low), 0, 1))
        quantiles = np.linspace(0.02, 1, 40)
        np.testing.assert_allclose(
            np.quantile(found, quantiles), np.quantile(expected, quantiles), atol=0.03
        )
