"""gmvae, aae, constrained_aae, ano_vae_gan, the options of vae, restoration and the flow.

Each by the properties that define it.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import wasserstein_distance
from torch import distributions as D
from torch import nn

from models import create_model
from models.parts.dropout import dropout_passes, passes_map
from models.parts.flow import RealNvp
from models.parts.layers import latent_critic
from models.parts.losses import gradient_penalty, input_gradient
from models.parts.restoration import map_restoration, total_variation

SIDE = (16, 24)


def batch(n=4, seed=0):
    torch.manual_seed(seed)
    mask = torch.zeros(n, 1, *SIDE)
    mask[:, :, 2:14, 3:20] = 1
    return {"image": torch.rand(n, 1, *SIDE) * mask, "mask": mask, "seed": torch.arange(n)}


def part(b, start, end):
    """The slices of a batch from `start` to `end`."""
    return {k: v[start:end] for k, v in b.items()}


def double(b):
    return {k: v.double() if v.is_floating_point() else v for k, v in b.items()}


def make(name, **arguments):
    torch.manual_seed(0)
    return create_model(name, **({"channels": (4, 8, 8), "image_size": SIDE} | arguments))


class Always(nn.Module):
    """Gives one tensor for every input."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, _):
        return self.value


# --- restoration ---


def test_total_variation_is_numpy_s_sum_of_steps():
    torch.manual_seed(0)
    d = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    want = [
        np.abs(np.diff(x, axis=-1)).sum() + np.abs(np.diff(x, axis=-2)).sum() for x in d.numpy()
    ]
    np.testing.assert_allclose(total_variation(d, smooth=0), want)
    np.testing.assert_allclose(total_variation(d, smooth=1e-4), want, rtol=1e-3)
    assert total_variation(torch.full((1, 1, 4, 4), 3.0)).item() == 0
    x = d[:1, :1].clone()
    step = torch.zeros_like(x)
    step[0, 0, 2, 3] = 1e-6
    slope = float(total_variation(x + step) - total_variation(x - step)) / 2e-6
    gradient = input_gradient(x, lambda y: total_variation(y).sum())
    assert gradient[0, 0, 2, 3].item() == pytest.approx(slope, abs=1e-6)


def test_restoration_finds_scipy_s_optimum_with_the_total_variation_of_the_change():
    """A concave ELBO -|y - t|^2: the optimum of -|y - t|^2 - rho TV(x - y) by L-BFGS.

    TV(y - t), a known mistake, would end at t.
    """
    rng = np.random.default_rng(0)
    rho = 0.3
    smooth = 0.01
    x = rng.random((6, 7))
    t = rng.random((6, 7))

    def objective(flat):
        y = flat.reshape(x.shape)
        steps = np.concatenate([np.diff(x - y, axis=0).ravel(), np.diff(x - y, axis=1).ravel()])
        return ((y - t) ** 2).sum() + rho * (np.sqrt(steps**2 + smooth**2) - smooth).sum()

    best = minimize(
        objective,
        x.ravel(),
        method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 10**6, "ftol": 1e-14, "gtol": 1e-8},
    )
    goal = torch.tensor(t)[None, None]
    got = map_restoration(
        torch.tensor(x)[None, None],
        torch.ones(1, 1, 6, 7),
        lambda y: -(y - goal).square().flatten(1).sum(1),
        rho,
        [(3000, 0.1)],
    )
    assert objective(got.numpy().ravel()) == pytest.approx(best.fun, rel=1e-4)
    np.testing.assert_allclose(got[0, 0].numpy().ravel(), best.x, atol=5e-3)
    assert np.abs(best.x - t.ravel()).max() > 0.1


def test_one_step_is_that_of_the_formula_clipped_and_masked():
    b = batch(2)  # seeds what follows
    slope = torch.randn(1, 1, *SIDE) * 80
    slope[0, 0, 5, 5] = 5e3
    slope[0, 0, 6, 6] = -5e3
    got = map_restoration(
        b["image"], b["mask"], lambda y: (y * slope).flatten(1).sum(1), 0.0, [(1, 1e-3)]
    )
    torch.testing.assert_close(got, b["image"] + 1e-3 * slope.clamp(-100, 100) * b["mask"])
    assert (got - b["image"])[0, 0, 5, 5] == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("name", ["vae", "gmvae"])
