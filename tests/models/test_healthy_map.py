"""The healthy reference of maps, against numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from models import create_model
from models.base import AnomalyModel
from models.parts.healthy_map import Referenced
from pipelines.config import ConfigError
from pipelines.detect.build import build_detector
from pipelines.detect.config import load_run_config
from pipelines.training.fit import held_out
from tests.conftest import case_of
from tests.models.test_baselines import batches, slices


class Bright(AnomalyModel):
    """The map is the image."""

    stages = ()

    def anomaly_map(self, x, mask, z=None):
        return x * mask

    def reconstruct(self, x):
        return torch.full_like(x, 0.2)


def fitted(kind, smooth=0.0, prior=2.0, mirror=False, **more):
    image, mask = slices(30)
    z = torch.arange(30) % 3
    model = Referenced(Bright(), kind, smooth=smooth, prior=prior, mirror=mirror, **more)
    model.fit_reference(batches(image, mask, z))
    return model, image, mask, z


@pytest.mark.parametrize("mirror", [False, True])
def test_mean_and_deviation_are_numpy_s_with_the_prior_as_added_scans(mirror):
    """With a prior of 2, as if two more scans had the whole brain's mean.

    And its variance around the place's mean.
    """
    model, image, mask, z = fitted("z", mirror=mirror)
    maps = image.numpy()[:, 0].astype(float)
    inside = mask.numpy()[:, 0] > 0
    if mirror:
        maps = np.concatenate([maps, maps[:, ::-1]])
        inside = np.concatenate([inside, inside[:, ::-1]])
        z = torch.cat([z, z])
    overall = maps[inside]
    for place in range(3):
        for x, y in ((5, 6), (16, 20), (10, 4)):
            values = maps[(z.numpy() == place) & inside[:, x, y], x, y]
            n = len(values)
            mean = (values.sum() + 2 * overall.mean()) / (n + 2)
            deviation = np.sqrt((((values - mean) ** 2).sum() + 2 * overall.var()) / (n + 2))
            assert float(model.mean[place, x, y]) == pytest.approx(mean, rel=1e-4)
            assert float(model.deviation[place, x, y]) == pytest.approx(deviation, rel=1e-3)


def test_each_kind_is_its_formula_and_never_negative():
    found = {}
    for kind in ("difference", "ratio", "z"):
        model, image, mask, z = fitted(kind)
        found[kind] = model.anomaly_map(image, mask, z)
        assert (found[kind] >= 0).all() and not found[kind][mask == 0].any()
    values = image.numpy()[:, 0]
    mean = model.mean[z].numpy()
    deviation = model.deviation[z].numpy()
    inside = mask.numpy()[:, 0] > 0
    for kind, want in (
        ("difference", values - mean),
        ("ratio", values / mean),
        ("z", (values - mean) / deviation),
    ):
        np.testing.assert_allclose(
            found[kind].numpy()[:, 0][inside], np.maximum(want, 0)[inside], rtol=1e-5, atol=1e-6
        )


def test_a_residual_is_signed_and_its_tail_counts():
    sides = {}
    for tail in ("bright", "dark", "both"):
        model, image, mask, z = fitted("z", of="residual", tail=tail)
        sides[tail] = model.anomaly_map(image, mask, z)
    assert torch.equal(sides["bright"] + sides["dark"], sides["both"])
    assert (sides["dark"] > 0).any() and (sides["bright"] > 0).any()
    residual = (image - 0.2)[:, 0].numpy()
    z_score = (residual - model.mean[z].numpy()) / model.deviation[z].numpy()
    inside = mask[:, 0].numpy() > 0
    np.testing.assert_allclose(
        sides["both"][:, 0].numpy()[inside], np.abs(z_score)[inside], rtol=1e-5, atol=1e-6
    )


def test_a_residual_needs_a_reconstruction():
    with pytest.raises(ValueError, match="of=residual does not go with kind=z of Intensity"):
        Referenced(create_model("intensity"), "z", of="residual")
    with pytest.raises(ValueError, match="kind=ratio of Bright"):
        Referenced(Bright(), "ratio", of="residual")


def test_the_map_is_smoothed_inside_the_brain_before_it_is_compared():
    model, image, mask, z = fitted("difference", smooth=1.5)
    m = mask[:, 0].numpy()
    blurred = [
        ndimage.gaussian_filter(v, 1.5, mode="nearest", radius=4) for v in image[:, 0].numpy()
    ]
    weight = [ndimage.gaussian_filter(v, 1.5, mode="nearest", radius=4) for v in m]
    want = np.maximum(np.stack(blurred) / np.maximum(weight, 1e-6) - model.mean[z].numpy(), 0) * m
    np.testing.assert_allclose(model.anomaly_map(image, mask, z)[:, 0].numpy(), want, atol=2e-6)


@pytest.mark.parametrize("kind", ["none", "z"])
def test_symmetry_adds_what_the_other_hemisphere_does_not_show(kind):
    """v + w max(0, v - v'), v' the highest value near the mirrored place, by scipy.

    A symmetric map stays as it is.
    """
    plain, image, mask, z = fitted(kind, smooth=1.0)
    model = Referenced(Bright(), kind, smooth=1.0, symmetry=0.7, reach=2)
    model.mean = plain.mean
    model.deviation = plain.deviation
    before = plain.anomaly_map(image, mask, z)[:, 0].numpy()
    other = np.stack([ndimage.maximum_filter(v[::-1], 5, mode="constant") for v in before])
    want = before + 0.7 * np.maximum(before - other, 0)
    np.testing.assert_allclose(
        model.anomaly_map(image, mask, z)[:, 0].numpy(), want, rtol=1e-5, atol=1e-6
    )
    assert (want > before + 1e-3).any()
    even, both = (v + v.flip(2) for v in (image, mask))
    alike = Referenced(Bright(), "none", smooth=1.0, symmetry=5.0, reach=0)
    unweighted = Referenced(Bright(), "none", smooth=1.0)
    inside = (both > 0).float()
    np.testing.assert_allclose(
        alike.anomaly_map(even, inside), unweighted.anomaly_map(even, inside), atol=2e-6
    )


def test_symmetry_alone_reaches_the_map_of_a_run():
    config = load_run_config("intensity", ["reference.symmetry=1"])
    detector = build_detector(config, create_model("intensity"))
    assert isinstance(detector, Referenced) and detector.kind == "none" and detector.symmetry == 1


def test_scores_become_their_z_among_healthy_slices_near_in_height():
    """By numpy: weights of a Gaussian of 4 slices, plus the whole as one more score.

    A score that is high in everybody at its place is no finding.
    """

    class Place(Bright):
        def score(self, x, mask, z=None):
            # The last slice of a head scores high in everybody.
            return x.flatten(1).mean(1) + 5.0 * (z == 9)

    image, mask = slices(30)
    z = torch.arange(30) % 10
    model = Referenced(Place(), "z", smooth=0.0, scores=True)
    model.fit_reference(batches(image, mask, z))
    scores = model.model.score(image, mask, z).double().numpy()
    for place in range(10):
        weight = np.exp(-0.5 * ((z.numpy() - place) / 4) ** 2) + 1 / 30
        mean = np.average(scores, weights=weight)
        deviation = np.sqrt(np.average((scores - mean) ** 2, weights=weight))
        at = z.numpy() == place
        found = model.score(image, mask, z).numpy()[at]
        np.testing.assert_allclose(found, (scores[at] - mean) / deviation, rtol=1e-4)
    other = Referenced(Place(), "z", smooth=0.0, scores=True)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.score(image, mask, z), model.score(image, mask, z))
    assert "score_mean" not in Referenced(Place(), "z").state_dict()


def test_scores_need_a_kind():
    with pytest.raises(ConfigError, match=r"reference\.scores=true needs a reference\.kind"):
        load_run_config("multitask", ["reference.scores=true"])


def test_it_comes_back_from_disk_and_scores_by_its_detector(tmp_path):
    model, image, mask, z = fitted("z")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = Referenced(Bright(), "z", smooth=0.0)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other.anomaly_map(image, mask, z), model.anomaly_map(image, mask, z))
    assert torch.equal(model.score(image, mask, z), model.model.score(image, mask, z))


def test_held_out_scans_are_not_learned_from(monkeypatch):
    names = [f"s{i}-{k}" for i, k in np.ndindex(10, 2)]
    cases = [case_of(name, Path(), subject=name[:-2]) for name in names]
    config = load_run_config("cae", ["reference.kind=z", "reference.holdout=0.2"])
    out = held_out(config, cases)
    assert len(out) == 4
    assert out == held_out(config, cases[::-1])
    assert {i.partition("-")[0] for i in out} == {i[:-2] for i in out}
    assert not held_out(load_run_config("cae", ["reference.holdout=0.2"]), cases)
    with pytest.raises(ConfigError, match=r"leaves 0 of 2 training subjects"):
        held_out(config, cases[:4])
