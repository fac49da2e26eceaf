"""Pretext tasks: batch in, changed batch out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.parts.randomness import generator, rand, randn

Corner = tuple[int, int]


def swap_patches(
    image: Tensor, mask: Tensor, fraction: float = 0.125, seeds: Tensor | None = None
) -> Tensor:
    """Swap two equal, disjoint patches in each image: context restoration (Chen et al. 2019).

    Patches have `fraction` of the image's height and width. They are centred on brain pixels, and
    moved inwards where they would cross the image's edge. An image without two such places is
    returned as it is.

    Args: image (B, C, H, W); mask (B, 1, H, W); seeds (B,) or None. Returns (B, C, H, W), a copy.
    """
    height, width = image.shape[-2:]
    h = max(1, round(height * fraction))
    w = max(1, round(width * fraction))
    out = image.clone()
    for i in range(len(image)):
        seed = torch.randint(1 << 31, (1,)) if seeds is None else seeds[i]
        pair = _two_places(mask[i, 0] > 0, h, w, generator(seed, stream=1))
        if pair is not None:
            (a, b), (c, d) = pair
            out[i, :, a : a + h, b : b + w] = image[i, :, c : c + h, d : d + w]
            out[i, :, c : c + h, d : d + w] = image[i, :, a : a + h, b : b + w]
    return out


def cover_squares(image: Tensor, count: int = 3, seeds: Tensor | None = None) -> Tensor:
    """Cover 0 to `count` squares of each image with random values in [0, 1]: context encoding.

    A square is up to half as wide as the image. Zimmerer et al. 2018 (ceVAE).

    Args: image (B, C, H, W); seeds (B,) or None. Returns (B, C, H, W), a copy.
    """
    height, width = image.shape[-2:]
    widest = max(2, min(height, width) // 2 + 1)
    out = image.clone()
    for i in range(len(image)):
        source = generator(torch.randint(1 << 31, (1,)) if seeds is None else seeds[i], stream=2)
        for _ in range(int(torch.randint(count + 1, (1,), generator=source))):
            side = int(torch.randint(1, widest, (1,), generator=source))
            top = int(torch.randint(height - side + 1, (1,), generator=source))
            left = int(torch.randint(width - side + 1, (1,), generator=source))
            noise = torch.rand(image.shape[1], side, side, generator=source)
            out[i, :, top : top + side, left : left + side] = noise.to(image)
    return out


def turn_and_shift(
    image: Tensor, turns: Tensor, across: Tensor, along: Tensor, fraction: float = 0.125
) -> Tensor:
    """Rotate each image by quarter turns, then shift it along both axes; what moves in is 0.

    A shift is -1, 0 or 1 times `fraction` of the side. Gidaris et al. 2018, Hendrycks et al. 2019.

    Args: image (B, C, N, N); turns (B,) in 0..3; across and along (B,) in -1..1, for the last two
    axes. Returns (B, C, N, N); ValueError unless the image is square.
    """
    side = image.shape[-1]
    if image.shape[-2] != side:
        raise ValueError(f"quarter turns need square images, got {tuple(image.shape[-2:])}")
    step = max(1, round(side * fraction))
    out = torch.zeros_like(image)
    moves = zip(turns.tolist(), across.tolist(), along.tolist(), strict=True)
    for i, (turn, down, right) in enumerate(moves):
        to_rows, from_rows = _shifted(side, step * down)
        to_columns, from_columns = _shifted(side, step * right)
        turned = torch.rot90(image[i], turn, (1, 2))
        out[i, :, to_rows, to_columns] = turned[:, from_rows, from_columns]
    return out


def coarse_noise(
    image: Tensor, mask: Tensor, sd: float = 0.2, coarse: int = 16, seeds: Tensor | None = None
) -> Tensor:
    """Draw Gaussian noise on a coarse grid, interpolated bilinearly and moved by random pixels.

    The longer side of the image has `coarse` cells. The grid is continued periodically, so that
    moving leaves no seam. `sd` is that of the grid. Between its nodes it falls, to about 2/3 of
    `sd` over all pixels. Kascenas et al. 2022.

    Args: image (B, C, H, W), for its shape; mask (B, 1, H, W); seeds (B,) or None. Returns
    (B, C, H, W), 0 outside the mask.
    """
    count, channels, height, width = image.shape
    cell = max(1, round(max(height, width) / coarse))
    rows = -(-height // cell)
    columns = -(-width // cell)
    grid = image.new_empty(count, channels, rows, columns, dtype=torch.float32)
    nodes = sd * randn(grid, seeds, stream=8)
    padded = F.pad(nodes, (1, 1, 1, 1), mode="circular")
    wide = F.interpolate(padded, scale_factor=float(cell), mode="bilinear")
    wide = wide[..., cell:-cell, cell:-cell]

    moves = rand(nodes.new_empty(count, 2), seeds, stream=9)
    down = _moved(moves[:, :1] * rows * cell, height, rows * cell)
    right = _moved(moves[:, 1:] * columns * cell, width, columns * cell)
    return cut_windows(wide, (down[:, None, :, None], right[:, None, None])).to(image) * mask


def cut_windows(x: Tensor, window: tuple[Tensor, Tensor]) -> Tensor:
    """Cut one window (B, C, h, w) out of each image (B, C, H, W).

    window: its row numbers (B, 1, h, 1) and column numbers (B, 1, 1, w).
    """
    rows, columns = window
    part = x.gather(2, rows.expand(-1, x.shape[1], -1, x.shape[3]))
    return part.gather(3, columns.expand(-1, x.shape[1], rows.shape[2], -1))


def _moved(start: Tensor, size: int, period: int) -> Tensor:
    """Return `size` numbers from each start (B, 1), rounded down, onwards; modulo a period."""
    return (start.long() + torch.arange(size, device=start.device)) % period


def _shifted(side: int, move: int) -> tuple[slice, slice]:
    """Return where a shift by `move` pixels writes along an axis, and where it reads."""
    to = slice(max(0, move), side + min(0, move))
    source = slice(max(0, -move), side + min(0, -move))
    return to, source


def _two_places(
    brain: Tensor, h: int, w: int, source: torch.Generator
) -> tuple[Corner, Corner] | None:
    """Return the top-left corners of two disjoint h x w patches centred on brain, or None."""
    pixels = brain.nonzero().cpu()
    if len(pixels) == 0:
        return None
    corners = pixels - torch.tensor([h // 2, w // 2])
    last = torch.tensor([brain.shape[0] - h, brain.shape[1] - w])
    corners = torch.minimum(corners.clamp(min=0), last)

    first = corners[torch.randint(len(corners), (1,), generator=source)[0]]
    apart = (corners - first).abs()
    others = corners[(apart[:, 0] >= h) | (apart[:, 1] >= w)]
    if len(others) == 0:
        return None
    second = others[torch.randint(len(others), (1,), generator=source)[0]]
    return (int(first[0]), int(first[1])), (int(second[0]), int(second[1]))