def test_a_large_rho_leaves_the_slice_as_it_is_and_less_changes_the_larger_it_is(name):
    model = make(name, restoration="map").eval()
    b = batch()
    changes = []
    for rho in (0, 0.3, 3, 1e6):
        restored = map_restoration(b["image"], b["mask"], model.elbo, rho, [(50, 0.1)])
        changes.append((restored - b["image"]).abs().max().item())
    assert changes[0] > changes[1] > changes[2] > changes[3]
    assert changes[0] > 0.1 and changes[3] < 1e-5


@pytest.mark.parametrize("size", [0.01, 5.0])
@pytest.mark.parametrize("name", ["vae", "gmvae"])
def test_the_objective_never_falls_and_nothing_outside_the_mask_changes(name, size):
    model = make(name).double().eval()
    b = double(batch())
    x = b["image"] + 0.3 * (1 - b["mask"])
    values = []
    for count in range(8):
        y = map_restoration(x, b["mask"], model.elbo, 0.1, [(count, size)])
        assert torch.equal(y[b["mask"] == 0], x[b["mask"] == 0])
        with torch.no_grad():
            values.append(model.elbo(y) - 0.1 * total_variation(x - y))
    values = torch.stack(values)
    assert (values.diff(dim=0) >= -1e-9).all() and (values[-1] > values[0]).all()


