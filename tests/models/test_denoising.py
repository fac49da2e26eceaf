"""dae, aeu, restore and the pretexts they learn from, by the properties that define them."""

import itertools

import numpy as np
import pytest
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from scipy.stats import norm
from torch import distributions as D
from torch import nn
from torch.nn import functional as F

from models import create_model
from models.parts.corruptions import (
    CORRUPTIONS,
    VISIBLE,
    _regions,
    corrupt,
    foreign_patch,
    solve_poisson,
)
from models.parts.losses import uncertain_error, weighted_error
from models.parts.pretext import coarse_noise

SIDE = (40, 48)


def batch(n=8, seed=0, channels=1):
    """Smooth slices between 0.3 and 0.7 in an ellipse."""
    source = torch.Generator().manual_seed(seed)
    rows, columns = (torch.linspace(-1, 1, k) for k in SIDE)
    ellipse = (rows[:, None] / 0.9) ** 2 + (columns[None] / 0.8) ** 2 < 1
    mask = ellipse.float().expand(n, 1, *SIDE).contiguous()
    coarse = torch.rand(n, channels, 8, 10, generator=source)
    smooth = F.interpolate(coarse, size=SIDE, mode="bilinear")
    return {"image": (0.3 + 0.4 * smooth) * mask, "mask": mask, "seed": torch.arange(n)}


