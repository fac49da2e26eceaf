"""Volumes that tests of shapes and of lesions share: three different side lengths and spacings."""

import numpy as np
from scipy.ndimage import gaussian_filter

SHAPE = (46, 38, 30)
SPACING = (1.0, 1.5, 2.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def ball(shape, spacing, centre, radius):
    at = [(np.arange(n) - c) * s for n, c, s in zip(shape, centre, spacing, strict=True)]
    return sum(a**2 for a in np.meshgrid(*at, indexing="ij")) <= radius**2


def brain_and_image(seed=0, shape=SHAPE):
    source = rng(seed)
    brain = (
        sum(((np.indices(shape)[a] - shape[a] / 2) / (0.44 * shape[a])) ** 2 for a in range(3)) < 1
    )
    texture = gaussian_filter(source.normal(size=shape), 3) * 300 + 15 * source.normal(size=shape)
    return brain, np.where(brain, 400 + texture, 20).astype(np.float32)
