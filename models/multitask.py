"""Reconstruction and self-supervised classification in one network.

Chapter 5.3 of the TUM thesis on self-supervised brain CT.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import AnomalyModel, Batch, Losses, Update
from models.parts.layers import coarse_size, decoder, encoder
from models.parts.losses import gaussian, negative_elbo
from models.parts.pretext import swap_patches, turn_and_shift
from models.parts.randomness import generator

CLASSES = (4, 3, 3)  # quarter turns, shifts across and shifts along
# (turns, across, along) at inference.
TRIALS = (
    (0, 0, 0),
    (1, 0, 0),
    (2, 0, 0),
    (3, 0, 0),
    (0, 1, 0),
    (0, -1, 0),
    (0, 0, 1),
    (0, 0, -1),
)


class Multitask(AnomalyModel):
    """The network of `vae_cr` with heads on its encoder that say how a slice was moved.

    stage `pretrain`: context restoration, as in `vae_cr`.

    stage `finetune`: classification + epsilon * (squared error + beta * KL) per pixel of the turned
    slice. Classification is the cross-entropy over 4 quarter turns and over 3 shifts (-1, 0, 1
    times 1/8 of the side) along each axis, of the encoder's features before reparametrisation. The
    losses are logged apart, and the scaled one too, to study the choice of epsilon (appendix A.1).

    map: |x - reconstruction| of the slice as it is.

    score of a slice: (1 - lam) * s_c + lam * s_r. s_c is 1 - p(true transformation), mean over
    heads and over the eight single transformations. s_r is the mean residual inside the mask over
    its 99th percentile on training slices. The thesis writes p where 1 - p is meant: a slice whose
    pose the network recognises is normal.

    Args:
        in_channels: image channels.
        channels: output channels of the encoder blocks; each halves the image.
        patch_fraction: side of a swapped patch as a fraction of the image side.
        beta: weight of the KL term.
        epsilon: weight of reconstruction against classification.
        lam: share of reconstruction in the score, 0 to 1.
        image_size: height and width of the slices. They must be equal: a quarter turn keeps the
            shape of a square alone.
    """

    scoring_arguments = ("lam",)
    stages = ("pretrain", "finetune")

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 128, 256, 512),
        patch_fraction: float = 0.125,
        beta: float = 0.001,
        epsilon: float = 100.0,
        lam: float = 0.5,
        image_size: tuple[int, int] = (128, 128),
    ) -> None:
        super().__init__()
        if channels[-1] % 2:
            raise ValueError(
                "channels: the last entry is split into mean and log-variance and must be even, "
                f"got {channels[-1]}"
            )
        if not 0 <= lam <= 1:
            raise ValueError(f"lam: expected a share from 0 to 1, got {lam}")
        if len(set(coarse_size(image_size, channels))) > 1:
            raise ValueError(f"image_size {image_size}: quarter turns need square slices")
        self.encoder = encoder(in_channels, channels)
        self.latent = nn.Conv2d(channels[-1], channels[-1], 1)
        self.decoder = decoder(channels[-1] // 2, channels, in_channels)
        self.heads = nn.Linear(channels[-1], sum(CLASSES))
        self.patch_fraction = patch_fraction
        self.beta = beta
        self.epsilon = epsilon
        self.lam = lam
        self.register_buffer("healthy_residual", torch.ones(()))

    def updates(self, stage: str) -> list[Update]:
        if stage == "pretrain":
            parts = nn.ModuleList([self.encoder, self.latent, self.decoder])
            return [Update(stage, self.restoration_loss, list(parts.parameters()))]
        return [Update(stage, self.multitask_loss, list(self.parameters()))]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features before reparametrisation, mean and log-variance of the latent.

        Features are (B, C, h, w), mean and log-variance (B, C / 2, h, w) each.
        """
        features = self.encoder(x)
        return features, *gaussian(self.latent(features))

    def logits(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of the turn (B, 4) and of the shifts across and along (B, 3)."""
        turn, across, along = self.heads(features.mean((2, 3))).split(CLASSES, dim=1)
        return turn, across, along

    def restoration_loss(self, batch: Batch) -> Losses:
        """Return the mean squared error of the restored image to that before the swap."""
        swapped = swap_patches(
            batch["image"], batch["mask"], self.patch_fraction, batch.get("seed")
        )
        return {"loss": (self.reconstruct(swapped) - batch["image"]).square().mean()}

    def multitask_loss(self, batch: Batch) -> Losses:
        """Return classification + epsilon * reconstruction of slices turned and shifted."""
        labels = _draw_labels(batch)
        x = turn_and_shift(batch["image"], labels[:, 0], labels[:, 1] - 1, labels[:, 2] - 1)
        features, mean, log_variance = self.encode(x)
        vae = negative_elbo(
            x, (mean, log_variance), self.decoder, batch.get("seed"), self.training, self.beta
        )
        entropies = [
            F.cross_entropy(logits, labels[:, i]) for i, logits in enumerate(self.logits(features))
        ]
        classification = torch.stack(entropies).sum()
        scaled = self.epsilon * vae["loss"]
        return {
            "loss": classification + scaled,
            "classification": classification,
            "reconstruction": vae["loss"],
            "scaled": scaled,
        }

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)[1])

    def anomaly_map(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        return (x - self.reconstruct(x)).abs().mean(1, keepdim=True) * mask

    def classification_score(self, x: Tensor) -> Tensor:
        """Return s_c (B,): 1 - p(true), mean over the three heads and the eight `TRIALS`."""
        total = x.new_zeros(len(x))
        for trial in TRIALS:
            turns, across, along = (torch.full((len(x),), v, device=x.device) for v in trial)
            found = self.logits(self.encoder(turn_and_shift(x, turns, across, along)))
            truth = (trial[0], trial[1] + 1, trial[2] + 1)
            for logits, label in zip(found, truth, strict=True):
                total = total + 1 - logits.softmax(1)[:, label]
        return total / (len(CLASSES) * len(TRIALS))

    def residual_score(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of the map inside the mask, (B,)."""
        return self.anomaly_map(x, mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)

    def score(self, x: Tensor, mask: Tensor, z: Tensor | None = None) -> Tensor:
        residual = self.residual_score(x, mask) / self.get_buffer("healthy_residual")
        return (1 - self.lam) * self.classification_score(x) + self.lam * residual

    def fit_reference(self, batches: Iterable[Batch]) -> None:
        """Take the scale of s_r: the 99th percentile of training slices' residual score."""
        device = self.get_buffer("healthy_residual").device
        with torch.no_grad():
            scores = [
                self.residual_score(b["image"].to(device), b["mask"].to(device)) for b in batches
            ]
        self.healthy_residual = torch.cat(scores).quantile(0.99).clamp(min=1e-12)


def _draw_labels(batch: Batch) -> Tensor:
    """Draw labels (B, 3), each slice's from its own seed.

    They are quarter turns 0..3, shifts across and shifts along 0..2.
    """
    if "seed" in batch:
        seeds = batch["seed"].tolist()
    else:
        seeds = torch.randint(1 << 31, (len(batch["image"]),)).tolist()
    labels = []
    for seed in seeds:
        source = generator(seed, stream=7)
        labels.append([int(torch.randint(n, (1,), generator=source)) for n in CLASSES])
    return torch.tensor(labels, device=batch["image"].device)
