"""f-AnoGAN: a Wasserstein GAN of healthy slices, then an encoder into its latent space.

Schlegl et al. 2019; slides, 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import coarse_size, decoder, encoder, image_critic
from models.parts.losses import critic_loss
from models.parts.randomness import randn


class FAnogan(AnomalyModel):
    """WGAN with gradient penalty (Gulrajani et al. 2017), then an encoder with the GAN frozen.

    stage `gan`: the critic is stepped on every batch, the generator on every `n_critic`-th. Logged:
    `diversity`, the mean distance of generated slices from each other over that of real ones. Near
    0 the generator has collapsed to one slice.

    stage `encoder`: "izi" is the mean squared error of G(E(x)) to x. "izif" adds `kappa` times the
    mean squared error of the critic's features. "ziz" is the mean squared error of E(G(z)) to z.

    Score of a slice: the izif error inside the mask, whatever the encoder was trained with. Map:
    (x - G(E(x)))^2.

    Args:
        in_channels: image channels.
        channels: channels from the finest to the coarsest scale; each halves the image.
        latent: length of z.
        n_critic: critic steps per generator step.
        penalty: weight of the gradient penalty.
        kappa: weight of the feature error.
        encode: "izif", "izi" or "ziz".
        image_size: height and width of the slices.
    """

    stages = ("gan", "encoder")

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (32, 64, 128, 256),
        latent: int = 128,
        n_critic: int = 5,
        penalty: float = 10.0,
        kappa: float = 1.0,
        encode: Literal["izif", "izi", "ziz"] = "izif",
        image_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        size = coarse_size(image_size, channels)
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(latent, channels[-1], size),
            *decoder(channels[-1], channels, in_channels),
            nn.Sigmoid(),
        )
        self.features, self.critic = image_critic(in_channels, channels, image_size)
        self.encoder = nn.Sequential(
            *encoder(in_channels, channels), nn.Conv2d(channels[-1], latent, size)
        )
        self.latent = latent
        self.n_critic = n_critic
        self.penalty = penalty
        self.kappa = kappa
        self.encode = encode

    def updates(self, stage: str) -> list[Update]:
        if stage == "encoder":
            return [Update("encoder", self.encoder_loss, list(self.encoder.parameters()))]
        critic = [*self.features.parameters(), *self.critic.parameters()]
        generator = list(self.generator.parameters())
        return [
            Update("critic", self.critic_loss, critic),
            Update("generator", self.generator_loss, generator, every=self.n_critic),
        ]

    def judge(self, x: Tensor) -> Tensor:
        """Return the critic's value of each image, (B,); larger is more real."""
        return self.critic(self.features(x)).flatten()

    def noise(self, batch: Batch, stream: int = 3) -> Tensor:
        """Draw latent vectors (B, latent, 1, 1), each from its slice's own seed."""
        image = batch["image"]
        return randn(image.new_zeros(len(image), self.latent, 1, 1), batch.get("seed"), stream)

    def critic_loss(self, batch: Batch) -> Losses:
        """Return D(fake) - D(real) + penalty * (|grad D| - 1)^2 between the two.

        The penalty counts only where gradients flow.
        """
        real = batch["image"]
        with torch.no_grad():
            fake = self.generator(self.noise(batch))
        return critic_loss(self.judge, real, fake, self.penalty, batch.get("seed"))

    def generator_loss(self, batch: Batch) -> Losses:
        """Return -D(fake); log how much generated slices differ from each other.

        That is relative to real ones.
        """
        fake = self.generator(self.noise(batch, stream=5))
        with torch.no_grad():
            diversity = _spread(fake) / _spread(batch["image"]).clamp(min=1e-12)
        return {"loss": -self.judge(fake).mean(), "diversity": diversity}

    def encoder_loss(self, batch: Batch) -> Losses:
        """Return izi, izif or ziz.

        Generator and critic stay as the first stage left them, their batch statistics too.
        """
        self.generator.eval()
        if self.encode == "ziz":
            z = self.noise(batch)
            return {"loss": (self.encoder(self.generator(z)) - z).square().mean()}

        x = batch["image"]
        rebuilt = self.reconstruct(x)
        image = (rebuilt - x).square().mean()
        if self.encode == "izi":
            return {"loss": image, "image": image}
        feature = (self.features(rebuilt) - self.features(x)).square().mean()
        return {"loss": image + self.kappa * feature, "image": image, "feature": feature}

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.generator(self.encoder(x))

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        rebuilt = self.reconstruct(x) * mask
        image = (rebuilt - x * mask).square().flatten(1).mean(1)
        feature = (self.features(rebuilt) - self.features(x * mask)).square().flatten(1).mean(1)
        return image + self.kappa * feature

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return (self.reconstruct(x) - x).square().mean(1, keepdim=True) * mask

    def draw(self, count: int) -> Tensor:
        device = next(self.parameters()).device
        like = torch.zeros(count, self.latent, 1, 1, device=device)
        return self.generator(randn(like, torch.arange(count), stream=6))


def _spread(x: Tensor) -> Tensor:
    """Return the mean squared distance of a batch's images from their mean."""
    return (x - x.mean(0, keepdim=True)).square().flatten(1).sum(1).mean()
