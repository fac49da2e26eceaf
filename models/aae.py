"""Adversarial autoencoder: an autoencoder whose codes of healthy slices follow a normal distribution (Makhzani et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import code_critic_loss, dense_coder, latent_critic, squared_error


class Aae(AnomalyModel):
    """Autoencoder against a critic that tells its codes from normal numbers (Wasserstein, gradient penalty; Gulrajani et al. 2017).

    The critic is stepped on every batch, the autoencoder on every `n_critic`-th. Autoencoder's loss: squared error - D(E(x)), summed
    per slice, divided by the number of pixels. Map: |x - reconstruction|.

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
        self.encoder, self.decoder = dense_coder(
            in_channels, channels, latent, image_size, numbers=1
        )
        self.critic = latent_critic(latent)
        self.n_critic, self.penalty, self.adversarial = n_critic, penalty, adversarial

    def updates(self, stage: str) -> list[Update]:
        coder = [*self.encoder.parameters(), *self.decoder.parameters()]
        return [
            Update("critic", self.critic_loss, list(self.critic.parameters())),
            Update("autoencoder", self.loss, coder, every=self.n_critic),
        ]

    def critic_loss(self, batch: Batch) -> Losses:
        """D(E(x)) - D(normal numbers) + penalty; no gradient reaches the encoder."""
        return code_critic_loss(batch, self.encoder, self.critic, self.penalty)

    def loss(self, batch: Batch) -> Losses:
        """Squared error - adversarial * D(E(x)) per slice, over the number of pixels."""
        return self.coded(batch)[2]

    def coded(self, batch: Batch) -> tuple[Tensor, Tensor, Losses]:
        """Codes, reconstructions and the loss of both."""
        x = batch["image"]
        code, pixels = self.encoder(x), x[0].numel()
        rebuilt = self.decoder(code)
        error, judged = squared_error(rebuilt, x).mean() / pixels, self.critic(code).mean() / pixels
        return (
            code,
            rebuilt,
            {"loss": error - self.adversarial * judged, "squared_error": error, "judged": judged},
        )

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return (x - self.reconstruct(x)).abs().mean(1, keepdim=True) * mask
