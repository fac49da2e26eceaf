"""cae, vae, vae_kl, ce_vae, context_restoration and ssae by the properties that define them."""

import numpy as np
import pytest
import torch
from torch import distributions as D
from torch import nn

from models import create_model
from models.parts.losses import input_gradient, kl_divergence
from models.parts.pretext import cover_squares, swap_patches

SIDE = (16, 24)


def batch(n=4, seed=0):
    torch.manual_seed(seed)
    mask = torch.zeros(n, 1, *SIDE)
    mask[:, :, 2:14, 3:20] = 1
    return {"image": torch.rand(n, 1, *SIDE) * mask, "mask": mask, "seed": torch.arange(n)}


def make(name, **arguments):
    torch.manual_seed(0)
    small = {"channels": (4, 8, 8)}
    if name not in ("ssae", "context_restoration"):
        small["image_size"] = SIDE
    return create_model(name, **(small | arguments))


@pytest.mark.parametrize("name", ["vae", "vae_kl", "ce_vae"])
def test_a_vae_decodes_the_mean_of_its_latent_at_inference(name):
    model = make(name).eval()
    x = batch()["image"]
    with torch.no_grad():
        one = model.reconstruct(x)
        two = model.reconstruct(x)
        torch.testing.assert_close(one, model.decoder(model.encode(x)[0]), rtol=0, atol=0)
    assert torch.equal(one, two) and one.shape == x.shape


@pytest.mark.parametrize("name", ["vae", "vae_kl"])
def test_the_loss_is_the_negative_elbo_per_pixel(name):
    """In evaluation mode, against torch.distributions.

    -log N(x; D(mean), 1) up to its constant, doubled, plus beta times KL.
    """
    model = make(name, beta=0.7).double().eval()
    b = {k: v.double() if v.is_floating_point() else v for k, v in batch().items()}
    mean, log_variance = model.encode(b["image"])
    assert mean.shape == (4, 256, 1, 1)

    normal = D.Normal(mean, (0.5 * log_variance).exp())
    prior = D.Normal(torch.zeros_like(mean), 1)
    kl = D.kl_divergence(normal, prior).flatten(1).sum(1)
    log_p = D.Normal(model.decoder(mean), 1).log_prob(b["image"]).flatten(1).sum(1)
    pixels = SIDE[0] * SIDE[1]
    error = -2 * (log_p + 0.5 * pixels * np.log(2 * np.pi))
    torch.testing.assert_close(model.loss(b)["loss"], ((error + 0.7 * kl) / pixels).mean())


def test_training_samples_the_latent_from_each_slice_s_own_seed():
    model = make("vae").train()
    b = batch()
    one, two, other = (
        model.loss(b | {"seed": s})["loss"] for s in (b["seed"], b["seed"], b["seed"] + 9)
    )
    assert one == two and one != other


def test_the_kl_gradient_is_that_of_finite_differences():
    model = make("vae_kl", smooth=0).double().eval()
    x = batch(2)["image"].double()
    got = model.kl_gradient(x)
    assert got.shape == x.shape
    for i, r, c in ((0, 5, 7), (1, 9, 12), (0, 13, 3)):
        step = torch.zeros_like(x)
        step[i, 0, r, c] = 1e-5
        with torch.no_grad():
            up, down = (kl_divergence(*model.encode(x + s * step)).sum() for s in (1, -1))
        assert got[i, 0, r, c].item() == pytest.approx(abs((up - down).item()) / 2e-5, rel=1e-5)


def test_the_elbo_gradient_is_that_of_finite_differences():
    model = make("vae_kl", smooth=0, beta=0.3).double().eval()
    x = batch(2)["image"].double()
    got = model.elbo_gradient(x)

    def elbo(y):
        mean, log_variance = model.encode(y)
        error = 0.5 * (model.decoder(mean) - y).square().sum()
        return error + 0.3 * kl_divergence(mean, log_variance).sum()

    step = torch.zeros_like(x)
    step[1, 0, 6, 11] = 1e-5
    with torch.no_grad():
        assert got[1, 0, 6, 11].item() == pytest.approx(
            abs((elbo(x + step) - elbo(x - step)).item()) / 2e-5, rel=1e-4
        )


def test_a_constant_encoder_has_no_kl_gradient():
    model = make("vae_kl").eval()
    for p in model.encoder.parameters():
        nn.init.zeros_(p)
    assert model.kl_gradient(batch()["image"]).abs().max() == 0


def test_gradients_are_there_inside_inference_mode():
    model = make("vae_kl").eval()
    x = batch()["image"]
    outside = model.kl_gradient(x)
    with torch.inference_mode():
        torch.testing.assert_close(model.kl_gradient(x.clone()), outside)
        assert input_gradient(x.clone(), lambda y: (y**2).sum()).allclose(2 * x)


@pytest.mark.parametrize("name", ["vae_kl", "ce_vae"])
def test_the_combined_map_is_zero_where_the_slice_is_rebuilt_and_scaled_by_healthy_slices(
    name, monkeypatch
):
    model = make(name, map="combi").eval()
    b = batch()
    monkeypatch.setattr(
        model, "reconstruct", lambda x: torch.where(torch.arange(SIDE[1]) < 10, x, 0.0)
    )
    combined = model.anomaly_map(b["image"], b["mask"])
    assert combined[..., :10].abs().max() == 0 and combined[..., 10:].max() > 0
    model.fit_reference([{k: v[:2] for k, v in b.items()}, {k: v[2:] for k, v in b.items()}])
    inside = b["mask"] > 0
    assert model.healthy_gradient.item() == pytest.approx(
        model.kl_gradient(b["image"])[inside].mean().item(), rel=1e-4
    )
    torch.testing.assert_close(
        model.anomaly_map(b["image"], b["mask"]) * model.healthy_gradient, combined
    )


