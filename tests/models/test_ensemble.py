"""Several runs as one: tail probabilities counted by hand, members, the command line."""

import json
import shutil

import numpy as np
import pytest
import torch

from evaluation.thresholds import healthy_level
from models.base import AnomalyModel
from models.ensemble import TAILS, Ensemble, _Sample, improbability
from pipelines.detect.run import load_run
from tests.shared import run

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def data(pictures):
    """The preprocessed pictures that all tests share."""
    return pictures / "heads"


class Scaled(AnomalyModel):
    """The map is the image times a factor."""

    stages = ()

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def anomaly_map(self, x, mask, z=None):
        return self.factor * x * mask


class Channel(AnomalyModel):
    """The map is one channel of the image."""

    stages = ()

    def __init__(self, index):
        super().__init__()
        self.index = index

    def anomaly_map(self, x, mask, z=None):
        return x[:, self.index, None] * mask


def healthy(n=40, side=32):
    torch.manual_seed(0)
    mask = torch.ones(n, 1, side, side)
    mask[..., :4] = 0
    return [
        {
            "image": torch.rand(n, 1, side, side) ** 2 * mask,
            "mask": mask,
            "z": torch.zeros(n, dtype=torch.long),
        }
    ]


def test_the_map_is_the_mean_logarithm_of_counted_tails():
    batches = healthy()
    model = Ensemble([Scaled(1.0), Scaled(50.0)], [(32, 32), (32, 32)])
    model.fit_reference(batches)
    values = batches[0]["image"][batches[0]["mask"] > 0].numpy()
    x = torch.rand(1, 1, 32, 32)
    found = model.anomaly_map(x, torch.ones_like(x))[0, 0].numpy().ravel()
    for v, got in list(zip(x.numpy().ravel(), found, strict=True))[:200]:
        tail = (values >= v).mean()
        if tail > 2e-3:
            # Knots are a fortieth of a decade apart.
            assert got == pytest.approx(-np.log10(tail), abs=0.06)
    one = Ensemble([Scaled(1.0)], [(32, 32)])
    one.fit_reference(batches)
    torch.testing.assert_close(
        one.anomaly_map(x, torch.ones_like(x)),
        model.anomaly_map(x, torch.ones_like(x)),
        rtol=1e-3,
        atol=1e-3,
    )


def test_it_rises_with_the_value_and_does_not_end_at_the_highest_healthy_one():
    batches = healthy()
    model = Ensemble([Scaled(1.0)], [(32, 32)])
    model.fit_reference(batches)
    values = torch.linspace(0, 3, 400)
    found = improbability(values, model.knots[0])
    assert (found.diff() >= -1e-5).all() and found[-1] > 2 * found[133] and found[0] == 0
    assert len(TAILS) == model.knots.shape[1]


def scan(values):
    """A batch of one slice, from an image (C, H, W)."""
    image = torch.as_tensor(values, dtype=torch.float32)[None]
    mask = torch.ones_like(image[:, :1])
    return {"image": image, "mask": mask, "z": torch.zeros(1, dtype=torch.long)}


def test_a_healthy_scan_has_no_part_in_its_own_scale():
    rng = np.random.default_rng(0)
    images = [rng.random((1, 32, 32)) * factor for factor in (1, 2, 5)]
    model = Ensemble([Scaled(1.0)], [(32, 32)])
    scales = model.fit_scans([[scan(image)] for image in images])
    for i, knots in enumerate(scales):
        others = np.concatenate([image.ravel() for j, image in enumerate(images) if j != i])
        # P(healthy value >= v) = 0.01
        assert knots[0, 80] == pytest.approx(np.quantile(others, 0.99), rel=0.01)
    expected = np.max([knots.numpy() for knots in scales], 0)
    np.testing.assert_array_equal(model.knots, expected)

    image = scan(images[2])
    own = model.with_knots(scales[2]).anomaly_map(image["image"], image["mask"])
    # The others end at 2, this scan at 5; by its own values it would reach -log10 of 1 in 3072.
    assert own.max() > 8 > 5 > model.anomaly_map(image["image"], image["mask"]).max()


