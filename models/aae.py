"""Adversarial autoencoder: codes of healthy slices follow a normal law (Makhzani et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import dense_decoder, dense_encoder, latent_critic
from models.parts.losses import code_critic_loss, squared_error


class Aae(AnomalyModel):
    """Autoencoder against a critic that tells its codes from normal numbers.

    The critic's loss is Wasserstein's with a gradient penalty (Gulrajani et al. 2017). It is
    stepped on every batch, the autoencoder on every `n_critic`-th. The autoencoder's loss is
    squared error - D(E(x)), summed per slice and divided by the number of pixels. Map:
    |x - reconstruction|.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; each halves the image.
        latent: length of the code.
        n_critic: critic steps per autoencoder step.
        penalty: weight of the gradient penalty.
        adversarial: weight of -D(E(x)).
        image_size: height and width of the slices.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128),
        latent: int = 64,
        n_critic: int = 5,
        penalty: float = 10.0,
        adversarial: float = 1.0,
        image_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        self.encoder = dense_encoder(in_channels, channels, latent, image_size)
        self.decoder = dense_decoder(latent, channels, in_channels, image_size)
        self.critic = latent_critic(latent)
        self.n_critic = n_critic
        self.penalty = penalty
        self.adversarial = adversarial

    def updates(self, stage: str) -> list[Update]:
        coder = [*self.encoder.parameters(), *self.decoder.parameters()]
        return [
            Update("critic", self.critic_loss, list(self.critic.parameters())),
            Update("autoencoder", self.loss, coder, every=self.n_critic),
        ]

    def critic_loss(self, batch: Batch) -> Losses:
        """Return D(E(x)) - D(normal numbers) + penalty; no gradient reaches the encoder."""
        return code_critic_loss(batch, self.encoder, self.critic, self.penalty)

    def loss(self, batch: Batch) -> Losses:
        """Return squared error - adversarial * D(E(x)) per slice, over the number of pixels."""
        return self.coded(batch)[2]

    def coded(self, batch: Batch) -> tuple[Tensor, Tensor, Losses]:
        """Return codes, reconstructions and the loss of both."""
        x = batch["image"]
        pixels = x[0].numel()
        code = self.encoder(x)
        rebuilt = self.decoder(code)
        error = squared_error(rebuilt, x).mean() / pixels
        judged = self.critic(code).mean() / pixels
        loss = error - self.adversarial * judged
        return code, rebuilt, {"loss": loss, "squared_error": error, "judged": judged}

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return (x - self.reconstruct(x)).abs().mean(1, keepdim=True) * mask
