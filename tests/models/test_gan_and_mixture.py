"""f_anogan and dagmm by the properties that define them."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from models import create_model
from models.parts.losses import gradient_penalty

SIDE = (16, 16)


def batch(n=8, seed=0):
    torch.manual_seed(seed)
    mask = torch.zeros(n, 1, *SIDE)
    mask[:, :, 2:14, 3:13] = 1
    return {"image": torch.rand(n, 1, *SIDE) * mask, "mask": mask, "seed": torch.arange(n)}


def part(b, start, end):
    """The slices of a batch from `start` to `end`."""
    return {k: v[start:end] for k, v in b.items()}


def gan(**arguments):
    torch.manual_seed(0)
    return create_model(
        "f_anogan", **({"channels": (4, 8), "latent": 6, "image_size": SIDE} | arguments)
    )


class Always(torch.nn.Module):
    """Gives one tensor for every input."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, z):
        return self.value


def steps(model, stage, count=3):
    updates = model.updates(stage)
    optimizers = [torch.optim.Adam(list(u.parameters), 1e-3) for u in updates]
    for step in range(count):
        for update, optimizer in zip(updates, optimizers, strict=True):
            for p in model.parameters():
                p.requires_grad_(any(p is q for q in update.parameters))
            optimizer.zero_grad()
            update.loss(batch(seed=step))["loss"].backward()
            optimizer.step()


@pytest.mark.parametrize("encode", ["izif", "izi", "ziz"])
def test_the_encoder_stage_leaves_generator_and_critic_as_they_are(encode):
    model = gan(encode=encode).train()
    steps(model, "gan")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    steps(model, "encoder")
    after = model.state_dict()
    changed = {k.split(".")[0] for k in after if not torch.equal(after[k], before[k])}
    assert changed == {"encoder"}  # batch statistics of the generator included


def test_without_feature_weight_izif_is_izi():
    b = batch()
    model = gan(kappa=0.0)
    izif = model.encoder_loss(b)["loss"]
    model.encode = "izi"
    assert izif == model.encoder_loss(b)["loss"]


def test_the_score_is_zero_for_a_perfect_reconstruction_alone(monkeypatch):
    model = gan().eval()
    b = batch()
    assert (model.score(b["image"], b["mask"]) > 0).all()
    monkeypatch.setattr(model, "reconstruct", lambda x: x)
    assert model.score(b["image"], b["mask"]).abs().max() == 0


def test_the_score_is_image_plus_kappa_times_feature_error():
    model = gan(kappa=0.3).eval()
    b = batch()
    rebuilt = model.reconstruct(b["image"]) * b["mask"]
    image = (rebuilt - b["image"]).square().mean((1, 2, 3))
    feature = (model.features(rebuilt) - model.features(b["image"])).square().mean((1, 2, 3))
    torch.testing.assert_close(model.score(b["image"], b["mask"]), image + 0.3 * feature)


def test_the_gradient_penalty_of_a_linear_critic_is_known():
    """D(x) = w . x has gradient w everywhere: the penalty is (|w| - 1)^2."""
    model = gan()
    b = batch()
    weights = torch.randn(1, *SIDE)
    model.judge = lambda x: (x * weights).flatten(1).sum(1)
    want = (weights.norm() - 1).square()
    torch.testing.assert_close(
        gradient_penalty(model.judge, b["image"], 1 - b["image"], b["seed"]), want
    )
    torch.testing.assert_close(gradient_penalty(model.judge, b["image"], 1 - b["image"]), want)


def test_the_critic_loss_is_the_wasserstein_distance_and_the_penalty():
    model = gan(penalty=7.0).eval()
    b = batch()
    got = model.critic_loss(b)
    fake = model.generator(model.noise(b)).detach()
    distance = model.judge(b["image"]).mean() - model.judge(fake).mean()
    penalty = gradient_penalty(model.judge, b["image"], fake, b["seed"])
    torch.testing.assert_close(got["loss"], -distance + 7 * penalty)
    with torch.no_grad():
        # Validation has no gradients.
        torch.testing.assert_close(model.critic_loss(b)["loss"], -distance)


