"""Lesions planted in healthy slices for training, of several looks, and changes of contrast.

FPI: Tan et al. 2020; PII: Tan et al. 2021; NSA: Schlueter et al. 2022; DRAEM: Zavrtanik et al.
2021; the shapes and sizes after the MOOD challenge. Evaluation has its own lesions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from torch import Tensor

from models.parts.corruptions import laplacian, solve_poisson
from models.parts.lesion_shapes import SHAPES, Room, draw_shape

STREAM = 20  # of each sample's seed
VISIBLE = 0.02  # smaller changes are no lesion
VOLUMES_ML = (0.05, 100.0)
TRIES = 3  # for a lesion that shows in the middle slice


@dataclass(frozen=True)
class Canvas:
    """Slices to plant in, and what the looks need to know of them.

    image: float32 (D, C, H, W) in [0, 1], the middle slice first.
    brain: bool (H, W). depth: mm (D, H, W) in the lesion, at most 0 outside it.
    donor: another brain's slices, like `image`.
    low, span: 5th percentile of the brain, and from there to the 95th, (C, 1, 1).
    """

    image: np.ndarray
    brain: np.ndarray
    depth: np.ndarray
    donor: np.ndarray
    pixel_mm: float
    low: np.ndarray
    span: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """The lesion in the brain, bool (D, 1, H, W)."""
        return (self.depth > 0)[:, None] & self.brain


Look = Callable[[np.random.Generator, Canvas], tuple[np.ndarray, np.ndarray]]
"""From a canvas to its new image (D, C, H, W), and where the lesion shows (D, 1, H, W)."""


def shift(rng: np.random.Generator, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Brighter or darker by 0.1 to 0.7 of the span; the tissue's texture stays."""
    change = _signed(rng, canvas, 0.1, 0.7) * canvas.span
    return canvas.image + _soft(rng, canvas) * change, canvas.inside


