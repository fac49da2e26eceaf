"""Pretext tasks: batch in, changed batch out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.parts.layers import generator, rand, randn

VISIBLE = 0.01  # smaller changes of intensity have no severity


def swap_patches(
    image: Tensor, mask: Tensor, fraction: float = 0.125, seeds: Tensor | None = None
) -> Tensor:
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
            side = int(
                torch.randint(1, max(2, min(height, width) // 2 + 1), (1,), generator=source)
            )
            top, left = (
                int(torch.randint(n - side + 1, (1,), generator=source)) for n in (height, width)
            )
            noise = torch.rand(image.shape[1], side, side, generator=source)
            out[i, :, top : top + side, left : left + side] = noise.to(image)
    return out


def turn_and_shift(
    image: Tensor, turns: Tensor, across: Tensor, along: Tensor, fraction: float = 0.125
) -> Tensor:
    """Rotate each image by quarter turns, then move it by -1, 0 or 1 times a fraction of its side along both axes.

    Gidaris et al. 2018, Hendrycks et al. 2019. Args: image (B, C, N, N); turns (B,) in 0..3; across and along (B,) in -1..1, for
    the last two axes. What moves in is 0. Returns (B, C, N, N); ValueError unless the image is square.
    """
    side = image.shape[-1]
    if image.shape[-2] != side:
        raise ValueError(f"quarter turns need square images, got {tuple(image.shape[-2:])}")
    step = max(1, round(side * fraction))
    out = torch.zeros_like(image)
    for i, (k, a, b) in enumerate(
        zip(turns.tolist(), across.tolist(), along.tolist(), strict=True)
    ):
        rows, columns = (slice(max(0, step * m), side + min(0, step * m)) for m in (a, b))
        there, from_columns = (slice(max(0, -step * m), side + min(0, -step * m)) for m in (a, b))
        out[i, :, rows, columns] = torch.rot90(image[i], k, (1, 2))[:, there, from_columns]
    return out


def coarse_noise(
    image: Tensor, mask: Tensor, sd: float = 0.2, coarse: int = 16, seeds: Tensor | None = None
) -> Tensor:
    """Gaussian noise of a coarse grid, bilinearly interpolated and moved by a random number of pixels: Kascenas et al. 2022.

    The longer side of the image has `coarse` cells. The grid is continued periodically, so that moving leaves no seam. `sd` is that of
    the grid; between its nodes it falls, to about 2/3 of `sd` over all pixels.

    Args: image (B, C, H, W), for its shape; mask (B, 1, H, W); seeds (B,) or None. Returns (B, C, H, W), 0 outside the mask.
    """
    count, channels, height, width = image.shape
    cell = max(1, round(max(height, width) / coarse))
    rows, columns = -(-height // cell), -(-width // cell)
    nodes = sd * randn(
        image.new_empty(count, channels, rows, columns, dtype=torch.float32), seeds, stream=8
    )
    wide = F.interpolate(
        F.pad(nodes, (1, 1, 1, 1), mode="circular"), scale_factor=float(cell), mode="bilinear"
    )[..., cell:-cell, cell:-cell]
    moves = rand(nodes.new_empty(count, 2), seeds, stream=9)
    down = ((moves[:, :1] * rows * cell).long() + torch.arange(height, device=image.device)) % (
        rows * cell
    )
    right = ((moves[:, 1:] * columns * cell).long() + torch.arange(width, device=image.device)) % (
        columns * cell
    )
    return _cut(wide, (down[:, None, :, None], right[:, None, None])).to(image) * mask


def foreign_patch(
    image: Tensor, mask: Tensor, seeds: Tensor | None = None, source: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mix a region with what another slice has there, x + alpha * M * (y - x): foreign patch interpolation (Tan et al. 2020).

    Args: image (B, C, H, W) in [0, 1]; mask (B, 1, H, W); seeds (B,) or None; source like image (None: the batch's next slice, alone its
        own mirror image); where a source is 0 in all channels nothing is changed. Returns the changed image and its severity (B, 1, H, W):
        alpha from 0.05 to 0.95 where more than `VISIBLE` changed, else 0.
    """
    source = _neighbours(image) if source is None else source
    depth, draws, _ = _regions(mask, seeds, rectangles=True)
    weight = _alpha(draws) * ((depth > 0) & (source.amax(1, keepdim=True) > 0))
    return _with_severity(image, image + weight * (source - image), weight)


