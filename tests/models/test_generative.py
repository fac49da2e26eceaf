"""vqvae_transformer and patched_ddpm by the properties that define them."""

import math

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from scipy import stats
from scipy.interpolate import RegularGridInterpolator

from models import create_model
from models.patched_ddpm import PERIODS, smooth_noise
from tests.shared import in_one_and_two_processes

SIDE = (16, 24)


def batch(n=4, seed=0, channels=1):
    torch.manual_seed(seed)
    mask = torch.zeros(n, 1, *SIDE)
    mask[:, :, 2:14, 3:20] = 1
    return {"image": torch.rand(n, channels, *SIDE) * mask, "mask": mask, "seed": torch.arange(n)}


def part(b, start, end):
    """The slices of a batch from `start` to `end`."""
    return {k: v[start:end] for k, v in b.items()}


def tokenizer(**arguments):
    torch.manual_seed(0)
    small = {
        "channels": (4, 8),
        "codes": 12,
        "embedding": 5,
        "width": 16,
        "depth": 2,
        "heads": 2,
        "image_size": SIDE,
    }
    return create_model("vqvae_transformer", **(small | arguments))


def quantizer(model):
    return model.vqvae.quantizer.quantizer


def nearest(z, codebook):
    """By brute force: index of and distance to the nearest row for each vector."""
    distances = np.linalg.norm(z[:, None] - codebook[None], axis=2)
    return distances.argmin(1)


def vectors(z):
    return z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1]).numpy()


# vqvae_transformer: the code


def test_the_vqvae_loss_is_error_and_commitment():
    """Against numpy: mean |x' - x| of the nearest entries decoded, plus beta * mean (z - e)^2."""
    model = tokenizer(beta=0.4).eval()
    b = batch()
    z = model.vqvae.encode(b["image"])
    codebook = quantizer(model).embedding.weight.numpy()
    flat = vectors(z)
    chosen = codebook[nearest(flat, codebook)]
    places = torch.tensor(chosen).reshape(4, 4, 6, 5).permute(0, 3, 1, 2)
    error = np.abs(model.vqvae.decode(places).detach().numpy() - b["image"].numpy()).mean()
    commitment = 0.4 * np.square(flat - chosen).mean()
    got = model.vqvae_loss(b)
    assert float(got["commitment"].detach()) == pytest.approx(commitment, rel=1e-5)
    assert float(got["loss"].detach()) == pytest.approx(error + commitment, rel=1e-5)
    used = np.bincount(nearest(flat, codebook), minlength=12) / len(flat)
    assert float(got["perplexity"]) == pytest.approx(math.exp(stats.entropy(used)), rel=1e-5)


def test_the_gradient_passes_the_code_unchanged_and_the_commitment_pulls_z_alone():
    """d loss / dz = d error / de + 2 beta (z - e) / n: the straight-through estimate."""
    model = tokenizer(beta=0.4).eval()
    b = batch()
    z = model.vqvae.encode(b["image"]).detach().requires_grad_()
    model.vqvae.encode = lambda x: z
    (got,) = torch.autograd.grad(model.vqvae_loss(b)["loss"], z)
    e = quantizer(model).embed(quantizer(model).quantize(z)[2]).detach().requires_grad_()
    (passed,) = torch.autograd.grad((model.vqvae.decode(e) - b["image"]).abs().mean(), e)
    torch.testing.assert_close(got, passed + 2 * 0.4 * (z - e).detach() / z.numel())


def test_the_codebook_moves_to_the_running_means_that_minimise_its_own_term():
    """With decay 0 each used entry becomes the mean of the z that chose it.

    There sum (sg(z) - e)^2 has its minimum. With another decay it becomes a running mean.
    """
    model = tokenizer(decay=0.0).train()
    b = batch()
    before = quantizer(model).embedding.weight.clone().numpy()
    outputs = []
    model.vqvae.encoder.register_forward_hook(lambda m, i, o: outputs.append(vectors(o)))
    model.vqvae_loss(b)
    (z,) = outputs
    index = nearest(z, before)
    after = quantizer(model).embedding.weight.numpy()
    assert 2 < len(set(index)) < 12
    for k in set(index):
        np.testing.assert_allclose(after[k], z[index == k].mean(0), rtol=1e-3, atol=1e-4)
    slow = tokenizer(decay=0.9).train()
    slow.vqvae_loss(b)
    for k in range(12):  # starts as if one vector had chosen each entry
        members = z[index == k]
        want = (0.9 * before[k] + 0.1 * members.sum(0)) / (0.9 + 0.1 * len(members))
        np.testing.assert_allclose(
            quantizer(slow).embedding.weight[k].numpy(), want, rtol=1e-3, atol=1e-4
        )


