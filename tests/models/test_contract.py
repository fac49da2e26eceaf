"""Every model of the folder keeps every promise of the contract.

A new model is tested without being listed.
"""

import contextlib
import inspect
import io

import pytest
import torch

from models import model_class, model_names
from pipelines.config import CONFIGS, load_recipe, names
from pipelines.detect.build import build_model
from pipelines.detect.config import load_run_config

# Arguments that any model may have, at a size for slices of 32 x 32.
SMALL = {
    "channels": [8, 16, 16],
    "n_components": 8,
    "width": 8,
    "size": 64,
    "cells": 16,
}
SIDES = {2: (32, 32), 3: (16, 16, 16)}  # by the number of spatial dimensions
LESIONS = {2: (slice(13, 18), slice(22, 26)), 3: (slice(6, 9), slice(11, 14), slice(6, 9))}
BLIND = {"zero"}  # marks nothing, by definition
# Steps of each stage of training and slices of each step: as few as let a lesion stand out.
FEW = (60, 12)
MORE = {
    "aeu": (150, 12),
    "fae": (100, 12),
    "gmvae": (150, 12),
    "multitask": (150, 12),
    "planted": (80, 24),
    "vqvae_transformer": (120, 24),
}
# Ways to score that training does not depend on: a model, and settings that may stand together.
WAYS = [
    ("ce_vae", ("map=rec", "smooth=1", "samples=1", "noise=0.2")),
    ("multitask", ("lam=0.9",)),
    ("patched_ddpm", ("test_step=100",)),
    ("restore", ("severities=[0.1]", "steps=3", "map=severity")),
    ("vae", ("passes=2", "map=uncertainty")),
    ("vae", ("restoration=map", "rho=0.5", "schedule=[[2,0.1]]")),
    ("vae_kl", ("map=rec", "smooth=1")),
    ("vqvae_transformer", ("map=healing", "quantile=0.9")),
]
SUPERVISED = (4, 8)  # what it finds is not asked of it here


def variants():
    """(name, spatial dimensions) of every model.

    Those with the argument `spatial_dims` come for slices and for volumes.
    """
    found = []
    for name in model_names():
        found.append(pytest.param((name, 2), id=name))
        if "spatial_dims" in inspect.signature(model_class(name)).parameters:
            found.append(pytest.param((name, 3), id=f"{name}-3d"))
    return found


def make(name, dims=2, modality="t1", more=()):
    torch.manual_seed(0)
    given = load_run_config(name).model
    changes = [f"image_size={list(SIDES[dims])}"]
    changes += [f"model.{k}={v}" for k, v in SMALL.items() if k in given]
    if dims == 3:
        changes.append("model.spatial_dims=3")
    changes += [f"model.{change}" for change in more]
    return build_model(load_run_config(name, changes), load_recipe(modality))


def cohort(n=24, dims=2):
    """Slices or volumes of simple healthy anatomy.

    An ellipse with a darker centre, varied in size and brightness.
    """
    source = torch.Generator().manual_seed(3)
    sides = SIDES[dims]
    one = (1,) * dims
    axes = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in sides), indexing="ij")
    r = sum((axis / radius) ** 2 for axis, radius in zip(axes, (0.8, 0.9, 0.85), strict=False))
    size = 0.85 + 0.15 * torch.rand(n, *one, generator=source)
    mask = (r[None] < size).float()
    image = (0.55 + 0.05 * torch.randn(n, *one, generator=source) - 0.25 * (r[None] < 0.15)) * mask
    image = (image + 0.01 * torch.randn(n, *sides, generator=source) * mask).clamp(0, 1)
    return {
        "image": image[:, None],
        "mask": mask[:, None],
        "z": torch.arange(n) % 3,
        "seed": torch.arange(n),
        "label": torch.arange(n) % 2,
    }


def blind(model):
    """Whether it finds nothing here: it knows no lesions but those or the runs it was given."""
    name = type(model).__module__.rpartition(".")[2]
    return name in BLIND or model.supervised or model.combines


def train(model, plan, whole):
    """Train on the first slices of a batch; what is fitted in closed form sees the whole batch."""
    first = {}
    last = {}
    model.prepare([whole])
    steps, count = SUPERVISED if model.supervised else plan
    batch = {key: values[:count] for key, values in whole.items()}
    for stage in model.stages:
        updates = model.updates(stage)
        optimizers = [torch.optim.Adam(list(u.parameters), 3e-3) for u in updates]
        for step in range(steps):
            for update, optimizer in zip(updates, optimizers, strict=True):
                loss = update.loss(batch | {"seed": batch["seed"] + 1000 * step})["loss"]
                first.setdefault((stage, update.name), loss.item())
                last[stage, update.name] = loss.item()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    model.fit_reference([whole])
    return first, last


@pytest.fixture(scope="module", params=variants())
def trained(request):
    """A trained model, its first and last losses, and how many dimensions it sees."""
    name, dims = request.param
    model = make(name, dims)
    first, last = train(model, MORE.get(name, FEW), cohort(dims=dims))
    return model.eval(), first, last, dims


def test_every_model_has_its_yaml():
    assert set(model_names()) == set(names(CONFIGS))


def test_loss_is_finite_and_falls(trained):
    _, first, last, _ = trained
    for key in first:
        assert torch.isfinite(torch.tensor(last[key]))
        assert last[key] < first[key]


@pytest.mark.parametrize("variant", variants())
def test_each_update_reaches_all_its_parameters(variant):
    name, dims = variant
    model = make(name, dims)
    for stage in model.stages:
        for update in model.updates(stage):
            # The loop calls losses by name.
            assert getattr(model, update.loss.__name__) == update.loss
            model.zero_grad()
            update.loss(cohort(4, dims))["loss"].backward()
            named = {id(p) for p in update.parameters}
            for key, p in model.named_parameters():
                if id(p) in named:
                    assert p.grad is not None and p.grad.abs().sum() > 0, (
                        f"{name}.{update.name}: no gradient reaches {key}"
                    )