def test_a_collapsed_generator_shows_in_the_diversity(monkeypatch):
    model = gan()
    b = batch()
    healthy = model.generator_loss(b)["diversity"]
    monkeypatch.setattr(model, "noise", lambda batch, stream=3: torch.ones(8, 6, 1, 1))
    assert model.generator_loss(b)["diversity"] < 1e-6 < healthy
    model.generator = Always(b["image"])
    assert model.generator_loss(b)["diversity"] == pytest.approx(1)


def test_generated_slices_are_the_same_at_every_call():
    model = gan().eval()
    assert torch.equal(model.draw(3), model.draw(3)) and model.draw(3).shape == (3, 1, *SIDE)


def test_two_channels_and_another_size():
    model = gan(in_channels=2, image_size=(32, 16)).eval()
    x = torch.rand(2, 2, 32, 16)
    assert model.reconstruct(x).shape == x.shape
    assert model.anomaly_map(x, torch.ones(2, 1, 32, 16)).shape == (2, 1, 32, 16)


def mixture(**arguments):
    torch.manual_seed(0)
    return create_model(
        "dagmm", **({"channels": (4, 8), "code": 3, "image_size": SIDE} | arguments)
    )


def random_mixture(seed=0, k=3, n=5):
    rng = np.random.default_rng(seed)
    phi = rng.dirichlet(np.ones(k))
    roots = rng.normal(size=(k, n, n))
    return phi, rng.normal(size=(k, n)), roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(n)


def test_the_energy_is_scipy_s_mixture_log_density():
    phi, mu, covariance = random_mixture()
    points = np.random.default_rng(1).normal(size=(20, 5)) * 2
    got = mixture(jitter=0.0).energy(*(torch.tensor(v) for v in (points, phi, mu, covariance)))
    logs = [
        np.log(p) + multivariate_normal(m, c).logpdf(points)
        for p, m, c in zip(phi, mu, covariance, strict=True)
    ]
    np.testing.assert_allclose(got.numpy(), -logsumexp(logs, axis=0), rtol=1e-9)


def test_the_energy_stays_finite_far_away_and_for_singular_covariances():
    phi, mu, covariance = random_mixture()
    far = torch.full((2, 5), 1e4, dtype=torch.float64)
    energy = mixture().energy(far, *(torch.tensor(v) for v in (phi, mu, covariance)))
    assert torch.isfinite(energy).all()
    flat = torch.zeros(3, 5, 5, dtype=torch.float64)
    energy = mixture().energy(far, torch.tensor(phi), torch.tensor(mu), flat)
    assert torch.isfinite(energy).all() and (energy > 1e6).all()


def test_the_mixture_is_that_of_weighted_numpy_moments():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4))
    w = rng.dirichlet(np.ones(2), 30)
    phi, mu, covariance = mixture().mixture(torch.tensor(x), torch.tensor(w))
    assert float(phi.sum()) == pytest.approx(1)
    np.testing.assert_allclose(phi, w.mean(0))
    for k in range(2):
        np.testing.assert_allclose(mu[k], np.average(x, axis=0, weights=w[:, k]))
        np.testing.assert_allclose(covariance[k], np.cov(x.T, aweights=w[:, k], ddof=0), atol=1e-12)


def test_features_hold_code_relative_error_and_cosine():
    model = mixture().eval()
    b = batch()
    features, rebuilt = model.features(b["image"])
    x, y = (v.flatten(1).detach().numpy() for v in (b["image"], rebuilt))
    np.testing.assert_allclose(
        features[:, -2].detach(),
        np.linalg.norm(x - y, axis=1) / np.linalg.norm(x, axis=1),
        rtol=1e-4,
    )
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(features[:, -1].detach(), cosine, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(features[:, :-2], model.encoder(b["image"]))


def test_the_reference_mixture_is_fitted_on_all_slices_and_strange_ones_have_a_higher_energy():
    model = mixture().eval()
    b = batch(60)
    model.fit_reference([part(b, i, i + 16) for i in range(0, 60, 16)])
    features, _ = model.features(b["image"])
    membership = model.estimation(features).softmax(1)
    want = model.mixture(features, membership)
    for name, value in zip(("phi", "mu", "covariance"), want, strict=True):
        torch.testing.assert_close(getattr(model, name), value.detach())
    usual = model.score(b["image"], b["mask"])
    strange = model.score(1 - b["image"], b["mask"])
    assert strange.mean() > usual.mean() + 3 * usual.std()
