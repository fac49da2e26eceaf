"""Several runs as one: tail probabilities counted by hand, members as they were trained, from the command line."""

import json

import numpy as np
import pytest
import torch

from models.base import AnomalyModel
from models.ensemble import TAILS, Ensemble, _Sample, improbability
from tests.pipelines.test_pictures import data, folder  # noqa: F401  the same prepared pictures
from tests.pipelines.test_pipeline import run


class Scaled(AnomalyModel):
    """The map is the image times a factor."""

    stages = ()

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def anomaly_map(self, x, mask, z=None):
        return self.factor * x * mask


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
            assert got == pytest.approx(
                -np.log10(tail), abs=0.06
            )  # knots are a fortieth of a decade apart
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


def test_members_see_their_own_resolution():
    seen = []

    class Watching(Scaled):
        def anomaly_map(self, x, mask, z=None):
            seen.append(x.shape[2:])
            return super().anomaly_map(x, mask, z)

    model = Ensemble([Watching(1.0), Watching(1.0)], [(32, 32), (16, 8)])
    model.fit_reference(healthy(4))
    assert seen == [(32, 32), (16, 8)]
    assert model.anomaly_map(torch.rand(2, 1, 32, 32), torch.ones(2, 1, 32, 32)).shape == (
        2,
        1,
        32,
        32,
    )


def test_a_long_sample_is_thinned_evenly(monkeypatch):
    import models.ensemble as ensemble

    monkeypatch.setattr(ensemble, "KEPT", 100)
    sample = _Sample()
    for part in torch.arange(1000.0).split(64):
        sample.add(part)
    assert 50 < len(sample.values) <= 100 and sample.step == 16
    assert abs(float(sample.values.mean()) - 500) < 20


def test_from_the_command_line_it_stands_alone_and_beats_its_worst_member(data, tmp_path):  # noqa: F811
    """The picture of a lesion by value and by nothing: the ensemble ranks by the one that knows, and needs its members no more."""
    import shutil

    from pipelines.detect.run import load_run

    arguments = [
        "--data",
        data,
        "--protocol",
        "kfold",
        "--folds",
        3,
        "--repeats",
        1,
        "--out",
        tmp_path,
    ]
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
    own = load_run(tmp_path / "ensemble" / "repeat-0_fold-1", "cpu")
    assert [type(m).__name__ for m in own.model.members] == ["Zero", "Intensity"]
    assert own.config.model["members"][0]["config"]["image_size"] == [16, 16]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ([], "expected names of finished runs"),
        (["model.members=[nowhere]"], "no finished run 'nowhere' beside it"),
        (["model.members=[zero]", "model.weights=[1]"], "expected members alone"),
    ],
)
def test_what_it_cannot_be_made_of(data, tmp_path, capsys, settings, sentence):  # noqa: F811
    assert (
        run(
            "train",
            "--model",
            "zero",
            "--data",
            data,
            "--out",
            tmp_path / "zero",
            "image_size=[32,32]",
        )
        == 0
    )
    assert (
        run(
            "train",
            "--model",
            "ensemble",
            "--data",
            data,
            "--out",
            tmp_path / "e",
            "image_size=[32,32]",
            *settings,
        )
        == 2
    )
    assert sentence in capsys.readouterr().err
