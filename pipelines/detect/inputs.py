"""Slices and volumes as network input: resized as in training, with neighbours as channels."""

from __future__ import annotations

import numpy as np
import torch
from monai import transforms as mt
from monai.data import set_track_meta
from torch import Tensor


def resize_chain(image_size: tuple[int, ...]) -> mt.Compose:
    """To tensors, and resized: area for images, nearest for masks."""
    keys = ("image", "mask")
    return mt.Compose(
        [mt.ToTensord(keys), mt.Resized(keys, image_size, mode=("area", "nearest-exact"))]
    )


def resize(image: Tensor, mask: Tensor, transform: mt.Compose) -> tuple[Tensor, Tensor]:
    """Images (B, C, ...) and masks (B, 1, ...) of any type by a `chain`, all at once, float32; images 0 outside their masks."""
    set_track_meta(False)  # per process: plain tensors, no bookkeeping of the spatial transforms
    small = transform(
        {"image": image.flatten(0, 1).float(), "mask": mask[:, 0].float()}
    )  # samples stand where channels would
    inside = small["mask"][:, None]
    return small["image"].unflatten(0, image.shape[:2]) * inside, inside


def with_neighbours(image: np.ndarray, rows: np.ndarray, around: tuple[int, ...]) -> np.ndarray:
    """Slices `rows` of a volume (X, Y, Z[, C]) with those `around` them as further channels, as `SliceStore.batch` gives them."""
    if not around:
        return image[:, :, rows]
    channels = image.reshape(*image.shape[:3], -1)
    parts = []
    for offset in (0, *around):
        there = rows + offset
        stored = (there >= 0) & (there < image.shape[2])
        parts.append(channels[:, :, there.clip(0, image.shape[2] - 1)] * stored[:, None])
    return np.concatenate(parts, 3)


def resize_volume(
    image: np.ndarray, mask: np.ndarray, image_size: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Image (X, Y, Z[, C]) and mask (X, Y, Z) as network input, by the same chain as in training: axial slices, (Z, C, H, W), (Z, 1, H, W).

    With three numbers in `image_size` the whole volume, (1, C, X, Y, Z) and (1, 1, X, Y, Z).
    """
    channels, inside = (
        torch.from_numpy(image.reshape(*mask.shape, -1)),
        torch.from_numpy(mask)[..., None],
    )
    order = (3, 0, 1, 2) if len(image_size) == 3 else (2, 3, 0, 1)
    images, masks = (v.permute(order) for v in (channels, inside))
    return (
        resize(images[None], masks[None], resize_chain(image_size))
        if len(image_size) == 3
        else resize(images, masks, resize_chain(image_size))
    )