def test_the_codebook_moves_in_training_mode_alone_and_no_gradient_reaches_it():
    model = tokenizer()
    b = batch()
    start = quantizer(model).embedding.weight.clone()
    with torch.no_grad():
        model.eval().vqvae_loss(b)
        model.train().tokens(b["image"])
        model.transformer_loss(b)
    model.eval().anomaly_map(b["image"], b["mask"])
    assert torch.equal(quantizer(model).embedding.weight, start)
    model.train().vqvae_loss(b)["loss"].backward()
    assert not torch.equal(quantizer(model).embedding.weight, start)
    assert quantizer(model).embedding.weight.grad is None


def test_the_second_stage_leaves_the_vqvae_as_it_is():
    model = tokenizer().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (update,) = model.updates("transformer")
    optimizer = torch.optim.Adam(list(update.parameters), 1e-2)
    for step in range(3):
        model.train()
        optimizer.zero_grad()
        update.loss(batch(seed=step))["loss"].backward()
        optimizer.step()
    changed = {
        k.split(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])
    }
    assert changed == {"transformer"}


@pytest.mark.parametrize("stage", ["vqvae", "transformer"])
def test_gradients_reach_what_an_update_names_and_nothing_else(stage):
    model = tokenizer().train()
    (update,) = model.updates(stage)
    update.loss(batch())["loss"].backward()
    named = {id(p) for p in update.parameters}
    for key, p in model.named_parameters():
        assert (id(p) in named) == (p.grad is not None and p.grad.abs().sum() > 0), key


SCRIPT = """
import sys, torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from tests.models.test_generative import batch, tokenizer
world = int(sys.argv[1])
torch.set_num_threads(1)
strategy = "auto"
if world > 1:
    strategy = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
fabric = Fabric(accelerator="cpu", devices=world, strategy=strategy)
fabric.launch()
model = tokenizer()
module = fabric.setup_module(model)
module.mark_forward_method("vqvae_loss")
(update,) = model.updates("vqvae")
optimizer = fabric.setup_optimizers(torch.optim.SGD(list(update.parameters), lr=0.05))
for step in range(4):
    module.train()
    optimizer.zero_grad()
    share = {k: v[fabric.global_rank :: world] for k, v in batch(8, step).items()}
    fabric.backward(module.vqvae_loss(share)["loss"])
    optimizer.step()
if fabric.is_global_zero:
    torch.save(model.state_dict(), sys.argv[2])
"""