@pytest.mark.parametrize("name", ["vae", "gmvae"])
def test_restoration_works_in_inference_mode_slice_by_slice_and_at_half_precision(name):
    model = make(name, restoration="map", schedule=[(10, 0.1)]).eval()
    b = batch()
    outside = model.anomaly_map(b["image"], b["mask"])
    restored = map_restoration(b["image"], b["mask"], model.elbo, model.rho, model.schedule)
    torch.testing.assert_close(outside, (b["image"] - restored).abs() * b["mask"])
    with torch.inference_mode():
        torch.testing.assert_close(
            model.anomaly_map(b["image"].clone(), b["mask"].clone()), outside
        )
        torch.testing.assert_close(
            model.anomaly_map(b["image"][2:3], b["mask"][2:3]), outside[2:3], atol=1e-5, rtol=1e-4
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(model.anomaly_map(b["image"], b["mask"]), outside)
        low = model.anomaly_map(b["image"].bfloat16(), b["mask"])
        assert (low - outside).abs().max() < 0.05
        assert model.anomaly_map(b["image"] * 0, b["mask"] * 0).abs().max() == 0


def test_the_elbo_is_the_loss_with_its_sign_turned():
    for name in ("vae", "gmvae"):
        model = make(name, beta=0.4).eval()
        b = batch()
        torch.testing.assert_close(
            model.elbo(b["image"]).mean() / (SIDE[0] * SIDE[1]), -model.loss(b)["loss"]
        )


# --- gmvae ---


def test_the_terms_of_the_mixture_are_those_of_torch_distributions():
    model = make("gmvae", dim_z=3, dim_w=2, dim_c=5, c_lambda=0.0, beta=0.3).double().eval()
    b = double(batch())
    features = model.encoder(b["image"])
    halves = [v.chunk(2, dim=1) for v in (model.to_z(features), model.to_w(features))]
    z, w = (D.Normal(m, (0.5 * v).exp()) for m, v in halves)
    assert z.mean.shape == (4, 3, 2, 3) and w.mean.shape == (4, 2, 2, 3)
    mean, log = (v.reshape(4, 5, 3, 2, 3) for v in model.prior(w.mean).chunk(2, dim=1))
    parts = D.Normal(mean, (0.5 * log).exp())
    chosen = D.Categorical(
        logits=parts.log_prob(z.mean[:, None]).sum(2).movedim(1, -1)
    )  # a uniform p(c) cancels
    apart = D.kl_divergence(D.Normal(z.mean[:, None], z.stddev[:, None]), parts).sum(2)
    want = {
        "squared_error": (model.decoder(z.mean) - b["image"]).square().sum((1, 2, 3)),
        "z": (chosen.probs.movedim(-1, 1) * apart).sum((1, 2, 3)),
        "w": D.kl_divergence(w, D.Normal(torch.zeros_like(w.mean), 1)).sum((1, 2, 3)),
        "c": D.kl_divergence(chosen, D.Categorical(torch.ones_like(chosen.probs))).sum((1, 2)),
    }
    got = model.terms(b["image"])
    for name, value in want.items():
        torch.testing.assert_close(got[name], value)
    total = want["squared_error"] + 0.3 * (want["z"] + want["w"] + want["c"])
    torch.testing.assert_close(model.loss(b)["loss"], total.mean() / (SIDE[0] * SIDE[1]))
    assert got["c"].min() > 0


def test_the_component_term_counts_at_least_c_lambda_at_each_place():
    free = make("gmvae", c_lambda=0.0).eval()
    held = make("gmvae", c_lambda=0.5).eval()
    x = batch()["image"]
    assert (free.terms(x)["c"] < 0.5 * 6).all()
    torch.testing.assert_close(held.terms(x)["c"], torch.full((4,), 0.5 * 6))  # 2 x 3 places


def test_one_component_at_the_standard_normal_makes_it_a_vae():
    model = make("gmvae", dim_c=1, dim_z=4, c_lambda=0.0).double().eval()
    b = double(batch())
    for p in model.prior[-1].parameters():
        nn.init.zeros_(p)
    terms = model.terms(b["image"])
    mean, log_variance = model.to_z(model.encoder(b["image"])).chunk(2, 1)
    z = D.Normal(mean, (0.5 * log_variance).exp())
    want = D.kl_divergence(z, D.Normal(torch.zeros_like(mean), 1)).sum((1, 2, 3))
    torch.testing.assert_close(terms["z"], want)
    assert terms["c"].abs().max() == 0


def test_gmvae_samples_in_training_alone_and_from_each_slice_s_own_seed():
    model = make("gmvae").train()
    b = batch()
    one, two, other = (
        model.loss(b | {"seed": s})["loss"] for s in (b["seed"], b["seed"], b["seed"] + 9)
    )
    assert one == two and one != other
    model.eval()
    assert model.loss(b)["loss"] == model.loss(b | {"seed": b["seed"] + 9})["loss"]
    mean = model.to_z(model.encoder(b["image"]))[:, :1]
    torch.testing.assert_close(model.reconstruct(b["image"]), model.decoder(mean))


# --- adversarial autoencoders ---


def twins(**arguments):
    plain = make("aae")
    held = make("constrained_aae", **arguments)
    held.load_state_dict(plain.state_dict())
    return plain, held


def test_without_constraint_constrained_aae_is_aae():
    plain, held = twins(rho=0.0)
    b = batch()
    plain.eval(), held.eval()
    for loss in ("loss", "critic_loss"):
        assert getattr(plain, loss)(b)["loss"] == getattr(held, loss)(b)["loss"]
        for model in (plain, held):
            model.zero_grad()
            getattr(model, loss)(b)["loss"].backward()
        for p, q in zip(plain.parameters(), held.parameters(), strict=True):
            assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)


def test_the_constraint_is_the_distance_of_both_codes_and_0_for_a_perfect_reconstruction():
    plain, held = twins(rho=0.7)
    b = batch()
    plain.eval(), held.eval()
    code, again = (
        held.encoder(x).flatten(1).detach().numpy()
        for x in (b["image"], held.reconstruct(b["image"]))
    )
    want = ((code - again) ** 2).sum(1).mean() / (SIDE[0] * SIDE[1])
    got = held.loss(b)
    assert got["constraint"].item() == pytest.approx(want, rel=1e-4)
    torch.testing.assert_close(got["loss"], plain.loss(b)["loss"] + 0.7 * want)
    held.decoder = Always(b["image"])
    assert held.train().loss(b)["constraint"] == 0


def test_an_autoencoder_s_loss_is_squared_error_minus_the_critic_s_value():
    model = make("aae", adversarial=0.3).eval()
    b = batch()
    code = model.encoder(b["image"])
    error = (model.decoder(code) - b["image"]).square().sum((1, 2, 3))
    want = (error - 0.3 * model.critic(code)[:, 0]).mean() / (SIDE[0] * SIDE[1])
    torch.testing.assert_close(model.loss(b)["loss"], want)


