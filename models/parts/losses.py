"""Errors, evidence lower bounds and critics' losses that models share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts.randomness import draw_latent, generator, randn


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_variance)) || N(0, 1)) summed over all but the batch, (B,).

    Kingma & Welling 2014.
    """
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).flatten(1).sum(1)


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared difference summed over all but the batch, (B,)."""
    return F.mse_loss(x, y, reduction="none").flatten(1).sum(1)


def gaussian(code: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log-variance, the halves of a code (B, 2 * latent, ...).

    The log-variance is held to +-20, so that its exponential stays finite.
    """
    mean, log_variance = code.chunk(2, dim=1)
    return mean, log_variance.clamp(-20, 20)


def weighted_error(decoded: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(-v) * (x - mean)^2 and the log-variance v, each (B, C, H, W).

    The decoder gives mean and v as the halves of its channels. The sum of both results is
    -2 log N(x; mean, exp(v)) up to a constant. Mao et al. 2020.
    """
    decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
    mean, log_variance = decoded.chunk(2, dim=1)
    # A standard deviation from 0.007 to 150. Without a limit the background, which is known
    # exactly, would weigh without limit too.
    log_variance = log_variance.clamp(-10, 10)
    return torch.exp(-log_variance) * (x - mean).square(), log_variance


def full_precision(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return function(x) in float32, also under autocast.

    For results that show autocast's rounding, such as an error over a variance of exp(-7).
    """
    with torch.autocast(x.device.type, enabled=False):
        return function(x.float())


def uncertain_error(decoded: Tensor, x: Tensor) -> Tensor:
    """Return the sum of both parts of `weighted_error` over all but the batch, (B,)."""
    error, log_variance = weighted_error(decoded, x)
    return (error + log_variance).flatten(1).sum(1)


def negative_elbo(
    x: Tensor,
    latent: tuple[Tensor, Tensor],
    decode: Callable[[Tensor], Tensor],
    seeds: Tensor | None,
    sample: bool,
    beta: float,
    error_of: Callable[[Tensor, Tensor], Tensor] = squared_error,
) -> dict[str, Tensor]:
    """Return `loss` of a VAE = squared error + beta * KL; both terms are logged.

    Each term is summed per slice, averaged over the batch and divided by the number of pixels.

    Args:
        x: images (B, C, ...).
        latent: mean and log-variance of the latent.
        decode: latent to image.
        seeds: one seed per slice (B,), or None.
        sample: draw the latent, each slice's from its own seed; otherwise decode its mean.
        beta: weight of the KL term.
        error_of: (decoded, x) -> (B,), another -2 log likelihood in place of the squared error.
    """
    mean, log_variance = latent
    pixels = x[0].numel()
    code = draw_latent(mean, log_variance, seeds) if sample else mean
    error = error_of(decode(code), x).mean() / pixels
    kl = kl_divergence(mean, log_variance).mean() / pixels
    return {"loss": error + beta * kl, "squared_error": error, "kl": kl}


def critic_loss(
    judge: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    penalty: float,
    seeds: Tensor | None,
) -> dict[str, Tensor]:
    """Return the Wasserstein loss of a critic D: D(fake) - D(real) + penalty * gradient penalty.

    The penalty is left out where no gradients flow.
    """
    distance = judge(real).mean() - judge(fake).mean()
    if not torch.is_grad_enabled():
        return {"loss": -distance, "distance": distance}
    slope = gradient_penalty(judge, real, fake, seeds)
    return {"loss": -distance + penalty * slope, "distance": distance, "penalty": slope}


def code_critic_loss(
    batch: dict[str, Tensor], encode: nn.Module, critic: nn.Module, penalty: float
) -> dict[str, Tensor]:
    """Return `critic_loss` of a batch's codes against normal numbers, seeded slice by slice.

    No gradient reaches the encoder.
    """
    seeds = batch.get("seed")
    with torch.no_grad():
        code = encode(batch["image"])
    return critic_loss(critic, randn(code, seeds, stream=3), code, penalty, seeds)


def gradient_penalty(
    judge: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, seeds: Tensor | None = None
) -> Tensor:
    """Return the mean of (|d D / dx| - 1)^2 at one random point between real and fake samples.

    Args: real and fake (B, C, H, W); seeds (B,) or None. Gulrajani et al. 2017.
    """
    if seeds is None:
        share = torch.rand(len(real), 1, 1, 1).to(real)
    else:
        draws = [torch.rand(1, 1, 1, generator=generator(s, 4)) for s in seeds.tolist()]
        share = torch.stack(draws).to(real)

    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(judge(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def input_gradient(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return d function(x) / dx, of the shape of x; `function` gives a scalar.

    Works inside `torch.inference_mode` too.
    """
    with torch.inference_mode(False), torch.enable_grad():
        y = x.detach().clone().requires_grad_()
        return torch.autograd.grad(function(y), y)[0]