def poisson_patch(
    image: Tensor, mask: Tensor, seeds: Tensor | None = None, source: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `foreign_patch`, without a seam: inside, second differences are mixed; at the border the image stays (Perez et al. 2003).

    Poisson image interpolation (Tan et al. 2021), solved by a fixed number of sweeps of red-black over-relaxation, half as many
    as the longer side has pixels. The result is held to [0, 1].
    """
    source = _neighbours(image) if source is None else source
    depth, draws, _ = _regions(mask, seeds, rectangles=True)
    inside = (depth > 0) & (source.amax(1, keepdim=True) > 0)
    apart, weight = source - image, _alpha(draws) * inside
    blended = image + _alpha(draws) * _solve_poisson(_laplacian(apart), inside)
    return _with_severity(image, torch.where(inside, blended.clamp(0, 1), image), weight)


def change_intensity(
    image: Tensor, mask: Tensor, seeds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw a blob with soft edges towards one random intensity t per channel, x + alpha * M * (t - x); M from 0 to 1.

    Args and returns: as `foreign_patch`; the severity is alpha * M.
    """
    depth, draws, _ = _regions(mask, seeds)
    weight = _alpha(draws) * (depth / 0.3).clamp(max=1)
    value = rand(image[:, :, :1, :1], seeds, stream=11)
    return _with_severity(image, image + weight * (value - image), weight)


def deform(image: Tensor, mask: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Swell or shrink what lies in a blob about its centre, by a factor up to 1 +- alpha there that fades to 1 at the edge.

    Args and returns: as `foreign_patch`; the severity is alpha.
    """
    depth, draws, centre = _regions(mask, seeds)
    alpha, (height, width) = _alpha(draws), image.shape[-2:]
    factor = 1 + torch.where(draws[:, 6] < 0.5, -1, 1)[:, None, None] * (alpha * depth)[:, 0]
    rows, columns = _grid(image)
    y, x = (
        c[:, None, None] + factor * (at - c[:, None, None])
        for at, c in zip((rows, columns), centre.unbind(1), strict=True)
    )
    places = torch.stack([2 * x / max(1, width - 1) - 1, 2 * y / max(1, height - 1) - 1], dim=-1)
    moved = F.grid_sample(
        image.float(), places.float(), padding_mode="border", align_corners=True
    ).to(image)
    return _with_severity(image, torch.where(depth > 0, moved, image), alpha * (depth > 0))


CORRUPTIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "foreign": foreign_patch,
    "poisson": poisson_patch,
    "intensity": change_intensity,
    "deformation": deform,
}


def corrupt(
    image: Tensor,
    mask: Tensor,
    seeds: Tensor | None = None,
    kinds: Sequence[str] = tuple(CORRUPTIONS),
    share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Change a `share` of the slices, each by one of `kinds` of `CORRUPTIONS`; which one, its own seed says.

    Args: image (B, C, H, W) in [0, 1]; mask (B, 1, H, W); seeds (B,) or None. Returns the image and its severity (B, 1, H, W).
    """
    draws = rand(torch.empty(len(image), 2), seeds, stream=13)
    which = torch.where(draws[:, 0] < share, (draws[:, 1] * len(kinds)).long(), -1)
    out, severity, source = image.clone(), torch.zeros_like(mask), _neighbours(image)
    for number, kind in enumerate(kinds):
        at = (which == number).nonzero().flatten().to(image.device)
        if len(at) == 0:
            continue
        given = {"source": source[at]} if kind in ("foreign", "poisson") else {}
        out[at], severity[at] = CORRUPTIONS[kind](
            image[at], mask[at], None if seeds is None else seeds.to(at.device)[at], **given
        )
    return out, severity


def _neighbours(image: Tensor) -> Tensor:
    """The next slice of the batch for every slice; a single slice gets its own mirror image."""
    return image.roll(-1, 0) if len(image) > 1 else image.flip(-1)


def _alpha(draws: Tensor) -> Tensor:
    return (0.05 + 0.9 * draws[:, 5])[:, None, None, None]


def _with_severity(image: Tensor, changed: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return changed, weight * ((changed - image).abs().amax(1, keepdim=True) > VISIBLE)


def _grid(image: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column numbers, (H, 1) and (1, W), float."""
    height, width = (
        torch.arange(n, device=image.device, dtype=torch.float32) for n in image.shape[-2:]
    )
    return height[:, None], width[None]


def _regions(
    mask: Tensor, seeds: Tensor | None, rectangles: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """One region of each brain, centred on a brain pixel, from 0.1 to 0.4 of the longer side wide: an uneven blob or a rectangle.

    Returns depth (B, 1, H, W), 0 outside the region and the brain and up to 1 at the centre; the uniform draws (B, 7), of which 5 and 6
    are free for the caller; the centres (B, 2), row and column.
    """
    draws = rand(mask.new_empty(len(mask), 7, dtype=torch.float32), seeds, stream=10)
    order = (mask > 0).flatten(1).cumsum(1)
    pixel = (order <= (draws[:, :1] * order[:, -1:]).long()).sum(1).clamp(max=order.shape[1] - 1)
    centre = torch.stack([pixel // mask.shape[-1], pixel % mask.shape[-1]], dim=1).float()
    radius = (max(mask.shape[-2:]) * (0.05 + 0.15 * draws[:, 1:3])).clamp(min=1.5)
    y, x = (
        (at - c[:, None, None]) / r[:, None, None]
        for at, c, r in zip(_grid(mask), centre.unbind(1), radius.unbind(1), strict=True)
    )
    apart = (y.square() + x.square()).sqrt() + coarse_noise(
        mask, torch.ones_like(mask), 0.3, 8, seeds
    )[:, 0]
    if rectangles:
        apart = torch.where(draws[:, 3, None, None] < 0.5, torch.maximum(y.abs(), x.abs()), apart)
    return (1 - apart).clamp(0, 1)[:, None].to(mask) * mask, draws, centre


def _around(x: Tensor) -> Tensor:
    """Sum of the four neighbours, 0 beyond the edge."""
    wide = F.pad(x, (1, 1, 1, 1))
    return wide[..., 1:-1, :-2] + wide[..., 1:-1, 2:] + wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1]


def _laplacian(x: Tensor) -> Tensor:
    """Sum of the differences to the four neighbours; the image is continued by its edge."""
    wide = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return _around(wide)[..., 1:-1, 1:-1] - 4 * x


def _solve_poisson(right: Tensor, inside: Tensor) -> Tensor:
    """u with `_laplacian`(u) = right inside, and 0 elsewhere; (B, C, H, W), inside (B, 1, H, W) bool."""
    side = max(right.shape[-2:])
    step = 2 / (1 + math.sin(2 * math.pi / side))  # best for a square of half the side
    window = _window(inside)
    odd = (window[0] + window[1]) % 2 == 1
    near, goal = (_cut(x, window) for x in (inside, right / 4))
    colours = [(step * (near & colour)).to(right) for colour in (odd, ~odd)]
    u = torch.zeros_like(goal)
    for _ in range(side // 2):
        for colour in colours:
            u = u + colour * (_around(u) / 4 - goal - u)
    batch = torch.arange(len(u), device=u.device)[:, None, None, None]
    channel = torch.arange(u.shape[1], device=u.device)[:, None, None]
    return torch.zeros_like(right).index_put((batch, channel, *window), u)


def _window(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Row (B, 1, h, 1) and column (B, 1, 1, w) numbers of windows of one size that hold each slice's region (B, 1, H, W)."""
    numbers = []
    for axis in (2, 3):
        hit = inside.any(5 - axis).flatten(1)
        first, last = hit.int().argmax(1), hit.shape[1] - hit.flip(1).int().argmax(1)
        size = int((last - first).amax()) if bool(hit.any()) else 1
        start = torch.where(hit.any(1), first, 0).clamp(max=hit.shape[1] - size)
        at = start[:, None] + torch.arange(size, device=inside.device)
        numbers.append(at[:, None, :, None] if axis == 2 else at[:, None, None])
    return numbers[0], numbers[1]


def _cut(x: Tensor, window: tuple[Tensor, Tensor]) -> Tensor:
    """The windows (B, C, h, w) out of (B, C, H, W)."""
    rows, columns = window
    part = x.gather(2, rows.expand(-1, x.shape[1], -1, x.shape[3]))
    return part.gather(3, columns.expand(-1, x.shape[1], rows.shape[2], -1))


def _two_places(
    brain: Tensor, h: int, w: int, source: torch.Generator
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Top-left corners of two disjoint h x w patches centred on brain pixels, or None."""
    pixels = brain.nonzero().cpu()
    if len(pixels) == 0:
        return None
    corners = pixels - torch.tensor([h // 2, w // 2])
    corners = torch.minimum(
        corners.clamp(min=0), torch.tensor([brain.shape[0] - h, brain.shape[1] - w])
    )
    first = corners[torch.randint(len(corners), (1,), generator=source)[0]]
    apart = (corners - first).abs()
    others = corners[(apart[:, 0] >= h) | (apart[:, 1] >= w)]
    if len(others) == 0:
        return None
    second = others[torch.randint(len(others), (1,), generator=source)[0]]
    return (int(first[0]), int(first[1])), (int(second[0]), int(second[1]))
