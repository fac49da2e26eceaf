"""Pairs of slices from two scanners, and a critic that tells their groups apart.

Few-shot adversarial domain adaptation (FADA, Motiian et al. 2017). Its classes are here healthy
slices as they are, and with a planted anomaly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Group of a pair: the first slice is of the source. The second one is of ...
SOURCE_SAME = 0  # the source, in the same class (G1)
TARGET_SAME = 1  # the target, in the same class (G2)
SOURCE_OTHER = 2  # the source, in the other class (G3)
TARGET_OTHER = 3  # the target, in the other class (G4)

Classes = Sequence[Tensor]
"""Features of plain slices and of slices with an anomaly, (B, F) each."""


class PairCritic(nn.Sequential):
    """A perceptron that says of two slices' features (B, 2 F) which group they are: logits (B, 4).

    Args:
        features: F.
        width: units of the hidden layer.
    """

    def __init__(self, features: int, width: int = 64) -> None:
        super().__init__(nn.Linear(2 * features, width), nn.ReLU(), nn.Linear(width, 4))


def pair_features(encoder: nn.Module, image: Tensor) -> Tensor:
    """Return the encoder's features of slices or volumes, (B, F): the mean over places."""
    features: Tensor = encoder(image)
    return features.flatten(2).mean(2) if features.dim() > 2 else features


def pair_groups(source: Classes, target: Classes) -> tuple[Tensor, Tensor]:
    """Return pairs (8 B, 2 F) and their groups (8 B,), as many of each.

    A slice of the source is paired with the next one of the source or the target, so that no slice
    meets itself. ValueError for a single slice.
    """
    if len(source[0]) < 2:
        raise ValueError("pairs need two slices or more in a batch")
    pairs: list[Tensor] = []
    groups: list[int] = []
    for kind in (0, 1):
        seconds = (source[kind], target[kind], source[1 - kind], target[1 - kind])
        for group, second in enumerate(seconds):
            pairs.append(torch.cat([source[kind], second.roll(1, 0)], 1))
            groups += [group] * len(second)
    return torch.cat(pairs), torch.tensor(groups, device=pairs[0].device)


def critic_loss(critic: nn.Module, pairs: Tensor, groups: Tensor) -> Tensor:
    """Return the cross-entropy of the four groups, which the critic lowers."""
    return F.cross_entropy(critic(pairs), groups)


def confusion_loss(critic: nn.Module, pairs: Tensor, groups: Tensor) -> Tensor:
    """Return what the encoder lowers: the cross-entropy of pairs with the target, called others.

    G2 shall look like G1 and G4 like G3: then features do not tell the scanner, and still the
    anomaly.
    """
    with_target = (groups == TARGET_SAME) | (groups == TARGET_OTHER)
    wanted = groups[with_target] - 1
    return F.cross_entropy(critic(pairs[with_target]), wanted)
