"""Adversarial autoencoder that codes a slice like its reconstruction (Chen & Konukoglu 2018)."""

from __future__ import annotations

from collections.abc import Sequence

from models.aae import Aae
from models.base import Batch, Losses
from models.parts.losses import squared_error


class ConstrainedAae(Aae):
    """`aae` with rho * |E(x) - E(x')|^2 in the autoencoder's loss.

    So a strange image is coded like the healthy one that it becomes.

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
        super().__init__(in_channels, channels, latent, n_critic, penalty, adversarial, image_size)
        self.rho = rho

    def loss(self, batch: Batch) -> Losses:
        """Return the loss of `aae` + rho * |E(x) - E(x')|^2 per slice, over its pixels."""
        code, rebuilt, losses = self.coded(batch)
        constraint = squared_error(self.encoder(rebuilt), code).mean() / batch["image"][0].numel()
        return losses | {"loss": losses["loss"] + self.rho * constraint, "constraint": constraint}
