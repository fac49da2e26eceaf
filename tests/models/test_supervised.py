"""densenet_supervised: its loss, its Grad-CAM and that it learns."""

import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from models import create_model


def batch(n=12, side=32):
    torch.manual_seed(0)
    label = torch.arange(n) % 2
    image = 0.4 + 0.05 * torch.randn(n, 1, side, side)
    image[label == 1, :, 18:26, 4:12] += 0.5
    return {"image": image.clamp(0, 1), "mask": torch.ones(n, 1, side, side), "label": label}


def make(**arguments):
    torch.manual_seed(0)
    return create_model("densenet_supervised", **arguments)


def test_the_loss_is_weighted_cross_entropy():
    b = batch()
    model = make(positive_weight=3.0).double().eval()
    b["image"] = b["image"].double()
    p = model.score(b["image"], b["mask"]).detach().numpy()
    weights = torch.where(b["label"] == 1, 3.0, 1.0).double().numpy()
    want = log_loss(b["label"], p, sample_weight=weights) * weights.mean()
    assert abs(model.loss(b)["loss"].item() - want) < 1e-6
    assert model.loss(b)["accuracy"] == ((p > 0.5) == (b["label"].numpy() == 1)).mean()


@pytest.mark.slow
def test_it_learns_and_its_map_looks_where_the_lesion_is():
    b = batch()
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model.train()
    for _ in range(12):
        optimizer.zero_grad()
        model.loss(b)["loss"].backward()
        optimizer.step()
    # Batch statistics of these slices, as a longer training would have them.
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.momentum = None
            m.reset_running_stats()
    with torch.no_grad():
        model.net(b["image"])
    model.eval()
    with torch.inference_mode():
        score = model.score(b["image"], b["mask"])
        found = model.anomaly_map(b["image"], b["mask"])
        again = model.anomaly_map(b["image"], b["mask"])
    assert roc_auc_score(b["label"], score) == 1
    assert torch.equal(found, again) and (found >= 0).all() and found.shape == b["image"].shape
    assert found[b["label"] == 1].mean() > found[b["label"] == 0].mean()
    assert all(p.grad is None for p in model.parameters())
