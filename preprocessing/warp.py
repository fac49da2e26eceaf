"""A map between two spaces that is an affine and a smooth deformation: points through it, and back.

A plain affine stays a 4x4 array. A `Warp` is composed with `@` as matrices are, and `inverse` takes
either, so that a caller need not ask which one it holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from preprocessing.images import Grid, save_nifti
from preprocessing.volumes import open_volume

INVERSE_STEPS = 30  # of the fixed point; with the bounds of `deform` each takes off a third or more

CLOSE_MM = 1e-3

_LPS = np.array([-1, -1, 1], np.float32)


@dataclass(frozen=True)
class Field:
    """A displacement at each voxel: a point x goes to x + mm(x), and outside the grid to itself.

    mm: (X, Y, Z, 3) float32, RAS+; linear between voxels.
    """

    mm: np.ndarray
    grid: Grid

    def at(self, points: np.ndarray) -> np.ndarray:
        """The displacements (N, 3) at points (N, 3)."""
        voxels = _moved(np.linalg.inv(self.grid.affine), points).T
        parts = [
            ndimage.map_coordinates(self.mm[..., axis], voxels, order=1, cval=0.0)
            for axis in range(3)
        ]
        return np.stack(parts, -1)

    @cached_property
    def inverse(self) -> Field:
        """The field that leads back, on the same grid, by fixed point (Chen et al. 2008)."""
        ends = _voxel_centres(self.grid)
        back = np.zeros_like(ends)
        for _ in range(INVERSE_STEPS):
            last = back
            back = -self.at(ends + back)
            if np.abs(back - last).max() < CLOSE_MM:
                break
        field = Field(back.reshape(self.mm.shape).astype(np.float32), self.grid)
        field.__dict__["inverse"] = self  # there and back again is where one was, exactly
        return field

    def jacobian(self) -> np.ndarray:
        """The local change of volume at each voxel (X, Y, Z): 1 where nothing changes."""
        gradients = [np.stack(np.gradient(self.mm[..., axis]), -1) for axis in range(3)]
        by_voxel = np.stack(gradients, -2)  # rows are components, columns array axes
        return np.linalg.det(np.eye(3) + by_voxel @ np.linalg.inv(self.grid.affine[:3, :3]))


Step = np.ndarray | Field


@dataclass(frozen=True)
class Warp:
    """Affines (4x4) and fields one after the other, the last one first, as matrices multiply."""

    steps: tuple[Step, ...]

    __array_ufunc__ = None  # so that `matrix @ warp` comes to __rmatmul__

    def __matmul__(self, other: Map) -> Warp:
        """This map after another one."""
        return Warp(tuple(_merged((*self.steps, *_steps(other)))))

    def __rmatmul__(self, other: np.ndarray) -> Warp:
        return Warp(tuple(_merged((other, *self.steps))))

    @property
    def linear(self) -> np.ndarray:
        """The map without its fields, 4x4."""
        result = np.eye(4)
        for step in self.steps:
            if not isinstance(step, Field):
                result = result @ step
        return result

    @property
    def fields(self) -> list[Field]:
        return [step for step in self.steps if isinstance(step, Field)]


Map = np.ndarray | Warp
"""From the mm of one space to those of another: 4x4, or with a deformation."""


def inverse(way: Map) -> Map:
    """The way back."""
    if isinstance(way, Warp):
        back = [s.inverse if isinstance(s, Field) else np.linalg.inv(s) for s in way.steps]
        return Warp(tuple(reversed(back)))
    return np.linalg.inv(way)


def linear(way: Map) -> np.ndarray:
    """A map without its deformation, 4x4."""
    return way.linear if isinstance(way, Warp) else way


def carry(way: Map, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) in mm through a map."""
    for step in reversed(_steps(way)):
        points = points + step.at(points) if isinstance(step, Field) else _moved(step, points)
    return points


def carry_box(way: Map, corners: np.ndarray) -> np.ndarray:
    """Corners (8, 3) of a box through a map: corners around all that the box is carried to."""
    for step in reversed(_steps(way)):
        if isinstance(step, Field):
            most = np.abs(step.mm).max((0, 1, 2))
            ends = zip(corners.min(0) - most, corners.max(0) + most, strict=True)
            corners = np.array(list(itertools.product(*ends)))
        else:
            corners = _moved(step, corners)
    return corners


def volume_change(way: Map, brain: np.ndarray, grid: Grid) -> float:
    """By how much a map changes the volume of a brain (bool, on `grid`, where the map starts)."""
    scale = float(abs(np.linalg.det(linear(way)[:3, :3])))
    if isinstance(way, Warp):
        inside = _moved(grid.affine, np.argwhere(brain[::4, ::4, ::4]) * 4)
        for field in way.fields:
            voxels = _moved(np.linalg.inv(field.grid.affine), inside).T
            local = ndimage.map_coordinates(field.jacobian(), voxels, order=1, cval=1.0)
            scale *= float(local.mean()) if local.size else 1.0
    return scale


def write_field(path: Path, field: Field) -> None:
    """A field as ITK and ANTs read one: vectors in LPS, NIfTI."""
    vectors = (field.mm * _LPS)[:, :, :, None].astype(np.float32)
    image = nib.Nifti1Image(vectors, field.grid.affine)
    image.header.set_intent("vector")
    save_nifti(image, path)


def read_field(path: Path) -> Field:
    """The field that `write_field` wrote; ScanError where the file is damaged."""
    mm = open_volume(path).stored()[:, :, :, 0].astype(np.float32) * _LPS
    return Field(mm, Grid.of(nib.Nifti1Image.from_filename(path)))


def _steps(way: Map) -> tuple[Step, ...]:
    return way.steps if isinstance(way, Warp) else (way,)


def _merged(steps: Iterable[Step]) -> list[Step]:
    """The same steps, neighbouring matrices multiplied."""
    result: list[Step] = []
    for step in steps:
        last = result[-1] if result else None
        if isinstance(last, np.ndarray) and isinstance(step, np.ndarray):
            result[-1] = last @ step
        else:
            result.append(step)
    return result


def _moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) through a matrix (4x4)."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _voxel_centres(grid: Grid) -> np.ndarray:
    """Every voxel centre of a grid in mm, (N, 3), in the order of the array."""
    return _moved(grid.affine, np.indices(grid.shape).reshape(3, -1).T.astype(float))