@pytest.mark.parametrize("name", ["aae", "constrained_aae", "ano_vae_gan"])
def test_critic_and_autoencoder_move_themselves_alone(name):
    model = make(name, n_critic=3).train()
    b = batch()
    critic, coder = model.updates("train")
    assert (critic.every, coder.every) == (1, 3)
    critic.loss(b)["loss"].backward()
    assert all(p.grad is None for k, p in model.named_parameters() if not k.startswith("critic"))
    named = {id(p) for p in critic.parameters}
    assert named == {id(p) for p in model.critic.parameters()}
    assert {id(p) for p in coder.parameters} == {id(p) for p in model.parameters()} - named


def test_the_latent_critic_compares_normal_numbers_with_codes():
    model = make("aae", latent=6, penalty=7.0).eval()
    b = batch()
    code = model.encoder(b["image"]).detach()
    assert code.shape == (4, 6, 1, 1)
    normal = []
    for seed in b["seed"]:
        source = torch.Generator().manual_seed(int(seed) * 1_000_003 + 3)
        normal.append(torch.randn(6, 1, 1, generator=source))
    normal = torch.stack(normal)
    distance = model.critic(normal).mean() - model.critic(code).mean()
    penalty = gradient_penalty(model.critic, normal, code, b["seed"])
    torch.testing.assert_close(model.critic_loss(b)["loss"], -distance + 7 * penalty)
    with torch.no_grad():
        torch.testing.assert_close(model.critic_loss(b)["loss"], -distance)


def test_the_gradient_penalty_of_a_linear_latent_critic_is_known():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(5, 1, bias=False))
    real = torch.randn(8, 5, 1, 1)
    fake = torch.randn(8, 5, 1, 1)
    torch.testing.assert_close(
        gradient_penalty(critic, real, fake, torch.arange(8)),
        (critic[1].weight.norm() - 1).square(),
    )
    assert latent_critic(5)(real).shape == (8, 1)