@pytest.mark.parametrize("kind", ["rec", "kl", "elbo", "combi"])
def test_each_map_of_vae_kl_can_be_chosen(kind):
    b = batch()
    got = make("vae_kl", map=kind).eval().anomaly_map(b["image"], b["mask"])
    assert got.shape == b["image"].shape
    assert (got >= 0).all()
    assert got[b["mask"] == 0].abs().max() == 0
    assert got.max() > 0


def test_without_context_ce_vae_is_a_vae():
    plain = make("ce_vae", context=0, beta=0.2).eval()
    vae = make("vae_kl", latent=512, beta=0.2).eval()
    vae.load_state_dict(plain.state_dict())
    assert plain.loss(batch())["loss"] == vae.loss(batch())["loss"]
    with pytest.raises(ValueError, match="from 0 to 1"):
        make("ce_vae", context=1.5)


def test_the_context_branch_has_the_clean_slice_as_target_and_no_kl():
    model = make("ce_vae", context=1.0).eval()
    b = batch()
    covered = cover_squares(b["image"], seeds=b["seed"]) * b["mask"]
    want = (model.reconstruct(covered) - b["image"]).square().mean()
    torch.testing.assert_close(model.loss(b)["loss"], want)


def test_squares_cover_only_squares_up_to_half_the_width():
    image = torch.full((300, 1, *SIDE), 2.0)
    seeds = torch.arange(300)
    out = cover_squares(image, seeds=seeds)
    changed = (out != image)[:, 0]
    assert torch.equal(out, cover_squares(image, seeds=seeds)) and image.min() == 2
    assert out[out != 2].min() >= 0 and out[out != 2].max() <= 1
    share = changed.flatten(1).float().mean(1)
    assert 0.15 < (share == 0).float().mean() < 0.35 and share.max() <= 3 * 64 / (16 * 24)
    one = changed[(share > 0)][0].nonzero()
    assert len(one) > 0


@pytest.mark.parametrize("bottleneck", ["dense", "spatial"])
@pytest.mark.parametrize("loss", ["mae", "mse"])
def test_cae_scores_by_its_own_error(bottleneck, loss):
    model = make("cae", bottleneck=bottleneck, loss=loss).eval()
    b = batch()
    apart = (model.reconstruct(b["image"]) - b["image"]).abs()
    want = apart if loss == "mae" else apart.square()
    torch.testing.assert_close(model.loss(b)["loss"], want.mean())
    torch.testing.assert_close(model.anomaly_map(b["image"], b["mask"]), want * b["mask"])


def test_a_dense_code_has_its_length_and_depends_on_the_whole_slice():
    model = make("cae", bottleneck="dense", latent=5).eval()
    assert model.code[1].out_features == 5
    x = batch(1)["image"]
    moved = x.clone()
    moved[0, 0, 3, 4] += 1
    assert (model.reconstruct(moved) - model.reconstruct(x))[0, 0, -1, -1].abs() > 0
    with pytest.raises(ValueError, match=r"image_size \(18, 24\) must be divisible by 8"):
        make("cae", image_size=(18, 24))


def test_dropout_works_in_training_alone():
    model = make("cae", dropout=0.5)
    x = batch()["image"]
    model.eval()
    assert torch.equal(model.reconstruct(x), model.reconstruct(x))
    model.train()
    assert not torch.equal(model.reconstruct(x), model.reconstruct(x))


def test_context_restoration_sees_the_swapped_and_is_held_to_the_whole_slice():
    model = make("context_restoration").eval()
    b = batch()
    swapped = swap_patches(b["image"], b["mask"], 0.125, b["seed"])
    torch.testing.assert_close(
        model.loss(b)["loss"], (model.reconstruct(swapped) - b["image"]).square().mean()
    )
    torch.testing.assert_close(
        model.anomaly_map(b["image"], b["mask"]),
        (b["image"] - model.reconstruct(b["image"])).abs() * b["mask"],
    )


@pytest.mark.parametrize("side", [(16, 24), (17, 23), (31, 20)])
def test_a_pyramid_of_identities_rebuilds_the_slice_exactly(side):
    model = make("ssae", levels=3).eval()
    x = torch.rand(2, 1, *side)
    levels = model.pyramid(x)
    assert [v.shape[-1] for v in levels] == [
        side[1],
        -(-side[1] // 2),
        -(-side[1] // 4),
        -(-side[1] // 8),
    ]
    rebuilt = model.rebuild(levels, [nn.Identity()] * 4)
    for got, want in zip(rebuilt, levels, strict=True):
        torch.testing.assert_close(got, want)


def test_every_level_of_the_pyramid_counts_in_the_loss():
    model = make("ssae", levels=2).eval()
    b = batch()
    levels = model.pyramid(b["image"])
    errors = [
        (a - g).square().mean()
        for a, g in zip(model.rebuild(levels, list(model.bands)), levels, strict=True)
    ]
    torch.testing.assert_close(model.loss(b)["loss"], sum(errors))
    assert model.reconstruct(torch.rand(1, 1, 19, 27)).shape == (1, 1, 19, 27)
