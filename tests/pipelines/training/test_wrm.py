"""Training on the worst image near each one, against closed forms and plain training."""

import pytest
import torch

from models import create_model
from pipelines.config import ConfigError
from pipelines.detect.config import Wrm, load_run_config
from pipelines.training.fit import check_options
from pipelines.training.wrm import worst_nearby
from tests.pipelines.training.test_loop import fit, make_store


def batch_of(n=4):
    """Random slices in a brain of some pixels."""
    source = torch.Generator().manual_seed(1)
    mask = (torch.rand(n, 1, 32, 32, generator=source) > 0.3).float()
    image = (0.3 + 0.4 * torch.rand(n, 1, 32, 32, generator=source)) * mask
    return {"image": image, "mask": mask, "z": torch.zeros(n).long(), "seed": torch.arange(n)}


def mean_move(new, old):
    return float((new["image"] - old["image"]).square().mean())


def test_of_a_linear_loss_the_worst_image_is_known():
    """mean(c x) - gamma mean((x' - x)^2) is highest at x' = x + c / (2 gamma)."""
    batch = batch_of()
    slope = torch.linspace(-1, 1, 32)

    def loss(given):
        return {"loss": (slope * given["image"]).mean()}

    moved = worst_nearby(torch.nn.Identity(), loss, batch, Wrm(gamma=5, steps=1))
    wanted = batch["image"] + slope / 10 * batch["mask"]
    assert torch.allclose(moved["image"], wanted, atol=1e-6)
    assert moved["mask"] is batch["mask"]


@pytest.mark.parametrize("gamma", [0.01, 2.0, 50.0])
def test_the_objective_never_falls_and_nothing_else_changes(gamma):
    torch.manual_seed(0)
    model = create_model("cae", channels=[4, 8], latent=6, image_size=(32, 32), dropout=0.3).train()
    batch = batch_of()
    buffers = [buffer.clone() for buffer in model.buffers()]
    random = torch.get_rng_state()
    moved = worst_nearby(model, model.loss, batch, Wrm(gamma=gamma, steps=3))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), buffers, strict=True))
    assert all(p.grad is None for p in model.parameters())

    values = []
    for given in (batch, moved):
        torch.set_rng_state(random)  # the same dropout
        values.append(float(model.loss(given)["loss"]) - gamma * mean_move(given, batch))
    assert values[1] > values[0]
    assert float(moved["image"].min()) >= 0 and float(moved["image"].max()) <= 1
    assert not moved["image"][batch["mask"] == 0].any()


def test_an_infinite_gamma_is_plain_training_bit_for_bit_and_a_finite_one_is_not(tmp_path):
    store = make_store(tmp_path / "store")
    short = ("stages.pretrain.max_epochs=1", "stages.finetune.max_epochs=1")
    states = []
    for name, options in (
        ("plain", ()),
        ("far", ("wrm.gamma=.inf", "wrm.steps=2")),
        ("near", ("wrm.gamma=2", "wrm.steps=2")),
    ):
        states.append(fit(store, tmp_path / name, *short, *options).state_dict())
    plain, far, near = states
    assert all(torch.equal(plain[key], far[key]) for key in plain)
    assert not all(torch.equal(plain[key], near[key]) for key in plain)


def test_models_that_it_cannot_train_are_refused():
    batch = batch_of()
    fixed = torch.ones((), requires_grad=True)
    for loss in (
        lambda given: {"loss": fixed * 2},
        lambda given: {"loss": fixed * float(given["image"].numpy().sum())},
    ):
        with pytest.raises(ConfigError, match="has no slope in its images; leave wrm out"):
            worst_nearby(torch.nn.Identity(), loss, batch, Wrm(gamma=1, steps=1))
    with pytest.raises(ConfigError, match="'atlas' learns nothing by gradient"):
        check_options(load_run_config("atlas", ["wrm.gamma=1"]))
