"""What tests of registration and resampling share: motions, points and oblique grids."""

import numpy as np
from scipy.spatial.transform import Rotation

from preprocessing import register
from preprocessing.images import Grid
from preprocessing.resample import resample

OBLIQUE = Rotation.from_euler("xyz", [10, -7, 12], degrees=True).as_matrix()


def rigid_motion(degrees, shift, fixed_point):
    """A rotation about a point, and a shift (4x4)."""
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    motion[:3, 3] = fixed_point - motion[:3, :3] @ fixed_point + shift
    return motion


def apply(matrix, points):
    """A map (4x4) of points (n, 3)."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def voxel_points(grid):
    """Where the voxels of a grid lie, in mm: (X, Y, Z, 3)."""
    indices = np.moveaxis(np.indices(grid.shape), 0, -1)
    return indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def oblique_grid(middle, voxel, axes, shape):
    """An oblique, flipped, anisotropic grid about a point in mm."""
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag(axes) @ np.diag(voxel)
    affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) / 2)
    return Grid(shape, affine)


def atlas_centre(atlas):
    """Centre of the atlas brain in mm, (3,)."""
    return register.centre(atlas.brain, atlas.affine)


def moved_grid(atlas, motion, voxel, axes, shape):
    """An oblique grid about where a motion takes the centre of the atlas brain."""
    return oblique_grid(apply(motion, atlas_centre(atlas)[None])[0], voxel, axes, shape)


def moved_head(atlas, motion, grid):
    """The atlas brain moved by a motion, on a grid."""
    return resample(atlas.image, atlas.grid, grid, np.linalg.inv(motion))
