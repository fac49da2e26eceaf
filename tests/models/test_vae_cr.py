"""vae_cr and its parts by the properties that define them."""

import math

import numpy as np
import pytest
import torch
from torch import distributions as D

from models import create_model
from models.parts.losses import kl_divergence, squared_error
from models.parts.pretext import _two_places, swap_patches
from models.parts.randomness import generator, randn


def small(**arguments):
    torch.manual_seed(0)
    return create_model("vae_cr", channels=(4, 8, 8), **arguments)


def test_kl_against_torch_distributions_and_zero_only_at_the_prior():
    torch.manual_seed(0)
    mean = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    log_variance = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    normal = D.Normal(mean, (0.5 * log_variance).exp())
    want = D.kl_divergence(normal, D.Normal(torch.zeros_like(mean), 1)).flatten(1).sum(1)
    torch.testing.assert_close(kl_divergence(mean, log_variance), want)
    zero = torch.zeros(1, 2, 2, 2)
    assert kl_divergence(zero, zero) == 0
    assert kl_divergence(zero + 0.1, zero) > 0 and kl_divergence(zero, zero - 0.1) > 0


def test_squared_error_by_hand():
    x = torch.tensor([[[[1.0, 2], [3, 4]]]])
    y = torch.tensor([[[[1.0, 0], [0, 4]]]])
    assert squared_error(x, y).tolist() == [4 + 9]


def brain_batch(n=6, side=(40, 48)):
    torch.manual_seed(1)
    mask = torch.zeros(n, 1, *side)
    mask[:, :, 6:34, 8:42] = 1
    return torch.rand(n, 1, *side) * mask, mask


def test_swapped_patches_keep_the_histogram_and_move_two_blocks():
    image, mask = brain_batch()
    seeds = torch.arange(6)
    out = swap_patches(image, mask, 0.125, seeds)
    for a, b in zip(image, out, strict=True):
        torch.testing.assert_close(
            a.flatten().sort().values, b.flatten().sort().values, rtol=0, atol=0
        )
        assert 0 < (a != b).sum() <= 2 * 5 * 6  # two patches of 40/8 x 48/8
    torch.testing.assert_close(out, swap_patches(image, mask, 0.125, seeds))
    assert (out != swap_patches(image, mask, 0.125, seeds + 1)).any()


def test_swapping_the_same_two_places_again_restores_the_image():
    image, mask = brain_batch()
    seeds = torch.arange(6)
    twice = swap_patches(swap_patches(image, mask, 0.125, seeds), mask, 0.125, seeds)
    torch.testing.assert_close(twice, image, rtol=0, atol=0)


def test_patches_are_disjoint_equal_and_centred_on_brain():
    _, mask = brain_batch()
    brain = mask[0, 0] > 0
    for seed in range(200):
        (a, b), (c, d) = _two_places(brain, 5, 6, generator(seed, 1))
        assert abs(a - c) >= 5 or abs(b - d) >= 6
        assert brain[a + 2, b + 3] and brain[c + 2, d + 3]


def test_patches_at_the_edge_are_moved_inwards_and_tiny_brains_left_alone():
    image = torch.rand(1, 1, 16, 16)
    corner = torch.zeros(1, 1, 16, 16)
    corner[..., :3, :] = 1
    out = swap_patches(image, corner, 0.25, torch.tensor([3]))
    assert (out != image).any() and out.shape == image.shape
    single = torch.zeros(1, 1, 16, 16)
    single[0, 0, 8, 8] = 1
    torch.testing.assert_close(swap_patches(image, single, 0.25), image)
    torch.testing.assert_close(swap_patches(image, single * 0, 0.25), image)


def test_seeded_noise_does_not_depend_on_the_batch():
    like = torch.empty(5, 3, 2)
    seeds = torch.tensor([7, 8, 9, 10, 11])
    whole = randn(like, seeds)
    torch.testing.assert_close(whole[3:], randn(like[3:], seeds[3:]), rtol=0, atol=0)
    assert (whole[0] != whole[1]).all() and (whole != randn(like, seeds, stream=1)).any()
    big = randn(torch.empty(2, 100_000), torch.tensor([1, 2]))
    assert abs(big.mean()) < 0.01 and abs(big.std() - 1) < 0.01


