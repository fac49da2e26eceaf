"""Virtual lesions, and what they share with virtual heads: the template and smooth noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from nilearn import datasets
from scipy.ndimage import distance_transform_edt, gaussian_filter, label, zoom

KINDS = ("bright", "dark", "textured")
FORMS = ("ellipsoid", "blob", "ring")


@dataclass
class Lesion:
    """One lesion: what it is, where in template mm, and its volume.

    measured_ml is the volume of its mask on the scan, known once that is rendered.
    """

    kind: str
    form: str
    centre: list[float]
    wanted_ml: float
    strength: float
    measured_ml: float = 0.0


@lru_cache(maxsize=1)
def template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ICBM152 at 1 mm: channels, depth and affine.

    The channels are T1, grey matter, white matter and brain, (4, X, Y, Z) float32. The depth is the
    distance to the brain's surface in mm.
    """
    loaders = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
        datasets.load_mni152_brain_mask,
    )
    images = [load(resolution=1) for load in loaders]
    stack = np.stack([image.get_fdata(dtype=np.float32) for image in images])
    depth = distance_transform_edt(stack[3] > 0.5).astype(np.float32)
    return stack, depth, images[0].affine


def smooth_noise(rng: np.random.Generator, sigma: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth noise of mean 0 and standard deviation 1; `sigma` in voxels per axis.

    Wide noise is smoothed on a coarse grid.
    """
    step = np.maximum(1, sigma // 3).astype(int)
    small = [-(-n // k) + 1 for n, k in zip(shape, step, strict=True)]
    values = gaussian_filter(rng.normal(size=small).astype(np.float32), sigma / step)
    if step.max() > 1:
        values = zoom(values, [n / s for n, s in zip(shape, small, strict=True)], order=1)
    else:
        values = values[tuple(slice(n) for n in shape)]
    return (values - values.mean()) / values.std()


def place(rng: np.random.Generator, ml: float) -> list[float]:
    """A point of grey or white matter in template mm, so deep that a lesion of `ml` fits mostly."""
    stack, depth, affine = template()
    radius = (ml * 1000 * 3 / 4 / np.pi) ** (1 / 3)
    inside = np.argwhere((stack[1] + stack[2] > 0.7) & (depth > min(8 + 0.5 * radius, 24)))
    return (affine[:3, :3] @ inside[rng.integers(len(inside))] + affine[:3, 3]).tolist()


def lesion_shape(
    lesion: Lesion,
    at: np.ndarray,
    inside: np.ndarray,
    voxel_mm: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The lesion's soft shape, and the core of a ring, (X, Y, Z) in [0, 1].

    at: the template voxel of every voxel of the scan, (3, X, Y, Z).
    inside: the brain, bool.

    The shape is in one piece within the brain; above its half level lies the wanted volume.
    """
    point = np.linalg.inv(template()[2])[:3] @ [*lesion.centre, 1]
    offset = at - point[:, None, None, None].astype(np.float32)
    stretch = rng.uniform(0.75, 1.3, 3)
    stretch /= np.prod(stretch) ** (1 / 3)
    distance = np.sqrt(sum((offset[a] / stretch[a]) ** 2 for a in range(3)))
    if lesion.form == "blob":
        size = (lesion.wanted_ml * 239) ** (1 / 3)  # radius in mm of a ball of this volume
        width = np.clip(0.5 * size, 2, 8) / voxel_mm
        distance = distance + 0.3 * size * smooth_noise(rng, width, distance.shape)

    count = round(lesion.wanted_ml * 1000 / voxel_mm.prod())
    radius = float(np.partition(distance[inside], count)[count])
    soft = _step(distance, radius) * inside
    pieces, _ = label(soft > 0.05)
    soft *= pieces == np.bincount(pieces[pieces > 0]).argmax()
    core = _step(distance, 0.6 * radius) if lesion.form == "ring" else np.zeros_like(soft)
    return soft, core


def _step(distance: np.ndarray, radius: float) -> np.ndarray:
    """1 within the radius, 0 beyond, over an edge of about 2 mm."""
    return 1 / (1 + np.exp(np.clip((distance - radius) / 0.4, -30, 30)))


def lesion_value(
    lesion: Lesion,
    image: np.ndarray,
    core: np.ndarray,
    tissue: list[float],
    voxel_mm: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Intensity inside a lesion, before bias and noise; `tissue` is that of CSF, grey and white.

    The core of a bright ring is as dark as fluid, that of a dark ring bright.
    """
    csf, _, white = tissue
    grain = 0.05 * smooth_noise(rng, 1.5 / voxel_mm, image.shape)
    if lesion.kind == "textured":
        texture = smooth_noise(rng, 2.0 / voxel_mm, image.shape)
        return image * np.clip(1 + 1.2 * lesion.strength * texture, 0.05, None)

    bright = white * (1 + lesion.strength) + grain
    dark = csf + (image - csf) * 0.25 + 0.3 * grain
    rim, middle = (bright, dark) if lesion.kind == "bright" else (dark, bright)
    return rim * (1 - core) + middle * core