def test_each_argument_of_scoring_is_tested_below():
    told = {name: set() for name in model_names()}
    for name, way in WAYS:
        told[name] |= {text.partition("=")[0] for text in way}
    assert told == {name: set(model_class(name).scoring_arguments) for name in model_names()}


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_arguments_of_scoring_change_no_training(name, way):
    """So that compare may train once for variants that differ in them alone."""
    given = ("dropout=0.2",) if "passes=2" in way else ()
    one = make(name, more=given)
    two = make(name, more=given + way)
    losses = []
    for model in (one, two):
        torch.manual_seed(1)
        losses.append(train(model, (2, 12), cohort(12)))
    assert losses[0] == losses[1]
    others = dict(two.named_parameters())
    for key, weights in one.named_parameters():
        assert torch.equal(weights, others[key]), key


def test_map_is_deterministic_non_negative_and_zero_outside(trained):
    model, _, _, dims = trained
    batch = cohort(5, dims)
    with torch.no_grad():
        one, two = (model.anomaly_map(batch["image"], batch["mask"], batch["z"]) for _ in range(2))
        alone = model.anomaly_map(batch["image"][:1], batch["mask"][:1], batch["z"][:1])
        nowhere = model.anomaly_map(batch["image"], batch["mask"])
    assert one.shape == (5, 1, *SIDES[dims]) and torch.equal(one, two)
    assert (one >= 0).all() and one[batch["mask"] == 0].abs().max() == 0
    assert one.sum() > 0 or blind(model)
    # Without z the slice counts as the first.
    assert nowhere.shape == one.shape and torch.equal(nowhere[0], one[0])
    torch.testing.assert_close(alone, one[:1], atol=1e-5 * max(1, float(one.max())), rtol=1e-4)


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_planted_lesions_stand_out(trained, value):
    model, _, _, dims = trained
    if blind(model):
        pytest.skip("marks nothing")
    batch = cohort(8, dims)
    lesion = torch.zeros(SIDES[dims], dtype=torch.bool)
    lesion[LESIONS[dims]] = True
    image = torch.where(lesion, torch.tensor(value), batch["image"])
    with torch.no_grad():
        healthy, ill = (
            model.anomaly_map(x, batch["mask"], batch["z"]) for x in (batch["image"], image)
        )
    inside = batch["mask"][:, 0].bool()
    assert ill[:, 0, lesion].mean() > 2 * healthy[:, 0, lesion].mean()
    assert ill[:, 0, lesion].mean() > 2 * ill[:, 0][inside & ~lesion].mean()


def test_saved_and_loaded_models_agree(trained, request):
    model, _, _, dims = trained
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    name = type(model).__module__.rpartition(".")[2]
    other = make(name, dims)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    batch = cohort(3, dims)
    with torch.no_grad():
        one, two = (
            m.eval().anomaly_map(batch["image"], batch["mask"], batch["z"]) for m in (model, other)
        )
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_bfloat16_and_empty_slices(trained):
    model, _, _, dims = trained
    batch = cohort(3, dims)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.anomaly_map(batch["image"], batch["mask"]).float()
    with torch.no_grad():
        full = model.anomaly_map(batch["image"], batch["mask"])
        empty = model.anomaly_map(batch["image"] * 0, batch["mask"] * 0)
    assert (low - full).abs().max() < 0.05 * max(1, full.max()) and empty.abs().max() == 0
    assert torch.isfinite(model.score(batch["image"] * 0, batch["mask"] * 0)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_every_model_takes_two_channels_and_uses_both(name):
    """As it is built for scans of two sequences.

    A lesion in either one alone changes the map, which has one channel.
    """

    model = make(name, modality="t1+flair")
    batch = cohort(16)
    # The same anatomy in another contrast.
    second = (0.9 - 1.2 * batch["image"]).clamp(0.05, 1) * batch["mask"]
    batch |= {"image": torch.cat([batch["image"], second], 1)}
    _, last = train(model, (8, 12), batch)
    assert all(torch.isfinite(torch.tensor(value)) for value in last.values())
    model.eval()
    image, mask, z = (batch[k][:3] for k in ("image", "mask", "z"))
    lesion = torch.zeros(SIDES[2], dtype=torch.bool)
    lesion[LESIONS[2]] = True
    with torch.no_grad():
        plain = model.anomaly_map(image, mask, z)
        alone = model.anomaly_map(image[:1], mask[:1], z[:1])
        score = model.score(image, mask, z)
        ill = []
        for c in range(2):
            place = lesion & (torch.arange(2) == c)[:, None, None]
            ill.append(model.anomaly_map(torch.where(place, 1.0, image), mask, z))
        with contextlib.suppress(NotImplementedError):
            assert model.reconstruct(image).shape == image.shape
    assert plain.shape == (3, 1, *SIDES[2]) and score.shape == (3,) and torch.isfinite(score).all()
    assert (plain >= 0).all() and plain[mask == 0].abs().max() == 0
    torch.testing.assert_close(alone, plain[:1], atol=1e-5 * max(1, float(plain.max())), rtol=1e-4)
    if not blind(model):
        for found in ill:
            assert (found - plain)[:, 0, lesion].abs().mean() > 1e-3 * plain[mask > 0].mean()
    other = make(name, modality="t1+flair")
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            other.eval().anomaly_map(image, mask, z), plain, rtol=0, atol=1e-6
        )
