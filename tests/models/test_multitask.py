"""multitask and its pretext task by the properties that define them."""

import pytest
import torch
from torch import distributions as D
from torch.nn import functional as F

from models import create_model, multitask
from models.multitask import _draw_labels
from models.parts.pretext import turn_and_shift


def batch(n=6, side=16):
    torch.manual_seed(0)
    mask = torch.zeros(n, 1, side, side)
    mask[:, :, 3:13, 2:12] = 1
    return {"image": torch.rand(n, 1, side, side) * mask, "mask": mask, "seed": torch.arange(n)}


def make(**arguments):
    torch.manual_seed(0)
    return create_model("multitask", **({"channels": (4, 8, 8)} | arguments))


def same(n, value):
    return torch.full((n,), value)


def test_four_quarter_turns_are_none_and_shifts_move_by_an_eighth():
    x = batch()["image"]
    n = len(x)
    turned = x
    for _ in range(4):
        turned = turn_and_shift(turned, same(n, 1), same(n, 0), same(n, 0))
    assert torch.equal(turned, x)
    assert not torch.equal(turn_and_shift(x, same(n, 1), same(n, 0), same(n, 0)), x)
    moved = turn_and_shift(x, same(n, 0), same(n, 1), same(n, -1))
    want = torch.zeros_like(x)
    want[:, :, 2:, :-2] = x[:, :, :-2, 2:]
    assert torch.equal(moved, want)
    with pytest.raises(ValueError, match="square"):
        turn_and_shift(torch.rand(1, 1, 8, 9), same(1, 1), same(1, 0), same(1, 0))


def test_labels_come_from_each_slice_s_seed_and_cover_all_classes():
    b = {"image": torch.zeros(400, 1, 8, 8), "seed": torch.arange(400)}
    labels = _draw_labels(b)
    assert torch.equal(labels, _draw_labels(b))
    assert torch.equal(labels[5:9], _draw_labels({k: v[5:9] for k, v in b.items()}))
    for column, classes in enumerate((4, 3, 3)):
        counts = labels[:, column].bincount(minlength=classes)
        assert len(counts) == classes and counts.min() > 0.6 * 400 / classes


def test_the_loss_is_cross_entropy_plus_epsilon_times_the_vae_s():
    model = make(epsilon=30.0, beta=0.5).eval()
    b = batch()
    got = model.multitask_loss(b)
    labels = _draw_labels(b)
    x = turn_and_shift(b["image"], labels[:, 0], labels[:, 1] - 1, labels[:, 2] - 1)
    features, mean, log_variance = model.encode(x)
    entropy = sum(
        F.cross_entropy(logits, labels[:, i]) for i, logits in enumerate(model.logits(features))
    )
    normal = D.Normal(mean, (0.5 * log_variance).exp())
    kl = D.kl_divergence(normal, D.Normal(0.0, 1.0)).flatten(1).sum(1).mean()
    rec = ((model.decoder(mean) - x).square().flatten(1).sum(1).mean() + 0.5 * kl) / 256
    torch.testing.assert_close(got["classification"], entropy)
    torch.testing.assert_close(got["loss"], entropy + 30 * rec)
    torch.testing.assert_close(got["scaled"], 30 * got["reconstruction"])


def test_the_score_falls_as_the_probability_of_the_truth_rises(monkeypatch):
    """A head that knows every pose gives s_c = 0, one that is always wrong 1.

    In between s_c falls with confidence.
    """
    model = make(lam=0.0).eval()
    b = batch()
    scores = []
    for sure in (-30.0, -2.0, 0.0, 2.0, 30.0):
        trial = iter(multitask.TRIALS)

        def logits(features, trial=trial, sure=sure):
            turns, across, along = next(trial)
            truth = (turns, across + 1, along + 1)
            return tuple(
                sure * F.one_hot(same(len(features), t), n).float()
                for t, n in zip(truth, (4, 3, 3), strict=True)
            )

        monkeypatch.setattr(model, "logits", logits)
        scores.append(model.score(b["image"], b["mask"])[0].item())
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(1) and scores[-1] == pytest.approx(0)
    assert scores[2] == pytest.approx((3 / 4 + 2 / 3 + 2 / 3) / 3)  # guessing


def test_lam_weighs_the_two_scores_and_the_residual_is_scaled_by_healthy_slices():
    b = batch(40)
    model = make(lam=0.25).eval()
    model.fit_reference([{k: v[:25] for k, v in b.items()}, {k: v[25:] for k, v in b.items()}])
    residual = ((b["image"] - model.reconstruct(b["image"])).abs() * b["mask"]).sum((1, 2, 3)) / 100
    assert model.healthy_residual.item() == pytest.approx(residual.quantile(0.99).item(), rel=1e-5)
    want = 0.75 * model.classification_score(b["image"]) + 0.25 * residual / model.healthy_residual
    torch.testing.assert_close(model.score(b["image"], b["mask"]), want)
    with pytest.raises(ValueError, match="from 0 to 1"):
        make(lam=2)


def test_pretraining_leaves_the_heads_alone():
    model = make()
    moved = {id(p) for p in model.updates("pretrain")[0].parameters}
    assert not moved & {id(p) for p in model.heads.parameters()}
    assert len(moved) == len(list(model.parameters())) - 2
