"""Every model of the folder keeps every promise of the contract; a new model is tested without being listed."""

import importlib
import io

import pytest
import torch

from models import model_names
from pipelines.config import load_run_config
from pipelines.runs import build_model

SIDE = 32
SMALL = {"channels": [8, 16, 16], "n_components": 8, "width": 8}  # arguments that any model may have, at a size for slices of 32 x 32
BLIND = {"zero"}  # marks nothing, by definition


def make(name):
    torch.manual_seed(0)
    given = load_run_config(name).model
    return build_model(load_run_config(name, ["image_size=[32,32]", *[f"model.{k}={v}" for k, v in SMALL.items() if k in given]]))


def cohort(n=24):
    """Slices of simple healthy anatomy: an ellipse with a darker centre, varied in size and brightness."""
    source = torch.Generator().manual_seed(3)
    grid = torch.linspace(-1, 1, SIDE)
    r = (grid[:, None] / 0.8) ** 2 + (grid[None] / 0.9) ** 2
    size = 0.85 + 0.15 * torch.rand(n, 1, 1, generator=source)
    mask = (r[None] < size).float()
    image = (0.55 + 0.05 * torch.randn(n, 1, 1, generator=source) - 0.25 * (r[None] < 0.15)) * mask
    image = (image + 0.01 * torch.randn(n, SIDE, SIDE, generator=source) * mask).clamp(0, 1)
    return {"image": image[:, None], "mask": mask[:, None], "z": torch.arange(n) % 3, "seed": torch.arange(n), "label": torch.arange(n) % 2}


def blind(model):
    return (
        type(model).__module__.rpartition(".")[2] in BLIND or model.supervised or model.combines
    )  # knows the lesions or runs it was shown, here none


def train(model, steps=150):
    batch, first, last = cohort(), {}, {}
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
    model.fit_reference([batch])
    return first, last


@pytest.fixture(scope="module", params=model_names())
def trained(request):
    model = make(request.param)
    first, last = train(model)
    return model.eval(), first, last


def test_every_model_has_its_yaml():
    from pipelines.config import CONFIGS, names

    assert set(model_names()) == set(names(CONFIGS))


def test_loss_is_finite_and_falls(trained):
    _, first, last = trained
    for key in first:
        assert torch.isfinite(torch.tensor(last[key]))
        assert last[key] < first[key]


@pytest.mark.parametrize("name", model_names())
def test_each_update_reaches_all_its_parameters(name):
    model = make(name)
    for stage in model.stages:
        for update in model.updates(stage):
            assert getattr(model, update.loss.__name__) == update.loss  # the loop calls losses by name
            model.zero_grad()
            update.loss(cohort(4))["loss"].backward()
            named = {id(p) for p in update.parameters}
            for key, p in model.named_parameters():
                if id(p) in named:
                    assert p.grad is not None and p.grad.abs().sum() > 0, f"{name}.{update.name}: no gradient reaches {key}"


def test_map_is_deterministic_non_negative_and_zero_outside(trained):
    model, _, _ = trained
    batch = cohort(5)
    with torch.no_grad():
        one, two = (model.anomaly_map(batch["image"], batch["mask"], batch["z"]) for _ in range(2))
        alone = model.anomaly_map(batch["image"][:1], batch["mask"][:1], batch["z"][:1])
        nowhere = model.anomaly_map(batch["image"], batch["mask"])
    assert one.shape == (5, 1, SIDE, SIDE) and torch.equal(one, two)
    assert (one >= 0).all() and one[batch["mask"] == 0].abs().max() == 0 and (one.sum() > 0 or blind(model))
    assert nowhere.shape == one.shape and torch.equal(nowhere[0], one[0])  # without z the slice counts as the first
    torch.testing.assert_close(alone, one[:1], atol=1e-5 * max(1, float(one.max())), rtol=1e-4)


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_planted_lesions_stand_out(trained, value):
    model, _, _ = trained
    if blind(model):
        pytest.skip("marks nothing")
    batch = cohort(8)
    lesion = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    lesion[13:18, 22:26] = True
    image = torch.where(lesion, torch.tensor(value), batch["image"])
    with torch.no_grad():
        healthy, ill = (model.anomaly_map(x, batch["mask"], batch["z"]) for x in (batch["image"], image))
    inside = batch["mask"][:, 0].bool()
    assert ill[:, 0, lesion].mean() > 2 * healthy[:, 0, lesion].mean()
    assert ill[:, 0, lesion].mean() > 2 * ill[:, 0][inside & ~lesion].mean()


def test_saved_and_loaded_models_agree(trained, request):
    model, _, _ = trained
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    name = type(model).__module__.rpartition(".")[2]
    other = make(name)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    batch = cohort(3)
    with torch.no_grad():
        torch.testing.assert_close(
            *(m.eval().anomaly_map(batch["image"], batch["mask"], batch["z"]) for m in (model, other)), rtol=0, atol=1e-6
        )


def test_bfloat16_and_empty_slices(trained):
    model, _, _ = trained
    batch = cohort(3)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.anomaly_map(batch["image"], batch["mask"]).float()
    with torch.no_grad():
        full = model.anomaly_map(batch["image"], batch["mask"])
        empty = model.anomaly_map(batch["image"] * 0, batch["mask"] * 0)
    assert (low - full).abs().max() < 0.05 * max(1, full.max()) and empty.abs().max() == 0
    assert torch.isfinite(model.score(batch["image"] * 0, batch["mask"] * 0)).all()


def test_folders_do_not_import_each_other():
    """preprocessing, models and evaluation stand alone; only pipelines sees them; models know torch and MONAI alone."""
    import ast
    from pathlib import Path

    root = Path(importlib.import_module("models").__file__).parent.parent
    allowed = {"preprocessing": {"preprocessing"}, "models": {"models"}, "evaluation": {"evaluation"}}
    ours = {"preprocessing", "models", "evaluation", "pipelines", "benchmarks"}
    for folder, mine in allowed.items():
        for path in (root / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                found = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                tops = {name.split(".")[0] for name in found}
                assert not tops & (ours - mine), f"{path} imports {tops & (ours - mine)}"
                if folder == "models":
                    assert not tops & {"lightning_fabric", "nibabel", "ants"}, f"{path} imports {tops}"