@pytest.mark.slow
def test_codes_of_an_adversarial_autoencoder_become_normal():
    """Wasserstein distance of each code number to N(0, 1), by scipy.

    With and without the critic in the loss.
    """
    grey = torch.rand(64, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    x = grey.repeat_interleave(4, 2).repeat_interleave(8, 3)
    x = torch.cat([x[:, :1], x[:, 1:]], dim=2)  # two grey levels, one over the other
    normal = np.random.default_rng(0).normal(size=2000)
    distances = []
    for weight in (0.0, 10.0):
        model = make(
            "aae", channels=(8,), image_size=(8, 8), latent=2, adversarial=weight, n_critic=3
        ).train()
        updates = model.updates("train")
        optimizers = [torch.optim.Adam(list(u.parameters), 2e-3, betas=(0.5, 0.9)) for u in updates]
        for step in range(450):
            for update, optimizer in zip(updates, optimizers, strict=True):
                if step % update.every == 0:
                    optimizer.zero_grad()
                    b = {"image": x, "seed": torch.arange(64) + 64 * step}
                    update.loss(b)["loss"].backward()
                    optimizer.step()
        code = model.encoder(x).flatten(1).detach().numpy()
        distances.append(np.mean([wasserstein_distance(column, normal) for column in code.T]))
    assert distances[1] < 0.4 * distances[0]


# --- ano_vae_gan ---


def test_the_loss_of_ano_vae_gan_is_laplace_likelihood_kl_and_critic():
    model = make("ano_vae_gan", beta=0.6, adversarial=0.4).double().eval()
    b = double(batch())
    mean, log_variance = model.encode(b["image"])
    rebuilt = model.decoder(mean)
    pixels = SIDE[0] * SIDE[1]
    log_p = D.Laplace(rebuilt, 1).log_prob(b["image"]).sum((1, 2, 3)) + pixels * np.log(2)
    normal = D.Normal(mean, (0.5 * log_variance).exp())
    kl = D.kl_divergence(normal, D.Normal(torch.zeros_like(mean), 1)).sum((1, 2, 3))
    want = (-log_p + 0.6 * kl - 0.4 * model.critic(rebuilt).flatten()).mean() / pixels
    torch.testing.assert_close(model.loss(b)["loss"], want)


def test_the_critic_of_ano_vae_gan_holds_slices_for_real_and_reconstructions_for_fake():
    model = make("ano_vae_gan", penalty=7.0).eval()
    b = batch()
    rebuilt = model.reconstruct(b["image"]).detach()
    distance = model.critic(b["image"]).mean() - model.critic(rebuilt).mean()
    penalty = gradient_penalty(model.critic, b["image"], rebuilt, b["seed"])
    torch.testing.assert_close(model.critic_loss(b)["loss"], -distance + 7 * penalty)
    model.train()  # a drawn latent
    other = model.critic_loss(b | {"seed": b["seed"] + 9})["distance"]
    assert model.critic_loss(b)["distance"] != other


# --- dropout at inference ---


def test_dropped_channels_have_their_share_and_the_rest_makes_up_for_them():
    network = nn.Sequential(nn.Identity(), nn.Dropout2d(0.3)).eval()
    x = torch.ones(2, 500, 2, 3)
    state = torch.get_rng_state()
    drawn = dropout_passes(network, lambda: network(x), 20)
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn.shape == (20, 2, 500, 2, 3) and torch.equal(network(x), x)  # and no hook stays
    assert drawn.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert abs((drawn == 0).float().mean() - 0.3) < 0.02 and abs(drawn.mean() - 1) < 0.03
    assert (drawn == drawn[:, :1, :, :1, :1]).all() and (drawn[0] != drawn[1]).any()
    assert torch.equal(drawn, dropout_passes(network, lambda: network(x), 20))


def test_maps_of_passes_are_numpy_s_mean_and_standard_deviation():
    torch.manual_seed(0)
    x = torch.rand(3, 2, 4, 5)
    drawn = torch.rand(7, 3, 2, 4, 5)
    residual = np.abs(x.numpy() - drawn.numpy()).mean(0)
    spread = drawn.numpy().std(0)
    np.testing.assert_allclose(passes_map(x, drawn, "residual")[:, 0], residual.mean(1), rtol=1e-5)
    np.testing.assert_allclose(passes_map(x, drawn, "uncertainty")[:, 0], spread.mean(1), rtol=1e-5)
    np.testing.assert_allclose(
        passes_map(x, drawn, "normalised")[:, 0], (residual / (spread + 0.01)).mean(1), rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["residual", "uncertainty", "normalised"])
def test_the_map_of_passes_is_deterministic_and_slice_by_slice(kind):
    model = make("vae", dropout=0.3, passes=4, map=kind).eval()
    b = batch()
    with torch.inference_mode():
        one = model.anomaly_map(b["image"], b["mask"])
        two = model.anomaly_map(b["image"], b["mask"])
        torch.testing.assert_close(
            model.anomaly_map(b["image"][1:2], b["mask"][1:2]), one[1:2], atol=1e-5, rtol=1e-4
        )
        drawn = dropout_passes(model, lambda: model.reconstruct(b["image"]), 4)
    assert torch.equal(one, two)
    assert (one >= 0).all() and one.max() > 0
    assert one[b["mask"] == 0].abs().max() == 0
    assert (drawn.std(0) > 0).any()
    torch.testing.assert_close(one, passes_map(b["image"], drawn, kind) * b["mask"])


def test_without_dropout_passes_agree():
    model = make("vae", passes=3, map="uncertainty").eval()
    b = batch()
    assert model.anomaly_map(b["image"], b["mask"]).abs().max() == 0
    plain = make("vae").eval()
    model.map = "residual"
    torch.testing.assert_close(
        model.anomaly_map(b["image"], b["mask"]), plain.anomaly_map(b["image"], b["mask"])
    )


def test_options_that_exclude_each_other_are_refused():
    for arguments, message in (
        ({"dropout": 1.0}, "below 1"),
        ({"map": "uncertainty"}, "passes of 2 or more"),
        ({"passes": 3, "restoration": "map"}, "choose one"),
        ({"uncertainty": True, "restoration": "map"}, "choose one"),
        ({"spatial_dims": 3, "image_size": (16, 16, 16), "restoration": "map"}, "works on slices"),
    ):
        with pytest.raises(ValueError, match=message):
            make("vae", **arguments)
    with pytest.raises(ValueError, match=r"image_size \(18, 24\) must be divisible by 8"):
        make("gmvae", image_size=(18, 24))


# --- flow ---


def flow(size=3, seed=0):
    """A flow away from its start."""
    torch.manual_seed(seed)
    model = RealNvp(size, couplings=4, hidden=8).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    model.centre = torch.randn(size).double()
    model.spread = 0.5 + torch.rand(size).double()
    return model


def test_the_flow_is_inverted():
    model = flow(5)
    codes = torch.randn(20, 5, dtype=torch.float64)
    u, _ = model(codes)
    assert (u - codes).abs().max() > 0.1
    torch.testing.assert_close(model.inverse(u), codes)
    torch.testing.assert_close(model(model.inverse(codes))[0], codes)


def test_the_log_determinant_is_that_of_autograd_s_jacobian():
    model = flow()
    codes = torch.randn(6, 3, dtype=torch.float64)
    _, got = model(codes)
    for code, value in zip(codes, got, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda c: model(c[None])[0][0], code)
        assert value.item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-9)


