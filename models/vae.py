"""Fully convolutional VAE with 256 latent variables (Kingma & Welling 2014).

Chatterjee et al., abstract on MOOD and BraTS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.dropout import dropout_passes, passes_map
from models.parts.flow import RealNvp
from models.parts.layers import dense_decoder, dense_encoder
from models.parts.losses import (
    full_precision,
    gaussian,
    kl_divergence,
    negative_elbo,
    squared_error,
    uncertain_error,
    weighted_error,
)
from models.parts.restoration import map_restoration


class Vae(AnomalyModel):
    """VAE whose last convolution covers what the encoder leaves of the image.

    So `latent` numbers describe the slice or volume. Loss: squared error + beta * KL, summed per
    image and divided by the number of pixels. The latent's mean is used at inference.

    Map: |x - reconstruction|. With `passes` it is made of that many reconstructions with dropout
    kept on (Gal & Ghahramani 2016). With `restoration` it is |x - restored| (Chen et al. 2020).

    Score: mean of the map. With the "flow" prior it is -log p of the latent's mean under a RealNVP
    (Dinh et al. 2017), which `fit_reference` fits to the training slices' means.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; each halves the image.
        latent: number of latent variables.
        beta: weight of the KL term.
        uncertainty: the decoder gives a log-variance too; the squared error and the map become
            those of `aeu`.
        dropout: share of channels dropped in training, from 0 to below 1.
        passes: reconstructions with dropout at inference; 0 makes one without.
        map: with `passes`, the mean "residual", the standard deviation over passes ("uncertainty")
            or their ratio ("normalised").
        restoration: "map" climbs to the most likely slice near x; "none" decodes the latent's mean.
        rho: weight of the restoration's total variation.
        schedule: pairs of a number of restoration steps and their size.
        prior: what the score holds the latent's mean against: "normal" (nothing, the map is the
            score) or a fitted "flow".
        image_size: height and width of the slices, or the three sides of volumes.
        spatial_dims: 2 for slices (B, C, H, W), 3 for volumes (B, C, X, Y, Z).
    """

    scoring_arguments = ("passes", "map", "restoration", "rho", "schedule")

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        latent: int = 256,
        beta: float = 1.0,
        uncertainty: bool = False,
        dropout: float = 0.0,
        passes: int = 0,
        map: Literal["residual", "uncertainty", "normalised"] = "residual",
        restoration: Literal["none", "map"] = "none",
        rho: float = 0.1,
        schedule: Sequence[tuple[int, float]] = ((50, 0.1),),
        prior: Literal["normal", "flow"] = "normal",
        image_size: tuple[int, ...] = (128, 128),
        spatial_dims: Literal[2, 3] = 2,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a share from 0 to below 1, got {dropout}")
        if map != "residual" and passes < 2:
            raise ValueError(f"map: '{map}' needs passes of 2 or more, got {passes}")
        if (passes > 0) + (restoration == "map") + uncertainty > 1:
            raise ValueError(
                "passes, restoration and uncertainty each make a map of their own; choose one"
            )
        if restoration == "map" and spatial_dims == 3:
            raise ValueError("restoration: 'map' works on slices; leave spatial_dims at 2")
        outputs = (1 + uncertainty) * in_channels
        self.encoder = dense_encoder(
            in_channels, channels, 2 * latent, image_size, spatial_dims, dropout
        )
        self.decoder = dense_decoder(latent, channels, outputs, image_size, spatial_dims, dropout)
        self.flow = RealNvp(latent) if prior == "flow" else None
        self.beta = beta
        self.uncertainty = uncertainty
        self.passes = passes
        self.map = map
        self.restoration = restoration
        self.rho = rho
        self.schedule = schedule

    def updates(self, stage: str) -> list[Update]:
        return [Update("elbo", self.loss, [*self.encoder.parameters(), *self.decoder.parameters()])]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latent, each (B, latent, 1, 1).

        With one more 1 for volumes.
        """
        return gaussian(self.encoder(x))

    def loss(self, batch: Batch) -> Losses:
        """Return the negative evidence lower bound per pixel, up to constants.

        The Gaussian of x has unit variance, or with `uncertainty` a learned one.
        """
        x = batch["image"]
        seeds = batch.get("seed")
        error = uncertain_error if self.uncertainty else squared_error
        return negative_elbo(
            x, self.encode(x), self.decoder, seeds, self.training, self.beta, error
        )

    def elbo(self, x: Tensor) -> Tensor:
        """Return what the loss lowers, with its sign turned, per slice (B,).

        The latent is its mean.
        """
        mean, log_variance = self.encode(x)
        return -squared_error(self.decoder(mean), x) - self.beta * kl_divergence(mean, log_variance)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)[0])[:, : x.shape[1]]

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """Fit the flow to all training slices' latent means."""
        if self.flow is None:
            return
        device = self.flow.get_buffer("centre").device
        with torch.no_grad():
            codes = [self.encode(b["image"].to(device))[0].flatten(1) for b in batches]
        self.flow.fit(torch.cat(codes))

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        """Return the mean of the map inside the mask.

        With the flow prior -log p(mean) in nats, which may be negative.
        """
        if self.flow is None:
            return super().score(x, mask, z)
        with torch.autocast(x.device.type, enabled=False):
            return -self.flow.log_prob(self.encode(x.float())[0].flatten(1))

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        if self.uncertainty:
            decoded = full_precision(lambda y: self.decoder(self.encode(y)[0]), x)
            return weighted_error(decoded, x)[0].mean(1, keepdim=True) * mask
        if self.passes:
            results = dropout_passes(self, lambda: self.reconstruct(x), self.passes)
            return passes_map(x, results, self.map) * mask
        if self.restoration == "map":
            healthy = map_restoration(x, mask, self.elbo, self.rho, self.schedule)
        else:
            healthy = self.reconstruct(x)
        return (x - healthy).abs().mean(1, keepdim=True) * mask