def bright(rng: np.random.Generator, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Brighter by 0.1 to 0.9 of the span, where any share of the tissue's texture stays."""
    within = canvas.inside[0]
    middle = canvas.low
    if within.any():
        middle = np.median(canvas.image[0][:, within[0]], axis=1)[:, None, None]
    rise = rng.uniform(0.1, 0.9, canvas.low.shape) * canvas.span
    content = middle + rise + rng.uniform(0, 1) * (canvas.image - middle)
    return canvas.image + _soft(rng, canvas) * (content - canvas.image), canvas.inside


def fill(rng: np.random.Generator, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """One value with the grain of this image in place of tissue."""
    value = canvas.low + rng.uniform(-0.2, 1.5, canvas.low.shape) * canvas.span
    rest = (canvas.image[0] - gaussian_filter(canvas.image[0], (0, 2, 2)))[:, canvas.brain]
    # robust: edges of tissue and brain are no grain
    grain = 1.4826 * np.median(np.abs(rest), 1)[:, None, None] * rng.uniform(0.5, 1.5)
    noise = gaussian_filter(rng.normal(size=canvas.image.shape), (0, 0, *2 * [rng.uniform(0, 1)]))
    noise = noise / max(float(noise.std()), 1e-6)
    content = value + grain * noise
    return canvas.image + _soft(rng, canvas) * (content - canvas.image), canvas.inside


def foreign(rng: np.random.Generator, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """0.3 to 1 of what another brain shows there (FPI)."""
    alpha = rng.uniform(0.3, 1)
    inside = canvas.inside & (canvas.donor > 0)
    shown = np.asarray(inside.any(1, keepdims=True))
    return canvas.image + alpha * inside * (canvas.donor - canvas.image), shown


def poisson(rng: np.random.Generator, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """The details of another brain without a seam (PII)."""
    inside = canvas.inside & (canvas.donor > 0).all(1, keepdims=True)
    apart = torch.from_numpy(canvas.donor - canvas.image)
    change = solve_poisson(laplacian(apart), torch.from_numpy(inside)).numpy()
    return canvas.image + rng.uniform(0.5, 1.5) * change, inside


def mass(rng: np.random.Generator, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """What lies in and round the lesion is pushed out of its middle, or drawn to it."""
    return displaced(rng, canvas, canvas.image), canvas.inside


def halo(rng: np.random.Generator, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """A core and, 3 to 12 mm around it, oedema that fades outwards."""
    wide = rng.uniform(3, 12)
    around = np.clip(1 + canvas.depth / wide, 0, 1)[:, None] * canvas.brain * ~canvas.inside
    core = _signed(rng, canvas, 0.1, 0.7) * canvas.span
    oedema = _signed(rng, canvas, 0.15, 0.5) * canvas.span
    new = canvas.image + canvas.inside * core + around * oedema
    return new, canvas.inside | (around > 0.4)


def texture(rng: np.random.Generator, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Blurred by 1 to 3 pixels, or sharpened."""
    smooth = gaussian_filter(canvas.image, (0, 0, *2 * [rng.uniform(1, 3)]))
    amount = -1.0 if rng.random() < 0.5 else rng.uniform(1, 3)
    detail = canvas.image - smooth
    return canvas.image + _soft(rng, canvas) * amount * detail, canvas.inside


LOOKS: dict[str, Look] = {
    "shift": shift,
    "bright": bright,
    "fill": fill,
    "foreign": foreign,
    "poisson": poisson,
    "mass": mass,
    "halo": halo,
    "texture": texture,
}
WITH_MASS = ("shift", "bright", "fill", "halo")  # what grows may push what is around it
MASS_SHARE = 0.3


def displaced(rng: np.random.Generator, canvas: Canvas, image: np.ndarray) -> np.ndarray:
    """Return an image whose pixels moved along the slope of the smoothed lesion, by up to 8 mm."""
    pixel = canvas.pixel_mm
    lesion = (canvas.depth[0] > 0).astype(np.float32)
    wide = np.clip(0.3 * np.sqrt(lesion.sum()), 1, None)
    slope = np.stack(np.gradient(gaussian_filter(lesion, wide)))
    steepest = max(float(np.linalg.norm(slope, axis=0).max()), 1e-9)
    push = rng.choice([-1.0, 1.0]) * rng.uniform(2, 8) / pixel
    # no farther than the smoothing reaches: what moves must not fold
    slope *= np.clip(push, -wide, wide) / steepest
    places = np.indices(lesion.shape) + slope
    moved = np.empty_like(image)
    for d, c in np.ndindex(*image.shape[:2]):
        moved[d, c] = map_coordinates(image[d, c], places, order=1, mode="nearest")
    return moved


def plant_batch(
    image: Tensor,
    mask: Tensor,
    seeds: Tensor | None,
    looks: Sequence[str],
    share: float,
    pixel_mm: float,
    offsets_mm: Sequence[float] = (0.0,),
) -> tuple[Tensor, Tensor]:
    """Plant one lesion in a `share` of the slices, each by its own seed.

    Look and shape are drawn evenly, the volume log-uniformly from `VOLUMES_ML`.

    Args: image (B, D * C, H, W) in [0, 1], the D slices of `offsets_mm` one after the other, the
    middle one first; mask (B, 1, H, W); seeds (B,) or None; `pixel_mm` side of a pixel. Returns the
    new image in [0, 1], and the lesion in the middle slice (B, 1, H, W), 0 or 1. Where nothing
    shows, the slice stays as it is.
    """
    stacks = image.float().cpu().numpy().reshape(len(image), len(offsets_mm), -1, *image.shape[2:])
    brains = mask[:, 0].cpu().numpy() > 0
    new = stacks.copy()
    lesions = np.zeros(brains.shape, np.float32)
    for i, (stack, brain) in enumerate(zip(stacks, brains, strict=True)):
        rng = sample_rng(seeds, i)
        if not brain.any() or rng.random() >= share:
            continue
        room = Room(brain, pixel_mm, np.asarray(offsets_mm, float))
        other = stacks[i - 1] if len(stacks) > 1 else stack[..., ::-1].copy()
        for _ in range(TRIES):
            look = looks[int(rng.integers(len(looks)))]
            shape = list(SHAPES)[rng.integers(len(SHAPES))]
            volume = float(np.exp(rng.uniform(*np.log(VOLUMES_ML))))
            depth = draw_shape(rng, shape, volume, room)
            new[i], lesions[i] = plant(rng, look, canvas_of(stack, brain, depth, other, pixel_mm))
            if lesions[i].any():
                break
    made = torch.from_numpy(new.reshape(image.shape)).to(image)
    return made, torch.from_numpy(lesions)[:, None].to(image)


def canvas_of(
    image: np.ndarray, brain: np.ndarray, depth: np.ndarray, other: np.ndarray, pixel_mm: float
) -> Canvas:
    """Return a canvas; `other` is scaled to the brain's median and span in the middle slice."""
    inside = image[0][:, brain]
    low, middle, high = (q[:, None, None] for q in np.percentile(inside, (5, 50, 95), axis=1))
    span = np.maximum(high - low, 0.05)
    donor = other
    found = [channel[channel > 0] for channel in other[0]]
    if all(values.size for values in found):
        theirs = np.stack([np.percentile(values, (5, 50, 95)) for values in found])
        scale = span / np.maximum(theirs[:, 2] - theirs[:, 0], 0.05)[:, None, None]
        donor = (other > 0) * ((other - theirs[:, 1, None, None]) * scale + middle)
    return Canvas(image, brain, depth, donor.astype(np.float32), pixel_mm, low, span)


def plant(rng: np.random.Generator, look: str, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Return the new image (D, C, H, W) in [0, 1], and the lesion in the middle slice (H, W)."""
    new, shown = LOOKS[look](rng, canvas)
    if look in WITH_MASS and rng.random() < MASS_SHARE:
        # tissue moves first, then the lesion lies where it was drawn
        moved = displaced(rng, canvas, canvas.image)
        new = np.where(shown, new, moved)
    new = np.clip(new, 0, 1).astype(np.float32) * canvas.brain
    change = np.abs(new[0] - canvas.image[0]).max(0)
    lesion = shown[0, 0] & canvas.brain
    if not lesion.any() or change[lesion].mean() < VISIBLE:
        return canvas.image, np.zeros(canvas.brain.shape, np.float32)
    return new, lesion.astype(np.float32)


def change_contrast(image: Tensor, mask: Tensor, seeds: Tensor | None, strength: float) -> Tensor:
    """Change each sample's contrast, brightness, bias, resolution and noise by its own seed.

    At strength 1: gamma from 0.67 to 1.5, gain 0.8 to 1.2, a bias of up to a third across the
    brain, for a third of the samples a blur of up to 1.2 pixels, noise of up to 0.04. Args as
    `plant_batch`. Returns images in [0, 1].
    """
    if strength == 0:
        return image
    stacks = image.float().cpu().numpy()
    made = np.empty_like(stacks)
    for i, stack in enumerate(stacks):
        rng = sample_rng(seeds, i, 1)
        gamma, gain = np.exp(strength * rng.uniform((-0.4, -0.2), (0.4, 0.2)))
        coarse = strength * rng.uniform(0, 0.3) * rng.uniform(-1, 1, (4, 4))
        bias = np.exp(zoom(coarse, np.array(stack.shape[1:]) / 4, order=1, mode="nearest"))
        new = gain * bias * stack**gamma
        if rng.random() < 1 / 3:
            new = gaussian_filter(new, (0, *2 * [strength * rng.uniform(0.3, 1.2)]))
        new = new + strength * rng.uniform(0, 0.04) * rng.normal(size=new.shape)
        made[i] = np.clip(new, 0, 1)
    return torch.from_numpy(made).to(image) * mask


def sample_rng(seeds: Tensor | None, i: int, stream: int = 0) -> np.random.Generator:
    """Return random numbers of one sample, from its own seed alone; unseeded where it has none."""
    if seeds is None:
        return np.random.default_rng()
    return np.random.default_rng([int(seeds[i]), STREAM + stream])


def _signed(rng: np.random.Generator, canvas: Canvas, least: float, most: float) -> np.ndarray:
    """Return a strength of either sign for each channel, (C, 1, 1)."""
    sign = rng.choice([-1.0, 1.0], canvas.low.shape)
    return np.asarray(sign * rng.uniform(least, most, canvas.low.shape))


def _soft(rng: np.random.Generator, canvas: Canvas) -> np.ndarray:
    """Return the lesion with an edge that fades over 0.5 to 4 mm inwards, (D, 1, H, W)."""
    return np.clip(canvas.depth / rng.uniform(0.5, 4), 0, 1)[:, None] * canvas.brain