def test_the_density_integrates_to_1():
    model = flow(2, seed=3)
    edge = torch.linspace(-15, 15, 1001, dtype=torch.float64)
    grid = torch.cartesian_prod(edge, edge)
    with torch.no_grad():
        total = model.log_prob(grid).exp().sum() * (edge[1] - edge[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-3)


def test_a_new_flow_is_the_standard_normal():
    codes = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(RealNvp(4).log_prob(codes), D.Normal(0, 1).log_prob(codes).sum(1))


@pytest.mark.slow
def test_a_fitted_flow_beats_a_gaussian_on_a_bent_cloud_and_is_the_same_at_every_fit():
    torch.manual_seed(0)
    x = torch.randn(1200, 1)
    codes = torch.cat([x, x**2 + 0.2 * torch.randn(1200, 1)], 1) * 3 + 5
    train = codes[:800]
    test = codes[800:]
    model = RealNvp(2)
    state = torch.get_rng_state()
    model.fit(train, steps=200)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        got = model.log_prob(test)
        gaussian = D.MultivariateNormal(train.mean(0), train.T.cov()).log_prob(test)
        model.fit(train, steps=200)
        assert torch.equal(model.log_prob(test), got)
    assert got.mean() > gaussian.mean() + 0.5
    with pytest.raises(ValueError, match="at least 2 slices, got 1"):
        model.fit(train[:1])


@pytest.mark.slow
def test_a_vae_with_a_flow_scores_by_the_density_of_its_latent_mean(tmp_path):
    model = make("vae", latent=4, prior="flow").eval()
    b = batch(60)
    (update,) = model.updates("train")
    assert not {id(p) for p in update.parameters} & {id(p) for p in model.flow.parameters()}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for p in model.parameters():
        p.requires_grad_(False)  # as the loop may leave them
    model.fit_reference([part(b, i, i + 16) for i in range(0, 60, 16)])
    after = model.state_dict()
    assert {k.split(".")[0] for k in after if not torch.equal(after[k], before[k])} == {"flow"}
    codes = model.encode(b["image"])[0].flatten(1)
    torch.testing.assert_close(model.flow.centre, codes.mean(0))
    with torch.inference_mode():
        score = model.score(b["image"], b["mask"])
        torch.testing.assert_close(score, -model.flow.log_prob(codes))
        strange = model.score(1 - b["image"], b["mask"])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(model.score(b["image"], b["mask"]), score)
        assert torch.isfinite(model.score(b["image"] * 0, b["mask"] * 0)).all()
    assert strange.mean() > score.mean() + 3 * score.std()
    torch.save(after, tmp_path / "weights.pt")
    other = make("vae", latent=4, prior="flow").eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    torch.testing.assert_close(other.score(b["image"], b["mask"]), score)
    assert make("vae").flow is None