def test_the_network_is_the_one_of_the_thesis():
    model = create_model("vae_cr")
    layers = [m for m in model.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    convolutions = [m for m in layers if m.kernel_size == (4, 4)]
    assert [c.out_channels for c in convolutions] == [16, 32, 64, 128, 256, 512]
    assert all(c.stride == (2, 2) and c.padding == (1, 1) for c in convolutions)
    back = [m for m in model.decoder.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert len(back) == 6
    for c in back:
        assert (c.kernel_size, c.stride, c.padding) == ((4, 4), (2, 2), (1, 1))
    slopes = {m.negative_slope for m in model.modules() if isinstance(m, torch.nn.LeakyReLU)}
    assert slopes == {0.1}
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.encoder.modules()) == 6
    mean, log_variance = model.eval().encode(torch.rand(1, 1, 128, 128))
    assert mean.shape == log_variance.shape == (1, 256, 2, 2)


def test_inference_uses_the_mean_and_training_samples():
    model = small().eval()
    x = torch.rand(4, 1, 32, 32)
    seeds = torch.arange(4)
    with torch.no_grad():
        mean, _ = model.encode(x)
        torch.testing.assert_close(model.reconstruct(x), model.decoder(mean), rtol=0, atol=0)
        model.encoder[-1].bias.data[4:] += 5  # a large variance must not reach the reconstruction
        torch.testing.assert_close(model.reconstruct(x), model.decoder(mean), rtol=0, atol=0)
        mask = torch.ones(4, 1, 32, 32)
        batch = {"image": x, "mask": mask, "seed": seeds}
        other = batch | {"seed": seeds + 1}
        error = model.vae_loss(batch)["squared_error"]
        assert error == model.vae_loss(other)["squared_error"]
        model.train()
        error = model.vae_loss(batch)["squared_error"]
        assert error != model.vae_loss(other)["squared_error"]


def test_finetune_loss_is_squared_error_plus_beta_kl_per_pixel():
    model = small(beta=0.25).eval()
    x = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        losses = model.vae_loss({"image": x, "mask": torch.ones_like(x)})
        mean, log_variance = model.encode(x)
        error = ((model.decoder(mean) - x) ** 2).sum() / 3 / 1024
        kl = kl_divergence(mean, log_variance).mean() / 1024
    assert losses["loss"].item() == pytest.approx((error + 0.25 * kl).item(), rel=1e-5)


def test_pretraining_compares_with_the_image_before_the_swap():
    model = small().eval()
    x, mask = brain_batch(n=3, side=(32, 32))
    batch = {"image": x, "mask": mask, "seed": torch.arange(3)}
    with torch.no_grad():
        swapped = swap_patches(x, mask, 0.125, batch["seed"])
        want = ((model.decoder(model.encode(swapped)[0]) - x) ** 2).mean()
    assert (swapped != x).any()
    assert model.restoration_loss(batch)["loss"].item() == pytest.approx(want.item(), rel=1e-6)


def test_vae_loss_gradient_against_finite_differences():
    model = small().double().eval()
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    batch = {"image": x, "mask": torch.ones_like(x)}
    weight = model.encoder[0][0].weight
    model.vae_loss(batch)["loss"].backward()
    with torch.no_grad():
        values = []
        for step in (1e-6, -1e-6):
            weight[1, 0, 2, 1] += step
            values.append(model.vae_loss(batch)["loss"].item())
            weight[1, 0, 2, 1] -= step
    assert weight.grad[1, 0, 2, 1].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_odd_last_channel_is_refused():
    with pytest.raises(ValueError, match="must be even, got 9"):
        create_model("vae_cr", channels=(4, 9))


def test_score_is_the_mean_map_inside_the_mask():
    model = small().eval()
    x, mask = brain_batch(n=2, side=(32, 32))
    with torch.no_grad():
        found = model.score(x, mask)
        maps = model.anomaly_map(x, mask)
        assert model.score(x, mask * 0).tolist() == [0, 0]
    want = [m[k > 0].mean().item() for m, k in zip(maps, mask, strict=True)]
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-5)
    assert math.isfinite(found.sum())


def test_unknown_model_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown model 'vae_rc'; known: .*vae_cr"):
        create_model("vae_rc")
