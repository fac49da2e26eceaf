"""Random shapes of lesions that are planted in training: how deep each point lies in one, in mm.

They are not those of the evaluation (evaluation/shapes.py), so that a detector that learned from
these is not tested on the same drawing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

WAVES = 6  # that roughen a blob


@dataclass(frozen=True)
class Room:
    """Where a lesion is drawn: parallel slices of one brain.

    brain: bool (H, W), of the middle slice.
    pixel_mm: side of a pixel.
    offsets_mm: place of each slice (D,) above the middle one.
    """

    brain: np.ndarray
    pixel_mm: float
    offsets_mm: np.ndarray

    def under_surface(self) -> np.ndarray:
        """Return mm of each pixel (H, W) below the brain's surface, 0 outside the brain."""
        return np.asarray(distance_transform_edt(np.pad(self.brain, 1)))[1:-1, 1:-1] * self.pixel_mm

    def points(self, pixel: np.ndarray, up: float) -> np.ndarray:
        """Return where every pixel lies from a centre, mm (D, H, W, 3): up, rows, columns.

        The centre is at `pixel` (2,), `up` mm above the middle slice.
        """
        row, column = pixel
        rows = self.pixel_mm * (np.arange(self.shape[0]) - row)
        columns = self.pixel_mm * (np.arange(self.shape[1]) - column)
        axes = np.meshgrid(self.offsets_mm - up, rows, columns, indexing="ij")
        return np.stack(axes, -1).astype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self.brain.shape[0], self.brain.shape[1]


def blob(rng: np.random.Generator, mm3: float, points: np.ndarray, under: np.ndarray) -> np.ndarray:
    """A rough ellipsoid: waves through space change its radius by about a sixth."""
    radius = ball_radius(mm3)
    axes = np.exp(rng.uniform(-0.35, 0.35, 3))
    turned = points @ turn(rng) / (axes / axes.prod() ** (1 / 3))
    waves = rng.normal(0, 1.5 / radius, (3, WAVES))
    phases = rng.uniform(0, 2 * np.pi, WAVES)

    def rough(at: np.ndarray) -> np.ndarray:
        return 1 + 0.09 * np.cos(at @ waves + phases).sum(-1)

    # the waves on a ball's surface say by how much they change its volume
    away = rng.normal(size=(200, 3))
    surface = radius * away / np.linalg.norm(away, axis=1, keepdims=True)
    same = float((rough(surface) ** 3).mean()) ** (-1 / 3)
    return radius * same * rough(points) - np.linalg.norm(turned, axis=-1)


def shell(
    rng: np.random.Generator, mm3: float, points: np.ndarray, under: np.ndarray
) -> np.ndarray:
    """A hollow ball: its wall has 0.25 to 0.6 of the radius of the wall's middle."""
    share = rng.uniform(0.25, 0.6)
    # of the wall's middle: 4/3 pi ((r + t/2)^3 - (r - t/2)^3) is the volume, with t = share * r
    radius = (mm3 / (4 * np.pi * share * (1 + share**2 / 12))) ** (1 / 3)
    return 0.5 * share * radius - np.abs(np.linalg.norm(points, axis=-1) - radius)


def tube(rng: np.random.Generator, mm3: float, points: np.ndarray, under: np.ndarray) -> np.ndarray:
    """A bent tube, 6 to 16 times as long as its radius."""
    times = rng.uniform(6, 16)
    radius = (mm3 / (np.pi * times)) ** (1 / 3)
    along, across, above = np.moveaxis(points @ turn(rng), -1, 0)
    half = 0.5 * times * radius
    bend = rng.uniform(0, 0.4) * (along**2 / half - half / 3)
    away = np.hypot(across - bend, above)
    return np.minimum(radius - away, half - np.abs(along))


def many(rng: np.random.Generator, mm3: float, points: np.ndarray, under: np.ndarray) -> np.ndarray:
    """3 to 10 balls of one size about the centre."""
    count = int(rng.integers(3, 11))
    radius = ball_radius(mm3 / count)
    apart = rng.normal(0, 1, (count, 3)) * (1.5 * radius, *2 * [rng.uniform(10, 30)])
    return np.stack([radius - np.linalg.norm(points - a, axis=-1) for a in apart]).max(0)


def rim(rng: np.random.Generator, mm3: float, points: np.ndarray, under: np.ndarray) -> np.ndarray:
    """A layer of 2 to 8 mm under the brain's surface."""
    thick = rng.uniform(2, 8)
    wide = np.sqrt(mm3 / (np.pi * thick))
    return np.minimum(thick - under, wide - np.linalg.norm(points, axis=-1))


def crescent(
    rng: np.random.Generator, mm3: float, points: np.ndarray, under: np.ndarray
) -> np.ndarray:
    """What an extra-axial collection fills: a layer that is thickest at its middle."""
    share = rng.uniform(0.15, 0.4)
    wide = (2 * mm3 / (np.pi * share)) ** (1 / 3)
    away = np.linalg.norm(points, axis=-1) / wide
    return share * wide * (1 - away**2) - under


Shape = Callable[[np.random.Generator, float, np.ndarray, np.ndarray], np.ndarray]

SHAPES: dict[str, Shape] = {
    "blob": blob,
    "shell": shell,
    "tube": tube,
    "many": many,
    "rim": rim,
    "crescent": crescent,
}
AT_SURFACE = ("rim", "crescent")


def draw_shape(rng: np.random.Generator, name: str, volume_ml: float, room: Room) -> np.ndarray:
    """Return how deep each point lies in a lesion, mm (D, H, W) float32; at most 0 outside it.

    Its centre is any pixel of the brain, or one at the surface for `AT_SURFACE`, in the middle
    slice or near it. The shape may reach out of the brain. ValueError for an empty brain.
    """
    under = room.under_surface()
    pixels = np.argwhere(room.brain)
    if name in AT_SURFACE:
        pixels = np.argwhere(room.brain & (under <= 1.01 * room.pixel_mm))
    if len(pixels) == 0:
        raise ValueError("the brain mask is empty")
    pixel = pixels[rng.integers(len(pixels))]
    mm3 = 1000 * volume_ml
    up = rng.uniform(-0.6, 0.6) * ball_radius(mm3)
    return SHAPES[name](rng, mm3, room.points(pixel, up), under).astype(np.float32)


def ball_radius(mm3: float) -> float:
    """Return the radius in mm of a ball of a volume."""
    return float((mm3 * 3 / 4 / np.pi) ** (1 / 3))


def turn(rng: np.random.Generator) -> np.ndarray:
    """Return a random rotation or reflection, float32 (3, 3)."""
    return np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
