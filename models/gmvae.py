"""Gaussian-mixture VAE with MAP restoration (You et al. 2019; Chen et al. 2020).

The mixture is that of Dilokthanakul et al. 2016.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import coarse_size, decoder, encoder
from models.parts.losses import gaussian, kl_divergence, squared_error
from models.parts.randomness import draw_latent
from models.parts.restoration import map_restoration


class Gmvae(AnomalyModel):
    """VAE whose latent z has a mixture of Gaussians as its prior, at each place of a coarse map.

    Healthy anatomy: w ~ N(0, 1), c ~ uniform over `dim_c` components, z | w, c ~ N(mu_c(w),
    var_c(w)), x | z ~ N(D(z), 1). The encoder gives q(z | x) and q(w | x). p(c | z, w) follows from
    Bayes' rule.

    Loss, per slice: squared error + beta * (Z + W + C), divided by the number of pixels.
    Z = sum_c p(c | z, w) KL(q(z | x) || p(z | w, c)). W = KL(q(w | x) || N(0, 1)).
    C = max(c_lambda, KL(p(c | z, w) || uniform)) at each place. At inference z and w are their
    means. Map: |x - restored|, or |x - reconstruction| without restoration.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; each halves the image.
        dim_z: latent variables z at each place.
        dim_w: latent variables w at each place.
        dim_c: number of components.
        c_lambda: the least that the component term counts at a place, in nats, so that components
            do not merge at once.
        beta: weight of the latent terms.
        restoration: "map" climbs to the most likely slice near x; "none" decodes the latent's mean.
        rho: weight of the restoration's total variation.
        schedule: pairs of a number of restoration steps and their size.
        image_size: height and width of the slices.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64),
        dim_z: int = 1,
        dim_w: int = 1,
        dim_c: int = 6,
        c_lambda: float = 0.5,
        beta: float = 0.05,
        restoration: Literal["none", "map"] = "map",
        rho: float = 0.1,
        schedule: Sequence[tuple[int, float]] = ((50, 0.1),),
        image_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        coarse_size(image_size, channels)  # refuses what the blocks cannot halve
        self.encoder = encoder(in_channels, channels)
        self.to_z = nn.Conv2d(channels[-1], 2 * dim_z, 1)
        self.to_w = nn.Conv2d(channels[-1], 2 * dim_w, 1)
        self.prior = nn.Sequential(
            nn.Conv2d(dim_w, 64, 1), nn.LeakyReLU(0.1), nn.Conv2d(64, 2 * dim_c * dim_z, 1)
        )
        self.decoder = decoder(dim_z, channels, in_channels)
        self.dim_c = dim_c
        self.c_lambda = c_lambda
        self.beta = beta
        self.restoration = restoration
        self.rho = rho
        self.schedule = schedule

    def updates(self, stage: str) -> list[Update]:
        return [Update("elbo", self.loss, list(self.parameters()))]

    def terms(self, x: Tensor, seeds: Tensor | None = None, sample: bool = False) -> Losses:
        """Return the four terms of the negative ELBO, each per slice, (B,).

        z and w are drawn with `sample`, else they are their means.
        """
        features = self.encoder(x)
        z_mean, z_log = gaussian(self.to_z(features))
        w_mean, w_log = gaussian(self.to_w(features))
        z = draw_latent(z_mean, z_log, seeds) if sample else z_mean
        w = draw_latent(w_mean, w_log, seeds, stream=7) if sample else w_mean

        # (B, dim_c, dim_z, h, w) each.
        mean, log = (half.unflatten(1, (self.dim_c, -1)) for half in gaussian(self.prior(w)))
        # log N(z; mean, exp(log)) but for a constant, and log p(c | z, w).
        density = -0.5 * (log + (z[:, None] - mean).square() * (-log).exp()).sum(2)
        chosen = density.log_softmax(1)
        distance = (z_mean[:, None] - mean).square() + z_log[:, None].exp()
        divergence = 0.5 * (log - z_log[:, None] + distance * (-log).exp() - 1).sum(2)
        component = (chosen.exp() * (chosen + math.log(self.dim_c))).sum(1)
        return {
            "squared_error": squared_error(self.decoder(z), x),
            "z": (chosen.exp() * divergence).flatten(1).sum(1),
            "w": kl_divergence(w_mean, w_log),
            "c": component.clamp(min=self.c_lambda).flatten(1).sum(1),
        }

    def loss(self, batch: Batch) -> Losses:
        """Return the negative evidence lower bound per pixel; its terms are logged."""
        pixels = batch["image"][0].numel()
        terms = self.terms(batch["image"], batch.get("seed"), self.training)
        means = {name: term.mean() / pixels for name, term in terms.items()}
        loss = means["squared_error"] + self.beta * (means["z"] + means["w"] + means["c"])
        return {"loss": loss, **means}

    def elbo(self, x: Tensor) -> Tensor:
        """Return what the loss lowers, with its sign turned, per slice (B,).

        The latents are their means.
        """
        terms = self.terms(x)
        return -terms["squared_error"] - self.beta * (terms["z"] + terms["w"] + terms["c"])

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(gaussian(self.to_z(self.encoder(x)))[0])

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        if self.restoration == "map":
            healthy = map_restoration(x, mask, self.elbo, self.rho, self.schedule)
        else:
            healthy = self.reconstruct(x)
        return (x - healthy).abs().mean(1, keepdim=True) * mask