@pytest.mark.slow
def test_the_promise_holds_for_scans_that_set_scale_and_level():
    """Healthy scans whose noise differs from scan to scan: how often does a new one pass?

    With one scale of all nine scans, 19 % of new ones do.
    """
    rng = np.random.default_rng(1)
    passed = []
    for _ in range(300):
        spread = rng.lognormal(sigma=0.7, size=(10, 3, 1, 1))
        scans = [scan(image) for image in rng.exponential(size=(10, 3, 8, 8)) * spread]
        model = Ensemble([Channel(0), Channel(1), Channel(2)], [(8, 8)] * 3)
        scales = model.fit_scans([[one] for one in scans[:9]])
        parts = [model.with_knots(knots) for knots in scales]
        peaks = [peak(part, one) for part, one in zip(parts, scans, strict=False)]
        level = healthy_level(np.array(peaks), 0.1)
        passed.append(peak(model, scans[9]) > level.value)
    assert level.alarm_rate == pytest.approx(0.1)
    assert np.mean(passed) < 0.1 + 2 * (0.1 * 0.9 / len(passed)) ** 0.5


def peak(model, one):
    return float(model.anomaly_map(one["image"], one["mask"]).max())


def test_members_get_their_own_resolution():
    sizes = []

    class Watching(Scaled):
        def anomaly_map(self, x, mask, z=None):
            sizes.append(x.shape[2:])
            return super().anomaly_map(x, mask, z)

    model = Ensemble([Watching(1.0), Watching(1.0)], [(32, 32), (16, 8)])
    model.fit_reference(healthy(4))
    assert sizes == [(32, 32), (16, 8)]
    found = model.anomaly_map(torch.rand(2, 1, 32, 32), torch.ones(2, 1, 32, 32))
    assert found.shape == (2, 1, 32, 32)


def test_a_long_sample_is_thinned_evenly():
    sample = _Sample(100)
    for part in torch.arange(1000.0).split(64):
        sample.add(part)
    assert 50 < len(sample.values) <= 100 and sample.step == 16
    assert abs(float(sample.values.mean()) - 500) < 20


def test_from_the_command_line_it_stands_alone_and_beats_its_worst_member(data, tmp_path):
    """A member that marks by value, and one that marks nothing.

    The ensemble ranks by the first, and needs its members' folders no more.
    """
    arguments = ["--data", data, "--out", tmp_path]
    arguments += ["--protocol", "kfold", "--folds", 3, "--repeats", 1]
    arguments += ["--models", "zero intensity ensemble"]
    arguments += [
        "all.image_size=[32,32]",
        "all.loop.loader_workers=0",
        "intensity.model.mode=value",
        "intensity.model.tail=bright",
    ]
    arguments += ["zero.image_size=[16,16]", "ensemble.model.members=[zero,intensity]"]
    assert run("compare", *arguments) == 0
    comparison = json.loads((tmp_path / "heads_comparison.json").read_text())
    auroc = {m["model"]: m["figures"]["scan_auroc"]["mean"] for m in comparison["models"]}
    assert auroc["ensemble"] > 0.95 > auroc["zero"]
    for name in ("zero", "intensity"):
        shutil.rmtree(tmp_path / name)
    loaded = load_run(tmp_path / "ensemble" / "repeat-0_fold-1", "cpu")
    assert [type(m).__name__ for m in loaded.model.members] == ["Zero", "Intensity"]
    assert loaded.config.model["members"][0]["config"]["image_size"] == [16, 16]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ([], "expected names of finished runs"),
        (["model.members=[nowhere]"], "no finished run 'nowhere' beside it"),
        (["model.members=[zero]", "model.weights=[1]"], "expected members alone"),
    ],
)
def test_what_it_cannot_be_made_of(data, tmp_path, capsys, settings, sentence):
    zero = ["--model", "zero", "--out", tmp_path / "zero"]
    ensemble = ["--model", "ensemble", "--out", tmp_path / "e", *settings]
    assert run("train", "--data", data, *zero, "image_size=[32,32]") == 0
    assert run("train", "--data", data, *ensemble, "image_size=[32,32]") == 2
    assert sentence in capsys.readouterr().err
