"""Deep autoencoding Gaussian mixture model (Zong et al. 2018; slides, 2.4).

Its energy cannot overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import coarse_size, decoder, encoder
from models.parts.losses import squared_error

# Features are held to +- this, so that one strange slice cannot make the energy infinite.
WIDEST = 1e4


class Dagmm(AnomalyModel):
    """Autoencoder whose code and reconstruction error together follow a Gaussian mixture.

    Features of a slice: its code, |x - x'| / |x| and the cosine of x and x'. An estimation network
    gives mixture memberships. From these follow weights phi, means mu and covariances S of a batch.
    Energy: E = -log sum_k phi_k N(features; mu_k, S_k), by Cholesky factors of S + jitter I in
    float64 and log-sum-exp. Loss: squared error per slice + `energy_weight` * mean E +
    `spread_weight` * sum of 1 / diag(S). `fit_reference` takes phi, mu and S from all training
    slices. Score: the energy. Map: (x - x')^2.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; each halves the image.
        code: length of the code.
        components: number of Gaussians.
        energy_weight: weight of the mean energy.
        spread_weight: weight of the inverse variances, against collapse to a point.
        jitter: added to the diagonal of S.
        image_size: height and width of the slices.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128),
        code: int = 8,
        components: int = 2,
        energy_weight: float = 0.1,
        spread_weight: float = 0.005,
        jitter: float = 1e-3,
        image_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        size = coarse_size(image_size, channels)
        self.encoder = nn.Sequential(
            *encoder(in_channels, channels),
            nn.Conv2d(channels[-1], code, size),
            nn.Flatten(),
            nn.Tanh(),
        )
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (code, 1, 1)),
            nn.ConvTranspose2d(code, channels[-1], size),
            *decoder(channels[-1], channels, in_channels),
        )
        n = code + 2
        self.estimation = nn.Sequential(
            nn.Linear(n, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, components)
        )
        self.energy_weight = energy_weight
        self.spread_weight = spread_weight
        self.jitter = jitter

        phi = torch.full((components,), 1 / components, dtype=torch.float64)
        covariance = torch.eye(n, dtype=torch.float64).repeat(components, 1, 1)
        self.register_buffer("phi", phi)
        self.register_buffer("mu", torch.zeros(components, n, dtype=torch.float64))
        self.register_buffer("covariance", covariance)

    def updates(self, stage: str) -> list[Update]:
        return [Update("dagmm", self.loss, list(self.parameters()))]

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return code and error features of slices (B, code + 2), and their reconstructions."""
        code = self.encoder(x)
        rebuilt = self.decoder(code)
        flat = x.flatten(1)
        flat_rebuilt = rebuilt.flatten(1)
        apart = (flat - flat_rebuilt).norm(dim=1) / flat.norm(dim=1).clamp(min=1e-6)
        cosine = F.cosine_similarity(flat, flat_rebuilt, dim=1, eps=1e-6)
        features = torch.cat([code, torch.stack([apart, cosine], 1)], 1)
        return features.clamp(-WIDEST, WIDEST), rebuilt

    def loss(self, batch: Batch) -> Losses:
        """Return reconstruction, energy under the batch's own mixture, and inverse variances."""
        features, rebuilt = self.features(batch["image"])
        with torch.autocast(features.device.type, enabled=False):
            membership = self.estimation(features.float()).softmax(1)
            phi, mu, covariance = self.mixture(features, membership)
            energy = self.energy(features, phi, mu, covariance).mean()

        spread = (1 / (covariance.diagonal(dim1=1, dim2=2) + self.jitter)).sum()
        error = squared_error(rebuilt, batch["image"]).mean()
        loss = error + self.energy_weight * energy + self.spread_weight * spread
        return {
            "loss": loss.float(),
            "squared_error": error,
            "energy": energy.float(),
            "spread": spread.float(),
        }

    def mixture(self, features: Tensor, membership: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return phi (K,), mu (K, n) and S (K, n, n) in float64.

        Args: features (B, n); membership (B, K).
        """
        features = features.double()
        membership = membership.double()
        mass = membership.sum(0).clamp(min=1e-12)
        mu = membership.T @ features / mass[:, None]
        apart = features[:, None] - mu
        covariance = torch.einsum("bk,bki,bkj->kij", membership, apart, apart) / mass[:, None, None]
        return mass / mass.sum(), mu, covariance

    def energy(self, features: Tensor, phi: Tensor, mu: Tensor, covariance: Tensor) -> Tensor:
        """Return -log sum_k phi_k N(features; mu_k, S_k + jitter I), (B,) float64."""
        n = features.shape[1]
        identity = torch.eye(n, dtype=torch.float64, device=features.device)
        factor = torch.linalg.cholesky(covariance + self.jitter * identity)

        apart = (features.double()[:, None] - mu).permute(1, 2, 0)  # (K, n, B)
        whitened = torch.linalg.solve_triangular(factor, apart, upper=False)
        distance = whitened.square().sum(1).T  # (B, K)
        log_volume = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        log_density = -0.5 * (distance + log_volume + n * math.log(2 * math.pi))
        return -torch.logsumexp(phi.clamp(min=1e-300).log() + log_density, 1)

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """Take the mixture of all training slices."""
        device = self.get_buffer("mu").device
        with torch.no_grad():
            features = torch.cat([self.features(b["image"].to(device))[0] for b in batches])
            membership = self.estimation(features).softmax(1)
            self.phi, self.mu, self.covariance = self.mixture(features, membership)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        """Return the energy of each slice (B,); larger is more anomalous, it may be negative."""
        mixture = (self.get_buffer(name) for name in ("phi", "mu", "covariance"))
        with torch.autocast(x.device.type, enabled=False):
            features = self.features(x.float())[0]
            return self.energy(features, *mixture).float()

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return (x - self.reconstruct(x)).square().mean(1, keepdim=True) * mask
