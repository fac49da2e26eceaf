"""Slices and volumes as network input: resized as in training, with neighbours as channels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.detect.config import Harmonise


def resize(image: Tensor, brain: Tensor, image_size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images (B, C, ...) and brains (B, 1, ...) of any type, resized as training does.

    By area for images, by the nearest neighbour for brains. Gives both as float32, the images 0
    outside the brain. MONAI, by which training does it, takes longer to load than a map to make.
    """
    inside = F.interpolate(brain.float(), image_size, mode="nearest-exact")
    return F.interpolate(image.float(), image_size, mode="area") * inside, inside


def harmonised(image: np.ndarray, harmonise: Harmonise) -> np.ndarray:
    """An image in [0, 1] with its intensities moved by straight pieces; float32, 0 stays 0."""
    return np.interp(image, harmonise.given, harmonise.wanted).astype(np.float32)


def with_neighbours(image: np.ndarray, indices: np.ndarray, around: tuple[int, ...]) -> np.ndarray:
    """Slices of a volume (X, Y, Z[, C]), with those `around` each of them as more channels.

    The channels are in the order of `SliceStore.batch`. A slice beyond the volume is 0.
    """
    if not around:
        return image[:, :, indices]
    channels = image.reshape(*image.shape[:3], -1)
    parts = []
    for offset in (0, *around):
        places = indices + offset
        stored = (places >= 0) & (places < image.shape[2])
        parts.append(channels[:, :, places.clip(0, image.shape[2] - 1)] * stored[:, None])
    return np.concatenate(parts, 3)


def resize_volume(
    image: np.ndarray, brain: np.ndarray, image_size: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Image (X, Y, Z[, C]) and brain (X, Y, Z) as network input, resized as in training.

    With two numbers in `image_size` axial slices: (Z, C, H, W) and (Z, 1, H, W). With three numbers
    the whole volume: (1, C, X, Y, Z) and (1, 1, X, Y, Z).
    """
    channels = torch.from_numpy(image.reshape(*brain.shape, -1))
    parts = (channels, torch.from_numpy(brain)[..., None])
    if len(image_size) == 3:
        images, brains = (part.permute(3, 0, 1, 2)[None] for part in parts)
    else:
        images, brains = (part.permute(2, 3, 0, 1) for part in parts)
    return resize(images, brains, image_size)
