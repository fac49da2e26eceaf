"""AnoVAEGAN: a VAE whose reconstructions a critic cannot tell from healthy slices (Baur et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import (
    critic_loss,
    dense_coder,
    drawn,
    gaussian,
    image_critic,
    kl_divergence,
)


class AnoVaeGan(AnomalyModel):
    """VAE with absolute error, and a Wasserstein critic of slices and their reconstructions (gradient penalty; Gulrajani et al. 2017).

    The critic is stepped on every batch, the VAE on every `n_critic`-th. VAE's loss: absolute error + beta * KL - adversarial * D(x'),
    summed per slice, divided by the number of pixels. The latent's mean is used at inference. Map: |x - reconstruction|.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks and of the critic's; each halves the image.
        latent: number of latent variables.
        beta: weight of the KL term.
        n_critic: critic steps per VAE step.
        penalty: weight of the gradient penalty.
        adversarial: weight of -D(x').
        image_size: height and width of the slices.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128),
        latent: int = 128,
        beta: float = 1.0,
        n_critic: int = 5,
        penalty: float = 10.0,
        adversarial: float = 1.0,
        image_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = dense_coder(in_channels, channels, latent, image_size)
        features, judged = image_critic(in_channels, channels, image_size)
        self.critic = nn.Sequential(*features, judged)
        self.beta, self.n_critic, self.penalty, self.adversarial = (
            beta,
            n_critic,
            penalty,
            adversarial,
        )

    def updates(self, stage: str) -> list[Update]:
        vae = [*self.encoder.parameters(), *self.decoder.parameters()]
        return [
            Update("critic", self.critic_loss, list(self.critic.parameters())),
            Update("vae", self.loss, vae, every=self.n_critic),
        ]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent, each (B, latent, 1, 1)."""
        return gaussian(self.encoder(x))

    def decode(self, mean: Tensor, log_variance: Tensor, seeds: Tensor | None) -> Tensor:
        """Reconstruction from a latent that is drawn in training, each slice's from its own seed, and its mean otherwise."""
        return self.decoder(drawn(mean, log_variance, seeds) if self.training else mean)

    def critic_loss(self, batch: Batch) -> Losses:
        """D(x') - D(x) + penalty; no gradient reaches the VAE."""
        x, seeds = batch["image"], batch.get("seed")
        with torch.no_grad():
            rebuilt = self.decode(*self.encode(x), seeds)
        return critic_loss(self.critic, x, rebuilt, self.penalty, seeds)

    def loss(self, batch: Batch) -> Losses:
        """Absolute error + beta * KL - adversarial * D(x') per slice, over the number of pixels."""
        x, pixels = batch["image"], batch["image"][0].numel()
        mean, log_variance = self.encode(x)
        rebuilt = self.decode(mean, log_variance, batch.get("seed"))
        error = F.l1_loss(rebuilt, x)
        kl, judged = (
            kl_divergence(mean, log_variance).mean() / pixels,
            self.critic(rebuilt).mean() / pixels,
        )
        return {
            "loss": error + self.beta * kl - self.adversarial * judged,
            "absolute_error": error,
            "kl": kl,
            "judged": judged,
        }

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)[0])

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return (x - self.reconstruct(x)).abs().mean(1, keepdim=True) * mask
