"""Pretext tasks: batch in, changed batch out."""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers import generator


def swap_patches(image: Tensor, mask: Tensor, fraction: float = 0.125, seeds: Tensor | None = None) -> Tensor:
    """Swap two equal, disjoint patches in each image: context restoration (Chen et al. 2019).

    Patches have `fraction` of the image's height and width and are centred on brain pixels (moved inwards where they
    would cross the image's edge). An image without two such places is returned as it is.

    Args: image (B, C, H, W); mask (B, 1, H, W); seeds (B,) or None. Returns (B, C, H, W), a copy.
    """
    height, width = image.shape[-2:]
    h, w = max(1, round(height * fraction)), max(1, round(width * fraction))
    out = image.clone()
    for i in range(len(image)):
        seed = torch.randint(1 << 31, (1,)) if seeds is None else seeds[i]
        source = generator(seed, stream=1)
        pair = _two_places(mask[i, 0] > 0, h, w, source)
        if pair is not None:
            (a, b), (c, d) = pair
            out[i, :, a : a + h, b : b + w] = image[i, :, c : c + h, d : d + w]
            out[i, :, c : c + h, d : d + w] = image[i, :, a : a + h, b : b + w]
    return out


def cover_squares(image: Tensor, count: int = 3, seeds: Tensor | None = None) -> Tensor:
    """Cover 0 to `count` squares of each image, up to half its width, with random values in [0, 1]: context encoding.

    Zimmerer et al. 2018 (ceVAE). Args: image (B, C, H, W); seeds (B,) or None. Returns (B, C, H, W), a copy.
    """
    height, width = image.shape[-2:]
    out = image.clone()
    for i in range(len(image)):
        source = generator(torch.randint(1 << 31, (1,)) if seeds is None else seeds[i], stream=2)
        for _ in range(int(torch.randint(count + 1, (1,), generator=source))):
            side = int(torch.randint(1, max(2, min(height, width) // 2 + 1), (1,), generator=source))
            top, left = (int(torch.randint(n - side + 1, (1,), generator=source)) for n in (height, width))
            noise = torch.rand(image.shape[1], side, side, generator=source)
            out[i, :, top : top + side, left : left + side] = noise.to(image)
    return out


def turn_and_shift(image: Tensor, turns: Tensor, across: Tensor, along: Tensor, fraction: float = 0.125) -> Tensor:
    """Rotate each image by quarter turns, then move it by -1, 0 or 1 times a fraction of its side along both axes.

    Gidaris et al. 2018, Hendrycks et al. 2019. Args: image (B, C, N, N); turns (B,) in 0..3; across and along (B,) in -1..1, for
    the last two axes. What moves in is 0. Returns (B, C, N, N); ValueError unless the image is square.
    """
    side = image.shape[-1]
    if image.shape[-2] != side:
        raise ValueError(f"quarter turns need square images, got {tuple(image.shape[-2:])}")
    step = max(1, round(side * fraction))
    out = torch.zeros_like(image)
    for i, (k, a, b) in enumerate(zip(turns.tolist(), across.tolist(), along.tolist(), strict=True)):
        rows, columns = (slice(max(0, step * m), side + min(0, step * m)) for m in (a, b))
        there, from_columns = (slice(max(0, -step * m), side + min(0, -step * m)) for m in (a, b))
        out[i, :, rows, columns] = torch.rot90(image[i], k, (1, 2))[:, there, from_columns]
    return out


def _two_places(brain: Tensor, h: int, w: int, source: torch.Generator) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Top-left corners of two disjoint h x w patches centred on brain pixels, or None."""
    pixels = brain.nonzero().cpu()
    if len(pixels) == 0:
        return None
    corners = pixels - torch.tensor([h // 2, w // 2])
    corners = torch.minimum(corners.clamp(min=0), torch.tensor([brain.shape[0] - h, brain.shape[1] - w]))
    first = corners[torch.randint(len(corners), (1,), generator=source)[0]]
    apart = (corners - first).abs()
    others = corners[(apart[:, 0] >= h) | (apart[:, 1] >= w)]
    if len(others) == 0:
        return None
    second = others[torch.randint(len(others), (1,), generator=source)[0]]
    return (int(first[0]), int(first[1])), (int(second[0]), int(second[1]))
