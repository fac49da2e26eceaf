"""AnoVAEGAN: a VAE whose reconstructions a critic cannot tell from slices (Baur et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import dense_decoder, dense_encoder, image_critic
from models.parts.losses import critic_loss, gaussian, kl_divergence
from models.parts.randomness import draw_latent


class AnoVaeGan(AnomalyModel):
    """VAE with absolute error, and a Wasserstein critic of slices and their reconstructions.

    The critic has a gradient penalty (Gulrajani et al. 2017). It is stepped on every batch, the
    VAE on every `n_critic`-th. The VAE's loss is absolute error + beta * KL - adversarial * D(x'),
    summed per slice and divided by the number of pixels. The latent's mean is used at inference.
    Map: |x - reconstruction|.

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
        self.encoder = dense_encoder(in_channels, channels, 2 * latent, image_size)
        self.decoder = dense_decoder(latent, channels, in_channels, image_size)
        features, judged = image_critic(in_channels, channels, image_size)
        self.critic = nn.Sequential(*features, judged)
        self.beta = beta
        self.n_critic = n_critic
        self.penalty = penalty
        self.adversarial = adversarial

    def updates(self, stage: str) -> list[Update]:
        vae = [*self.encoder.parameters(), *self.decoder.parameters()]
        return [
            Update("critic", self.critic_loss, list(self.critic.parameters())),
            Update("vae", self.loss, vae, every=self.n_critic),
        ]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latent, each (B, latent, 1, 1)."""
        return gaussian(self.encoder(x))

    def decode(self, mean: Tensor, log_variance: Tensor, seeds: Tensor | None) -> Tensor:
        """Return the reconstruction from a latent that is drawn in training, else from its mean.

        Each slice's latent is drawn from its own seed.
        """
        return self.decoder(draw_latent(mean, log_variance, seeds) if self.training else mean)

    def critic_loss(self, batch: Batch) -> Losses:
        """Return D(x') - D(x) + penalty; no gradient reaches the VAE."""
        x = batch["image"]
        seeds = batch.get("seed")
        with torch.no_grad():
            rebuilt = self.decode(*self.encode(x), seeds)
        return critic_loss(self.critic, x, rebuilt, self.penalty, seeds)

    def loss(self, batch: Batch) -> Losses:
        """Return absolute error + beta * KL - adversarial * D(x') per slice, over its pixels."""
        x = batch["image"]
        pixels = x[0].numel()
        mean, log_variance = self.encode(x)
        rebuilt = self.decode(mean, log_variance, batch.get("seed"))

        error = F.l1_loss(rebuilt, x)
        kl = kl_divergence(mean, log_variance).mean() / pixels
        judged = self.critic(rebuilt).mean() / pixels
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