@pytest.mark.slow
def test_two_processes_learn_the_codebook_that_one_does(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    in_one_and_two_processes(script, lambda world: [world, tmp_path / f"{world}.pt"], monkeypatch)
    weights = [torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in (1, 2)]
    start = tokenizer().state_dict()["vqvae.quantizer.quantizer.embedding.weight"]
    assert (weights[0]["vqvae.quantizer.quantizer.embedding.weight"] - start).abs().max() > 0.1
    for key, one in weights[0].items():
        torch.testing.assert_close(
            weights[1][key], one, rtol=1e-3, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )


# vqvae_transformer: the likelihood


@pytest.mark.parametrize("ordering", ["raster_scan", "s_curve"])
def test_the_ordering_is_a_permutation_and_on_grid_its_inverse(ordering):
    model = tokenizer(ordering=ordering)
    assert sorted(model.order.tolist()) == list(range(24))
    rows = np.arange(24).reshape(4, 6)
    if ordering == "s_curve":
        rows[1::2] = rows[1::2, ::-1]
    assert model.order.tolist() == rows.ravel().tolist()
    grid = torch.rand(3, 4, 6)
    assert torch.equal(model.on_grid(grid.flatten(1)[:, model.order]), grid)


def test_a_token_changes_the_likelihood_of_later_tokens_alone():
    model = tokenizer().eval()
    tokens = torch.randint(12, (2, 24))
    for i in (0, 7, 22):
        other = tokens.clone()
        other[:, i] = (other[:, i] + 5) % 12
        with torch.no_grad():
            one, two = (model.logits(t) for t in (tokens, other))
        torch.testing.assert_close(one[:, : i + 1], two[:, : i + 1], rtol=0, atol=1e-6)
        assert (one[:, i + 1 :] - two[:, i + 1 :]).abs().amax((0, 2)).min() > 1e-5


def test_surprise_is_a_normalised_likelihood():
    """The chain rule: over all sequences of two tokens p adds up to 1, begin token or not."""
    model = tokenizer(image_size=(4, 8), codes=7).eval()
    every = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    with torch.no_grad():
        assert float((-model.surprise(every).sum(1)).exp().sum()) == pytest.approx(1, rel=1e-5)
        assert (model.surprise(every) >= 0).all()


def test_the_transformer_learns_the_frequencies_of_the_first_token():
    model = tokenizer(image_size=(4, 8), codes=3, width=8, depth=1, heads=1)
    tokens = torch.tensor([[0, 1]] * 6 + [[1, 1]] * 3 + [[2, 0]])
    optimizer = torch.optim.Adam(model.transformer.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model.surprise(tokens).mean().backward()
        optimizer.step()
    found = model.logits(tokens)[0, 0].softmax(0)
    torch.testing.assert_close(found, torch.tensor([0.6, 0.3, 0.1]), atol=0.02, rtol=0)
    assert model.surprise(tokens)[:, 1].max() < 0.1  # the second follows from the first


# vqvae_transformer: healing, maps, score


def test_healing_leaves_likely_tokens_as_they_are():
    model = tokenizer().eval()
    tokens = torch.randint(12, (3, 24))
    assert torch.equal(model.heal(tokens, torch.zeros(3, 24, dtype=torch.bool)), tokens)
    unlikely = torch.rand(3, 24) < 0.3
    healed = model.heal(tokens, unlikely)
    assert torch.equal(healed[~unlikely], tokens[~unlikely]) and not torch.equal(healed, tokens)
    x = batch()["image"]
    with torch.no_grad():  # threshold infinite before the reference is fitted
        torch.testing.assert_close(model.reconstruct(x), model.decode(model.tokens(x)))


def test_healed_tokens_are_the_likeliest_after_the_healed_ones_before():
    """Against one token at a time, one sequence at a time."""
    model = tokenizer().eval()
    tokens = torch.randint(12, (3, 24))
    unlikely = torch.rand(3, 24) < 0.4
    want = tokens.clone()
    with torch.no_grad():
        for row in range(3):
            for i in range(24):
                if unlikely[row, i]:
                    want[row, i] = model.logits(want[row : row + 1])[0, i].argmax()
        assert torch.equal(model.heal(tokens, unlikely), want)


def test_the_threshold_is_the_healthy_quantile_of_the_brain_s_tokens():
    model = tokenizer(quantile=0.9).eval()
    b = batch(20)
    model.fit_reference([part(b, i, i + 8) for i in range(0, 20, 8)])
    with torch.no_grad():
        surprise = model.on_grid(model.surprise(model.tokens(b["image"])))
    # Rows 2..13 touch all four squares of 4 pixels, columns 3..19 the first five of six.
    brain = torch.zeros(20, 4, 6, dtype=torch.bool)
    brain[:, :, :5] = True
    want = np.quantile(surprise[brain].numpy(), 0.9, method="inverted_cdf")
    assert float(model.threshold) == pytest.approx(float(want), rel=1e-6)
    share = float((surprise[brain] > model.threshold).float().mean())
    assert share == pytest.approx(0.1, abs=0.011)


@pytest.mark.parametrize("kind", ["likelihood", "healing", "product"])
def test_maps_are_made_of_surprise_residual_and_healed_places(kind):
    model = tokenizer(map=kind, quantile=0.8).eval()
    b = batch()
    model.fit_reference([b])
    x = b["image"]
    mask = b["mask"]
    with torch.no_grad():
        got = model.anomaly_map(x, mask)
        tokens = model.tokens(x)
        surprise = model.surprise(tokens)
        residual = (x - model.reconstruct(x)).abs()

    def at_centres(values):
        """The mean of the 4 pixels amid each square, through which interpolation passes."""
        return torch.nn.functional.avg_pool2d(values[..., 1:-1, 1:-1], 2, 4)[:, 0]

    inside = at_centres(mask) == 1
    grid = model.on_grid(surprise)
    if kind == "likelihood":
        found = at_centres(got)[inside]
        torch.testing.assert_close(found, _smooth(grid)[inside], rtol=1e-4, atol=1e-5)
    if kind == "product":
        want = residual * _interpolated(grid) * mask
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    if kind == "healing":
        want = residual * _interpolated((grid > model.threshold).float()) * mask
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        assert 0 < (got > 0).float().mean() < mask.mean()  # only where tokens were healed
    assert (got >= 0).all()


def _interpolated(grid):
    """Linear interpolation between the squares' centres by scipy, constant beyond them."""
    rows, columns = (np.clip(np.arange(n) + 0.5, 2, n - 2) for n in SIDE)
    at = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
    centres = [np.arange(n // 4) * 4 + 2.0 for n in SIDE]
    values = [RegularGridInterpolator(centres, g)(at) for g in grid.numpy()]
    return torch.tensor(np.stack(values)[:, None]).float()


def _smooth(grid):
    return torch.nn.functional.avg_pool2d(_interpolated(grid)[..., 1:-1, 1:-1], 2, 4)[:, 0]


def test_the_score_is_the_mean_surprise_of_the_brain():
    model = tokenizer().eval()
    b = batch()
    mask = torch.zeros_like(b["mask"])
    mask[0, :, :4, :4] = 1
    mask[1, :, :8, :4] = 1
    mask[2, :, 2:4, :12] = 1
    with torch.no_grad():
        grid = model.on_grid(model.surprise(model.tokens(b["image"])))
        got = model.score(b["image"], mask)
    want = [grid[0, 0, 0], grid[1, :2, 0].mean(), grid[2, 0, :3].mean(), torch.tensor(0.0)]
    torch.testing.assert_close(got, torch.stack(want))


def test_two_channels_and_sizes_that_do_not_divide():
    model = tokenizer(in_channels=2).eval()
    b = batch(channels=2)
    assert model.reconstruct(b["image"]).shape == (4, 2, *SIDE)
    assert model.anomaly_map(b["image"], b["mask"]).shape == (4, 1, *SIDE)
    with pytest.raises(ValueError, match="must be divisible by 4"):
        tokenizer(image_size=(16, 18))


# patched_ddpm: noise


def ddpm(**arguments):
    torch.manual_seed(0)
    model = create_model("patched_ddpm", **({"channels": (4, 8), "image_size": SIDE} | arguments))
    # Not as near to 0 as training starts, so that the prediction shows what went in.
    for layer in model.net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.reset_parameters()
    return model


@pytest.mark.parametrize("kind", PERIODS)
def test_noise_is_standard_normal_in_every_pixel(kind):
    draws = smooth_noise((3000, *SIDE), PERIODS[kind], torch.Generator().manual_seed(0)).double()
    assert draws.mean(0).abs().max() < 5 / math.sqrt(3000)
    assert (draws.var(0) - 1).abs().max() < 5 * math.sqrt(2 / 3000)
    assert stats.kstest(draws[:, 5, 7].numpy(), "norm").pvalue > 0.001
    beside = float((draws[:, 5, 7] * draws[:, 5, 8]).mean())
    apart = float((draws[:, 2, 2] * draws[:, 13, 21]).mean())
    assert beside == pytest.approx({"gaussian": 0, "coarse": 0.97, "octaves": 0.97}[kind], abs=0.08)
    assert abs(apart) < (0.75 if kind == "octaves" else 0.1)  # the widest octave spans the slice


@pytest.mark.parametrize("kind", PERIODS)
def test_forward_noising_has_the_closed_form_mean_and_variance(kind):
    """x_t = sqrt(a) x + sqrt(1 - a) noise with a the product of 1 - beta_s, s = 0..t.

    beta is linear from 1e-4 to 0.02.
    """
    model = ddpm(noise=kind)
    x = 2 * torch.rand(1, 1, *SIDE) - 1
    noise = smooth_noise((3000, *SIDE), PERIODS[kind], torch.Generator().manual_seed(1))[:, None]
    for t in (0, 300, 999):
        signal = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: t + 1])
        step = torch.full((3000,), t)
        got = model.noised(x.expand(3000, -1, -1, -1), noise, step, torch.ones(1, 1, *SIDE))
        got = got.double()
        spread = math.sqrt((1 - signal) / 3000)
        assert (got.mean(0) - math.sqrt(signal) * x[0]).abs().max() < 5 * spread + 1e-5
        assert (got.var(0) / (1 - signal) - 1).abs().max() < 5 * math.sqrt(2 / 3000)


def test_only_the_patch_is_noised():
    model = ddpm(grid=2)
    x = 2 * torch.rand(4, 1, *SIDE) - 1
    noise = torch.randn(4, 1, *SIDE)
    patches = model.patches(x)
    assert patches.shape == (4, 1, *SIDE) and torch.equal(patches.sum(0), torch.ones(1, *SIDE))
    assert patches[1, 0, :8, 12:].all() and patches[1].sum() == 8 * 12
    changed = model.noised(x, noise, torch.full((4,), 500), patches) != x
    assert torch.equal(changed, patches.bool())


def test_a_bfloat16_slice_does_not_round_the_schedule():
    model = ddpm().eval()
    before = model.scheduler.alphas_cumprod.clone()
    x = torch.rand(2, 1, *SIDE).bfloat16()
    model.anomaly_map(x, torch.ones(2, 1, *SIDE))
    model.loss({"image": x, "seed": torch.arange(2)})
    model.noised(x, x, torch.tensor([500, 500]), torch.ones(1, 1, *SIDE))
    assert model.scheduler.alphas_cumprod.dtype == torch.float32
    assert torch.equal(model.scheduler.alphas_cumprod, before)


# patched_ddpm: loss and reconstruction


class Predicts(torch.nn.Module):
    """Stands in for the network: remembers its inputs and answers by a function of them."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.given = []

    def forward(self, x, timesteps):
        self.given.append((x, timesteps))
        return self.answer(x)


def test_the_loss_is_the_error_inside_one_patch_of_the_grid():
    """A prediction of zero has the mean absolute value of the target in the patch.

    What is outside does not count.
    """
    model = ddpm()
    b = batch(64)
    model.net = Predicts(torch.zeros_like)
    got = float(model.loss(b)["loss"])
    ((noisy, step),) = model.net.given
    x = 2 * b["image"] - 1
    changed = noisy != x
    errors = []
    for i in range(64):
        rows, columns = np.nonzero(changed[i, 0].numpy())
        corner = rows.min() // 8 * 8, columns.min() // 12 * 12
        inside = x[i, 0, corner[0] : corner[0] + 8, corner[1] : corner[1] + 12]
        assert changed[i].sum() == 96
        assert (rows.max(), columns.max()) == (corner[0] + 7, corner[1] + 11)
        errors.append((corner, inside.abs().mean().item()))
    assert got == pytest.approx(np.mean([e for _, e in errors]), rel=1e-5)
    assert len({c for c, _ in errors}) == 4
    assert step.min() < 200 and 800 < step.max() < 1000


@pytest.mark.parametrize("predict", ["sample", "epsilon"])
def test_a_perfect_network_has_no_loss_and_no_map(predict):
    model = ddpm(predict=predict).eval()
    b = batch()
    x = 2 * b["image"] - 1

    def perfect(noisy):
        if predict == "sample":
            return x
        signal = model.scheduler.alphas_cumprod[step].view(-1, 1, 1, 1)
        return (noisy - signal.sqrt() * x) / (1 - signal).sqrt()

    model.net = Predicts(perfect)
    step = torch.tensor([model.test_step])
    torch.testing.assert_close(model.reconstruct(b["image"]), b["image"], atol=1e-5, rtol=0)
    assert model.anomaly_map(b["image"], b["mask"]).max() < 1e-5
    if predict == "sample":
        assert model.loss(b)["loss"] == 0


@pytest.mark.parametrize("predict", ["sample", "epsilon"])
def test_the_clean_image_is_that_of_monai_s_scheduler(predict):
    model = ddpm(predict=predict)
    predicted = torch.randn(2, 1, *SIDE)
    noisy = torch.randn(2, 1, *SIDE)
    _, want = DDPMScheduler(1000, prediction_type=predict).step(predicted, 500, noisy)
    torch.testing.assert_close(model.clean(predicted, noisy), want)


def test_the_stitched_slice_takes_each_patch_from_its_own_prediction():
    """Four forward passes, each with another patch noised to the test step.

    The network numbers its answers.
    """
    model = ddpm()
    b = batch()
    model.net = Predicts(lambda x: torch.full_like(x, len(model.net.given) / 10))
    got = model.reconstruct(b["image"])
    for k, (noisy, step) in enumerate(model.net.given):
        top = 8 * (k // 2)
        left = 12 * (k % 2)
        patch = torch.zeros(*SIDE, dtype=torch.bool)
        patch[top : top + 8, left : left + 12] = True
        assert torch.equal((noisy != 2 * b["image"] - 1).all(0)[0], patch) and (step == 500).all()
        torch.testing.assert_close(got[..., patch], torch.full((4, 1, 96), ((k + 1) / 10 + 1) / 2))
    assert len(model.net.given) == 4


def test_a_patch_is_predicted_from_the_rest_of_the_slice_and_mapped_as_absolute_difference():
    model = ddpm().eval()
    b = batch()
    with torch.no_grad():
        one = model.reconstruct(b["image"])
        changed = b["image"].clone()
        changed[:, :, 12:, 20:] = 1  # in the last patch
        two = model.reconstruct(changed)
        assert (one - two)[:, :, :8, :12].abs().max() > 1e-4
        torch.testing.assert_close(
            model.anomaly_map(b["image"], b["mask"]), (b["image"] - one).abs() * b["mask"]
        )


def test_inference_is_deterministic_and_the_same_for_a_slice_alone():
    model = ddpm().eval()
    b = batch()
    with torch.no_grad():
        torch.manual_seed(1)
        one = model.reconstruct(b["image"])
        torch.manual_seed(2)
        assert torch.equal(one, model.reconstruct(b["image"]))
        torch.testing.assert_close(
            one[2:3], model.reconstruct(b["image"][2:3]), atol=1e-5, rtol=1e-4
        )


def test_training_noise_follows_from_each_slice_s_own_seed():
    model = ddpm().eval()
    b = batch()
    one, two, other = (
        model.loss(b | {"seed": s})["loss"] for s in (b["seed"], b["seed"], b["seed"] + 9)
    )
    assert one == two and one != other
    model.net = Predicts(torch.zeros_like)
    model.loss(b)
    model.loss({k: v.flip(0) for k, v in b.items()})
    (whole, steps), (reverse, reversed_steps) = model.net.given
    assert torch.equal(whole, reverse.flip(0)) and torch.equal(steps, reversed_steps.flip(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (16, 25)}, "must be divisible by 2"),
        ({"grid": 3}, "must be divisible by 6, for grid 3"),
        ({"test_step": 1000}, "test_step must lie in 0..999, got 1000"),
    ],
)
def test_settings_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        ddpm(**arguments)


def test_two_channels():
    model = ddpm(in_channels=2).eval()
    b = batch(channels=2)
    assert model.reconstruct(b["image"]).shape == (4, 2, *SIDE)
    assert model.anomaly_map(b["image"], b["mask"]).shape == (4, 1, *SIDE)
    assert torch.isfinite(model.loss(b)["loss"])
