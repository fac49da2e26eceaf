"""Adversarial autoencoder that codes a slice and its reconstruction alike (Chen & Konukoglu 2018)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.base import AnomalyModel, Batch, Losses, Update
from models.layers import code_critic_loss, dense_coder, latent_critic, squared_error


class ConstrainedAae(AnomalyModel):
    """`aae` with rho * |E(x) - E(x')|^2 in the autoencoder's loss, so that a strange image is coded like the healthy one that it becomes.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; each halves the image.
        latent: length of the code.
        rho: weight of the constraint; 0 makes it `aae`.
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
        rho: float = 1.0,
        n_critic: int = 5,
        penalty: float = 10.0,
        adversarial: float = 1.0,
        image_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = dense_coder(in_channels, channels, latent, image_size, numbers=1)
        self.critic = latent_critic(latent)
        self.rho, self.n_critic, self.penalty, self.adversarial = rho, n_critic, penalty, adversarial

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
        """Squared error - adversarial * D(E(x)) + rho * |E(x) - E(x')|^2 per slice, over the number of pixels."""
        x = batch["image"]
        code, pixels = self.encoder(x), x[0].numel()
        rebuilt = self.decoder(code)
        error, judged = squared_error(rebuilt, x).mean() / pixels, self.critic(code).mean() / pixels
        constraint = squared_error(self.encoder(rebuilt), code).mean() / pixels
        loss = error - self.adversarial * judged + self.rho * constraint
        return {"loss": loss, "squared_error": error, "judged": judged, "constraint": constraint}

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return (x - self.reconstruct(x)).abs().mean(1, keepdim=True) * mask