class Fixed(nn.Module):
    """Remembers its input, and answers by a function."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        self.input = x
        return self.answer(x)


# ---- coarse noise


def test_coarse_noise_has_the_spread_and_correlation_of_interpolated_white_noise():
    """A triangle kernel at a random place: its autocorrelation is the cubic B-spline.

    That is 2/3, 23/48, 1/6 and 0 at distances of 0, 1/2, 1 and 2 cells.
    """
    n = 1500
    cell = 8
    noise = coarse_noise(
        torch.zeros(n, 1, 40, 64), torch.ones(n, 1, 40, 64), 0.2, 8, torch.arange(n)
    )[:, 0].double()
    assert abs(noise.mean()) < 0.002
    assert noise.std().item() == pytest.approx(0.2 * 2 / 3, rel=0.02)
    for lag, want in ((cell // 2, 23 / 32), (cell, 1 / 4), (2 * cell, 0), (3 * cell, 0)):
        along = (noise[..., lag:] * noise[..., :-lag]).mean() / noise.var()
        across = (noise[:, lag:] * noise[:, :-lag]).mean() / noise.var()
        assert along.item() == pytest.approx(want, abs=0.03)
        assert across.item() == pytest.approx(want, abs=0.03)
    for axis in (1, 2):  # neither seams nor places that are noisier than others
        step = noise.diff(dim=axis).square().mean((0, 3 - axis))
        assert step.max() < 1.2 * step.mean()
        assert noise.var((0, 3 - axis)).max() < 1.15 * noise.var()


@pytest.mark.parametrize("side", [(33, 50), (64, 64), (20, 7)])
def test_coarse_noise_lies_in_the_foreground_and_follows_the_seed(side):
    mask = torch.zeros(3, 1, *side)
    mask[:, :, 5:15, 1:6] = 1
    image = torch.rand(3, 2, *side)
    seeds = torch.tensor([4, 5, 4])
    noise = coarse_noise(image, mask, 0.2, 16, seeds)
    assert noise.shape == image.shape and noise[(mask == 0).expand_as(noise)].abs().max() == 0
    assert (noise[(mask > 0).expand_as(noise)] != 0).all()
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0, 0], noise[0, 1])
    torch.testing.assert_close(
        coarse_noise(image[1:2], mask[1:2], 0.2, 16, seeds[1:2])[0], noise[1], rtol=0, atol=0
    )


def test_the_autoencoder_gets_noise_in_training_and_none_at_inference():
    model = create_model("dae", noise=0.3, coarse=8)
    b = batch()
    model.net = Fixed(lambda x: x)
    noise = coarse_noise(b["image"], b["mask"], 0.3, 8, b["seed"])
    inside = b["mask"] > 0
    torch.testing.assert_close(model.loss(b)["loss"], noise[inside].square().mean())
    torch.testing.assert_close(model.net.input, b["image"] + noise, rtol=0, atol=0)
    model.train()  # the map has no noise even then
    assert model.anomaly_map(b["image"], b["mask"]).abs().max() == 0
    assert torch.equal(model.net.input, b["image"])
    model.net = Fixed(lambda x: x - torch.tensor([0.2, -0.4])[:, None, None])
    two = batch(channels=2)
    torch.testing.assert_close(model.anomaly_map(two["image"], two["mask"]), 0.3 * two["mask"])
    assert model.loss({k: v * 0 for k, v in b.items()})["loss"] == 0


@pytest.mark.parametrize(("name", "side"), [("dae", (19, 35)), ("restore", (50, 37))])
def test_the_u_net_takes_any_size(name, side):
    model = create_model(name, width=8, in_channels=2).eval()
    x = torch.rand(1, 2, *side)
    with torch.no_grad():
        assert model.reconstruct(x).shape == x.shape
        assert model.anomaly_map(x, torch.ones(1, 1, *side)).shape == (1, 1, *side)
    with pytest.raises(ValueError, match="multiple of 8"):
        create_model(name, width=12)


# ---- uncertainty


def decoded(seed=0, channels=2):
    torch.manual_seed(seed)
    both = torch.randn(3, 2 * channels, 4, 5, dtype=torch.float64)
    return both, torch.rand(3, channels, 4, 5, dtype=torch.float64)


def test_the_loss_is_the_gaussian_negative_log_likelihood_of_scipy():
    both, x = decoded()
    error, log_variance = weighted_error(both, x)
    mean = both[:, :2].numpy()
    scale = np.exp(0.5 * both[:, 2:].numpy())
    want = -2 * norm.logpdf(x.numpy(), mean, scale) - np.log(2 * np.pi)
    np.testing.assert_allclose((error + log_variance).numpy(), want, rtol=1e-10)
    np.testing.assert_allclose(error.numpy(), ((x.numpy() - mean) / scale) ** 2, rtol=1e-10)
    np.testing.assert_allclose(uncertain_error(both, x).numpy(), want.sum((1, 2, 3)), rtol=1e-10)


def test_its_gradient_is_that_of_finite_differences():
    both, x = decoded(1)
    both.requires_grad_()
    uncertain_error(both, x).sum().backward()
    # Two means, two log-variances.
    for at in ((0, 0, 1, 2), (1, 1, 3, 4), (2, 2, 0, 0), (0, 3, 2, 1)):
        step = torch.zeros_like(both)
        step[at] = 1e-6
        with torch.no_grad():
            slope = (uncertain_error(both + step, x) - uncertain_error(both - step, x)).sum() / 2e-6
        assert both.grad[at].item() == pytest.approx(slope.item(), rel=1e-6)


def test_the_variance_that_is_learned_is_that_of_the_noise():
    torch.manual_seed(0)
    scale = torch.tensor([0.05, 0.3]).view(1, 1, 1, 2)
    x = 0.5 + scale * torch.randn(4000, 1, 1, 2)
    both = nn.Parameter(torch.zeros(1, 2, 1, 2))
    optimizer = torch.optim.Adam([both], 0.02)
    for _ in range(600):
        optimizer.zero_grad()
        uncertain_error(both.expand(4000, -1, -1, -1), x).mean().backward()
        optimizer.step()
    torch.testing.assert_close((0.5 * both[:, 1:]).exp(), scale, rtol=0.05, atol=0)
    torch.testing.assert_close(both[:, :1], torch.full_like(scale, 0.5), rtol=0.05, atol=0)
    error, _ = weighted_error(both.expand(4000, -1, -1, -1), x)
    assert error.mean((0, 1, 2)).tolist() == pytest.approx([1, 1], rel=0.05)


def test_no_variance_is_without_limit():
    both = torch.tensor([0.0, -1e4]).view(1, 2, 1, 1)
    error, _ = weighted_error(both, torch.full((1, 1, 1, 1), 0.1))
    assert error.item() == pytest.approx(0.01 * np.exp(10), rel=1e-5)


def test_a_cae_with_uncertainty_is_an_aeu():
    shape = {"channels": (4, 8), "latent": 5, "image_size": SIDE, "in_channels": 2}
    b = batch(channels=2)
    aeu = create_model("aeu", **shape).eval()
    cae = create_model("cae", uncertainty=True, **shape).eval()
    names = {"encoder": "net.0", "code": "net.1", "decoder": "net.2"}
    weights = {}
    for key in cae.state_dict():
        part, rest = key.split(".", 1)
        weights[key] = aeu.state_dict()[f"{names[part]}.{rest}"]
    cae.load_state_dict(weights)

    torch.testing.assert_close(aeu.loss(b)["loss"], cae.loss(b)["loss"])
    for method in (
        lambda m: m.anomaly_map(b["image"], b["mask"]),
        lambda m: m.reconstruct(b["image"]),
    ):
        torch.testing.assert_close(method(aeu), method(cae), rtol=0, atol=0)
    mean, log_variance = aeu.net(b["image"]).split(2, dim=1)
    want = ((b["image"] - mean).square() / log_variance.exp()).mean(1, keepdim=True) * b["mask"]
    torch.testing.assert_close(aeu.anomaly_map(b["image"], b["mask"]), want)
    with pytest.raises(ValueError, match="loss must be 'mse'"):
        create_model("cae", uncertainty=True, loss="mae")


def test_a_vae_with_uncertainty_against_torch_distributions():
    torch.manual_seed(0)
    model = create_model(
        "vae", channels=(4, 8), latent=6, beta=0.7, uncertainty=True, image_size=SIDE
    )
    model.double().eval()
    b = {k: v.double() if v.is_floating_point() else v for k, v in batch().items()}
    mean, log_variance = model.encode(b["image"])
    normal = D.Normal(mean, (0.5 * log_variance).exp())
    kl = D.kl_divergence(normal, D.Normal(torch.zeros_like(mean), 1)).sum()
    out, v = model.decoder(mean).chunk(2, 1)
    log_p = D.Normal(out, (0.5 * v).exp()).log_prob(b["image"])
    loss = (-2 * log_p - np.log(2 * np.pi)).mean() + 0.7 * kl / b["image"].numel()
    torch.testing.assert_close(model.loss(b)["loss"], loss)
    torch.testing.assert_close(model.reconstruct(b["image"]), out)

    got = model.float().anomaly_map(b["image"].float(), b["mask"].float())
    want = (b["image"] - out).square() / v.exp() * b["mask"]
    torch.testing.assert_close(got, want.float(), rtol=1e-3, atol=1e-4)


# ---- synthetic anomalies


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_a_corruption_stays_in_its_region_and_its_severity_says_where_something_changed(
    kind, channels
):
    b = batch(60, channels=channels)
    before = b["image"].clone()
    out, severity = CORRUPTIONS[kind](b["image"], b["mask"], b["seed"])
    again, same = CORRUPTIONS[kind](b["image"], b["mask"], b["seed"])
    assert torch.equal(out, again)
    assert torch.equal(severity, same)
    assert torch.equal(b["image"], before)

    change = (out - before).abs().amax(1, keepdim=True)
    assert change[b["mask"] == 0].max() == 0
    assert out.shape == before.shape
    assert severity.shape == b["mask"].shape
    assert torch.equal(severity > 0, change > VISIBLE)
    assert out.min() >= 0 and out.max() <= 1 and severity.max() <= 0.95
    assert (severity.flatten(1).amax(1) > 0).float().mean() > 0.8

    # A region is no wider than it may be, 0.4 of 48 pixels and its rim.
    spans = [(change[:, 0] > 0).any(2 - axis).float() for axis in (0, 1)]
    for span in spans:
        widths = [int(row.nonzero().max() - row.nonzero().min() + 1) for row in span if row.any()]
        assert max(widths) < 32 and min(widths) >= 1 and len(set(widths)) > 5
    # Alpha differs from slice to slice.
    assert len({round(s, 5) for s in severity.flatten(1).amax(1).tolist()}) > 40


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_corruptions_of_a_slice_alone_and_of_no_brain(kind):
    b = batch(3)
    given = {"source": b["image"].flip(0)} if kind in ("foreign", "poisson") else {}
    alone = {k: v[1:2] for k, v in given.items()}
    whole = CORRUPTIONS[kind](b["image"], b["mask"], b["seed"], **given)
    one = CORRUPTIONS[kind](b["image"][1:2], b["mask"][1:2], b["seed"][1:2], **alone)
    for got, want in zip(one, whole, strict=True):
        torch.testing.assert_close(got[0], want[1], rtol=0, atol=1e-6)
    assert torch.isfinite(CORRUPTIONS[kind](b["image"][:1], b["mask"][:1], None)[0]).all()
    out, severity = CORRUPTIONS[kind](b["image"] * 0, b["mask"] * 0, b["seed"])
    assert out.abs().max() == 0 and severity.abs().max() == 0


def test_alpha_is_recovered_from_a_foreign_patch():
    b = batch(40)
    source = b["image"].flip(0) * 0.5 + 0.4 * b["mask"]
    out, severity = foreign_patch(b["image"], b["mask"], b["seed"], source)
    changed = severity > 0
    share = (out - b["image"])[changed] / (source - b["image"])[changed]
    torch.testing.assert_close(share, severity[changed], rtol=1e-3, atol=1e-3)
    each = [s[s > 0] for s in severity]
    assert all(len(s.unique()) <= 1 for s in each)
    alphas = torch.stack([s.max() for s in each if len(s)])
    assert 0.05 <= alphas.min() < 0.15 and 0.85 < alphas.max() <= 0.95


def test_without_a_source_the_patch_is_from_the_next_slice_and_never_from_its_background():
    b = batch(5)
    for x in (b["image"], b["image"][:1]):
        source = x.roll(-1, 0) if len(x) > 1 else x.flip(-1)
        got, want = (
            foreign_patch(x, b["mask"][: len(x)], b["seed"][: len(x)], s) for s in (None, source)
        )
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    half = b["image"].roll(-1, 0) * (torch.arange(SIDE[1]) < 24)
    for kind in ("foreign", "poisson"):
        out, _ = CORRUPTIONS[kind](b["image"], b["mask"], b["seed"], half)
        assert torch.equal(out[..., 24:], b["image"][..., 24:])


def test_the_poisson_solution_is_that_of_a_sparse_solver():
    torch.manual_seed(0)
    mask = torch.zeros(6, 1, 64, 56)
    mask[:, :, 6:58, 5:50] = 1
    inside = _regions(mask, torch.arange(6), True)[0] > 0
    right = 0.2 * torch.randn(6, 2, 64, 56)
    got = solve_poisson(right, inside).numpy()
    for i in range(6):
        pixels = inside[i, 0].nonzero().tolist()
        number = {tuple(p): k for k, p in enumerate(pixels)}
        matrix = lil_matrix((len(pixels), len(pixels)))
        for (r, c), k in number.items():
            matrix[k, k] = -4
            for near in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                if near in number:
                    matrix[k, number[near]] = 1
        for channel in range(2):
            want = spsolve(matrix.tocsr(), right[i, channel].numpy()[tuple(np.array(pixels).T)])
            found = got[i, channel][tuple(np.array(pixels).T)]
            assert np.abs(found - want).max() < 0.01 * np.abs(want).max()
    assert np.abs(got * ~inside.numpy()).max() == 0


def test_a_poisson_blend_keeps_the_border_and_takes_the_gradient_of_the_source():
    b = batch(40)
    # So flat that nothing is held to [0, 1].
    b["image"] = (0.5 + 0.2 * (b["image"] - 0.5)) * b["mask"]
    torch.manual_seed(3)
    smooth = F.interpolate(torch.randn(40, 1, 14, 16), size=SIDE, mode="bilinear")
    source = (0.6 + 0.05 * smooth) * b["mask"]
    depth, draws, _ = _regions(b["mask"], b["seed"], True)
    inside = depth > 0
    alpha = (0.05 + 0.9 * draws[:, 5])[:, None, None, None]
    out, _ = CORRUPTIONS["poisson"](b["image"], b["mask"], b["seed"], source)
    cut, _ = foreign_patch(b["image"], b["mask"], b["seed"], source)
    assert torch.equal(out[~inside], b["image"][~inside])

    mixed = (1 - alpha) * b["image"] + alpha * source
    both = inside[..., 1:] & inside[..., :-1]
    edge = (inside[..., 1:] ^ inside[..., :-1]) & (b["mask"][..., 1:] * b["mask"][..., :-1] > 0)
    got = out.diff(dim=-1)
    want = mixed.diff(dim=-1)
    assert np.corrcoef(got[both], want[both])[0, 1] > 0.9
    unmixed = (want - b["image"].diff(dim=-1))[both].square().mean()
    assert (got - want)[both].square().mean() < 0.2 * unmixed
    jump, seam = ((x.diff(dim=-1) - b["image"].diff(dim=-1))[edge].abs().mean() for x in (out, cut))
    assert jump < 0.4 * seam  # the border does not show, as that of a patch that is cut out does

    curve = (mixed - out).double()
    shifts = ((1, 2), (-1, 2), (1, 3), (-1, 3))
    around = sum(curve.roll(step, axis) for step, axis in shifts) - 4 * curve
    deep = F.max_pool2d(1.0 - inside.float(), 3, 1, 1) == 0
    assert around[deep].abs().max() < 5e-3 * 0.6  # what is left of the difference is harmonic

    # A source that only lies higher changes nothing, where tissue is all around the region.
    higher = (b["image"] + 0.2) * b["mask"]
    raised, _ = CORRUPTIONS["poisson"](b["image"], b["mask"], b["seed"], higher)
    free = (F.max_pool2d(inside.float(), 3, 1, 1) <= b["mask"]).flatten(1).all(1)
    assert free.sum() > 5
    torch.testing.assert_close(raised[free], b["image"][free], rtol=0, atol=1e-5)


def test_an_intensity_change_moves_towards_one_value_with_soft_edges():
    b = batch(40)
    flat = 0.5 * b["mask"]
    out, severity = CORRUPTIONS["intensity"](flat, b["mask"], b["seed"])
    signs = [
        (a - x)[s > 0].sign().unique().tolist() for a, x, s in zip(out, flat, severity, strict=True)
    ]
    assert all(len(s) <= 1 for s in signs)
    assert set(itertools.chain(*signs)) == {1, -1}  # lesions brighter and darker than tissue
    levels = []
    for a, s in zip(out, severity, strict=True):
        if (s > 0).any():
            value = 0.5 + (a[s > 0] - 0.5) / s[s > 0]
            assert value.max() - value.min() < 1e-3 and 0 <= value.mean() <= 1
            levels.append(len(s[s > 0].unique()))
    assert np.median(levels) > 10


def test_a_deformation_moves_by_what_was_drawn_and_stays_in_the_range():
    """On a ramp linear interpolation is exact.

    So the place that each pixel was taken from can be read off.
    """
    b = batch(40)
    ramp = (torch.arange(SIDE[0]) / 100)[:, None].expand(40, 1, *SIDE).contiguous()
    depth, draws, centre = _regions(b["mask"], b["seed"])
    out, _ = CORRUPTIONS["deformation"](ramp, b["mask"], b["seed"])
    sign = torch.where(draws[:, 6] < 0.5, -1.0, 1.0)[:, None, None, None]
    alpha = (0.05 + 0.9 * draws[:, 5])[:, None, None, None]
    away = torch.arange(SIDE[0])[:, None] - centre[:, :1, None, None]
    want = ((centre[:, :1, None, None] + (1 + sign * alpha * depth) * away) / 100).clamp(
        0, ramp.max()
    )
    torch.testing.assert_close(out, torch.where(depth > 0, want, ramp), rtol=0, atol=1e-5)
    moved, _ = CORRUPTIONS["deformation"](b["image"], b["mask"], b["seed"])
    assert moved.min() >= b["image"].min()
    assert moved.amax((1, 2, 3)).le(b["image"].amax((1, 2, 3)) + 1e-6).all()
    deep = 0.5 * torch.ones_like(b["image"])
    still, severity = CORRUPTIONS["deformation"](deep, b["mask"], b["seed"])
    torch.testing.assert_close(still, deep)
    assert severity.abs().max() == 0  # nothing shows in flat tissue


def test_each_slice_gets_one_kind_and_a_share_is_left_alone():
    b = batch(200)
    out, severity = corrupt(b["image"], b["mask"], b["seed"], share=0.7)
    touched = ((out - b["image"]).abs().amax((1, 2, 3)) > 0).float().mean()
    assert 0.55 < touched < 0.8
    assert severity[(out == b["image"]).all(1, keepdim=True)].abs().max() == 0
    assert torch.equal(corrupt(b["image"], b["mask"], b["seed"], share=0)[0], b["image"])
    alone = [f(b["image"], b["mask"], b["seed"]) for f in CORRUPTIONS.values()]
    out, severity = corrupt(b["image"], b["mask"], b["seed"])
    counts = torch.zeros(4)
    for i in range(200):
        fits = [
            torch.allclose(out[i], o[i], atol=1e-6) and torch.allclose(severity[i], s[i], atol=1e-6)
            for o, s in alone
        ]
        assert any(fits)
        counts[fits.index(True)] += 1
    assert counts.min() > 25
    only = corrupt(b["image"], b["mask"], b["seed"], kinds=["intensity"])
    torch.testing.assert_close(only[0], alone[2][0])


# ---- the network that undoes them


def test_the_restoration_gets_the_severity_and_is_held_to_clean_slice_and_severity():
    model = create_model("restore", width=8, weight=0.3)
    b = batch(12)
    changed, severity = corrupt(b["image"], b["mask"], b["seed"], share=0.8)
    model.net = Fixed(lambda x: torch.cat([x[:, :1] * 0 + 0.4, x[:, :1] - 1], 1))
    got = model.loss(b)
    inside = b["mask"] > 0
    logits = changed - 1
    p = logits.sigmoid().double()
    cross = -(severity * p.log() + (1 - severity) * (1 - p).log())[inside].mean().float()
    torch.testing.assert_close(
        got["loss"], (b["image"] - 0.4)[inside].square().mean() + 0.3 * cross
    )
    torch.testing.assert_close(model.net.input[:, :1], changed, rtol=0, atol=0)
    assumed = model.net.input[:, 1]
    alpha = severity.amax((1, 2, 3))
    assert (assumed == assumed[:, :1, :1]).all()
    hit = alpha > 0
    torch.testing.assert_close(assumed[hit, 0, 0], alpha[hit])
    assert (~hit).any() and ((assumed[~hit, 0, 0] >= 0.05) & (assumed[~hit, 0, 0] <= 0.95)).all()
    for bad in (
        {"kinds": []},
        {"kinds": ["cut"]},
        {"share": 1.2},
        {"severities": []},
        {"severities": [2.0]},
        {"steps": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            create_model("restore", width=8, **bad)


@pytest.mark.parametrize(("steps", "off", "levels"), [(1, 0.16, [0.4]), (2, 0.12, [0.4, 0.2])])
def test_a_slice_is_restored_step_by_step(steps, off, levels):
    """A network that takes off the square of its severity: 0.4^2, or 0.4^2 / 2 and then 0.2^2."""
    model = create_model("restore", width=8, severities=(0.4,), steps=steps)
    b = batch(3)
    model.net = Fixed(lambda x: torch.cat([x[:, :1] - x[:, 1:].square(), 3 * x[:, 1:]], 1))
    clean, severity = model.restored(b["image"])
    torch.testing.assert_close(clean, b["image"] - off)
    wanted = (3 * torch.tensor(levels)).sigmoid().mean()
    torch.testing.assert_close(severity, wanted.expand_as(severity))


@pytest.mark.parametrize("kind", ["restoration", "severity", "product"])
def test_each_map_is_the_mean_over_the_assumed_severities(kind):
    model = create_model("restore", width=8, severities=(0.2, 0.6), map=kind)
    b = batch(3)
    model.net = Fixed(
        lambda x: torch.cat([x[:, :1] - x[:, 1:], 3 * x[:, 1:]], 1)
    )  # takes off the severity that it gets
    restoration = torch.tensor(0.4)
    severity = torch.tensor([0.6, 1.8]).sigmoid().mean()
    want = {"restoration": restoration, "severity": severity, "product": restoration * severity}[
        kind
    ]
    torch.testing.assert_close(model.anomaly_map(b["image"], b["mask"]), want * b["mask"])


def anatomy(n, seed):
    """Brains of one kind: an ellipse with a darker centre and stripes.

    They vary in size, brightness and place of the stripes.
    """
    source = torch.Generator().manual_seed(seed)
    at = torch.linspace(-1, 1, 40)
    r = (at[:, None] / 0.9) ** 2 + (at / 0.8) ** 2
    size, bright, shift = (torch.rand(n, 1, 1, generator=source) for _ in range(3))
    mask = (r < 0.9 + 0.1 * size).float()
    image = 0.5 + 0.1 * bright - 0.25 * (r < 0.15) + 0.1 * ((14 + shift) * at).sin()
    image = (image + 0.01 * torch.randn(n, 40, 40, generator=source)) * mask
    return {"image": image[:, None], "mask": mask[:, None], "seed": torch.arange(n) + 1000 * seed}


@pytest.fixture(scope="module", params=["dae", "restore"])
def brief(request):
    torch.manual_seed(0)
    arguments = {"kinds": ["foreign", "intensity"]} if request.param == "restore" else {}
    model = create_model(request.param, width=8, **arguments)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(160):
        optimizer.zero_grad()
        model.loss(anatomy(16, step))["loss"].backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_a_planted_lesion_stands_out_after_a_brief_training(brief, value):
    b = anatomy(8, 1000)
    lesion = torch.zeros(40, 40, dtype=torch.bool)
    lesion[14:20, 26:32] = True
    ill = torch.where(lesion, torch.tensor(value), b["image"])
    kinds = ("restoration", "severity", "product") if hasattr(brief, "map_kind") else ("",)
    for kind in kinds:
        brief.map_kind = kind
        with torch.no_grad():
            healthy, found = (brief.anomaly_map(x, b["mask"])[:, 0] for x in (b["image"], ill))
        tissue = (b["mask"][0, 0] > 0) & ~lesion
        assert found[:, lesion].mean() > 2 * healthy[:, lesion].mean(), kind
        assert found[:, lesion].mean() > 2 * found[:, tissue].mean(), kind
