"""Resample to 1 mm, rigid registration to the atlas (ANTs), and any grid to any grid by one affine."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preprocessing.brain import foreground
from preprocessing.files import atomic
from preprocessing.images import Grid, read_image
from preprocessing.quality import dice, mutual_information
from preprocessing.scans import InputError, ScanError

if TYPE_CHECKING:
    import nibabel as nib

SURE = 0.93  # Dice of the affinely fitted brains; below it a fit is tried from other poses
GAIN = 0.015  # Dice that another pose must bring
TURNS = (-25, 25)  # degrees
HALF = (slice(None, None, 2),) * 3  # every second voxel, as Grid.every(2)
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS+ world to ITK's LPS world


@dataclass(frozen=True)
class Atlas:
    """The space that scans are brought to: template (X, Y, Z) float32, its brain mask, its affine, and its name."""

    name: str
    image: np.ndarray
    brain: np.ndarray
    affine: np.ndarray

    @property
    def grid(self) -> Grid:
        x, y, z = self.image.shape
        return Grid((x, y, z), self.affine)


@lru_cache(maxsize=2)
def load_atlas(
    template: str | None = None, grid: tuple[int | None, int | None, int | None] = (240, 240, None)
) -> Atlas:
    """The ICBM152 T1 brain that nilearn ships (its BIDS label is MNI152NLin2009aSym), or a NIfTI template, at 1 mm.

    The template is zero-padded or cropped about its centre to `grid` voxels (None keeps an axis). The brain mask of a
    given template is its foreground: it has to be skull-stripped.
    """
    import nibabel as nib

    if template is None:
        from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

        image, mask = load_mni152_template(resolution=1), load_mni152_brain_mask(resolution=1)
        name, affine = "MNI152NLin2009aSym", image.affine
        data, brain = image.get_fdata(dtype=np.float32), np.asarray(mask.dataobj) > 0
    else:
        try:
            image = to_spacing(nib.as_closest_canonical(read_image(Path(template))), 1.0)
        except ScanError as error:
            raise InputError(f"TEMPLATE: {error}") from None
        name = "".join(c for c in Path(template).name.split(".")[0] if c.isalnum())
        data, affine = np.asarray(image.dataobj), image.affine
        brain = foreground(data)
    data, affine = _fit_grid(data, affine, grid)
    brain, _ = _fit_grid(brain, image.affine, grid)
    return Atlas(name, np.ascontiguousarray(data * brain), brain, affine)


def _fit_grid(
    data: np.ndarray, affine: np.ndarray, grid: tuple[int | None, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Pad with zeros or crop each axis about its centre; the affine follows."""
    start = np.array(
        [0 if size is None else (n - size) // 2 for n, size in zip(data.shape, grid, strict=True)]
    )
    shape = [n if size is None else size for n, size in zip(data.shape, grid, strict=True)]
    out = np.zeros(shape, data.dtype)
    source = tuple(
        slice(max(s, 0), min(s + n, m)) for s, n, m in zip(start, shape, data.shape, strict=True)
    )
    target = tuple(
        slice(max(-s, 0), max(-s, 0) + (c.stop - c.start))
        for s, c in zip(start, source, strict=True)
    )
    out[target] = data[source]
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ start
    return out, moved


def to_spacing(image: nib.Nifti1Image, spacing: float, pad: float = 0.0) -> nib.Nifti1Image:
    """Resample to isotropic voxels of `spacing` mm: ANTs ResampleImageBySpacing, linear.

    A sheared affine (gantry tilt that nobody corrected), which ITK cannot hold, is resampled onto a straight grid by
    nibabel, with `pad` outside the scan.
    """
    ants = _ants()
    import nibabel as nib
    from nibabel.processing import resample_to_output

    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        return resample_to_output(image, (spacing,) * 3, order=1, cval=pad)
    if np.allclose(nib.affines.voxel_sizes(image.affine), spacing, atol=1e-3):
        return image
    new = ants.resample_image(
        _to_ants(np.asarray(image.dataobj, np.float32), image.affine),
        (spacing,) * 3,
        use_voxels=False,
        interp_type=0,
    )  # 0 is linear; the default, 1, is nearest
    return nib.Nifti1Image(new.numpy(), _affine_of(new))


def fit(
    image: np.ndarray,
    grid: Grid,
    atlas: Atlas,
    *,
    brain: np.ndarray | None = None,
    spacing: float = 3.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Rigid and affine maps from atlas world to scan world (RAS+ mm, 4x4) that lay a stripped scan on the atlas.

    Mutual information (ANTs, 32 bins) drives an *affine* fit at `spacing` mm from the centres of mass; the rigid map
    keeps its rotation (polar decomposition) and the place of the atlas centre, and throws scale and shear away. A rigid
    fit of a brain to a template of another size has no clear optimum: this way the pose repeats within a few tenths of
    a millimetre where ANTs' own rigid stages differ by several. The affine map serves the checks alone.

    A head that lies askew can end in a wrong optimum. Where the brains (`brain`, bool, or what of the image is above 0) overlap by a
    Dice below `SURE` fits from `TURNS` about each axis race at twice the `spacing`; the best runs at `spacing` too, if it is ahead at all,
    and is taken if it is better by `GAIN`. Raises ScanError where ANTs fails.
    """
    inside = image > 0 if brain is None else brain
    pair = (atlas.image, atlas.affine), (image, grid.affine)
    full = _ants_fit("Affine", *pair, spacing, seed, "to the atlas")
    first = _overlap_with(atlas, inside, grid, full)
    if first < SURE and inside.any():
        starts = _turned(centre(atlas.brain, atlas.affine), centre(inside, grid.affine))
        ends = [
            _ants_fit("Affine", *pair, 2 * spacing, seed, "to the atlas", start=start)
            for start in starts
        ]
        ahead = [_overlap_with(atlas, inside, grid, end) for end in ends]
        if max(ahead) > first:
            other = _ants_fit(
                "Affine",
                *pair,
                spacing,
                seed,
                "to the atlas",
                start=starts[ahead.index(max(ahead))],
            )
            full = other if _overlap_with(atlas, inside, grid, other) > first + GAIN else full
    return nearest_rigid(full, centre(atlas.brain, atlas.affine)), full


def _turned(fixed: np.ndarray, moving: np.ndarray) -> list[np.ndarray]:
    """Rigid maps (4x4) that lay one centre (3,) on the other, turned by `TURNS` degrees about each axis."""
    from scipy.spatial.transform import Rotation

    starts = []
    for axis, degrees in itertools.product("xyz", TURNS):
        world = np.eye(4)
        world[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
        world[:3, 3] = moving - world[:3, :3] @ fixed
        starts.append(world)
    return starts


def _overlap_with(
    atlas: Atlas, brain: np.ndarray, grid: Grid, scan_from_atlas: np.ndarray
) -> float:
    """Dice of a brain and the atlas brain on every second atlas voxel."""
    return dice(carry_mask(brain, grid, atlas.grid.every(2), scan_from_atlas), atlas.brain[HALF])


def fit_sequence(
    image: np.ndarray,
    grid: Grid,
    brain: np.ndarray,
    other: np.ndarray,
    other_grid: Grid,
    *,
    spacing: float = 3.0,
    seed: int = 0,
) -> np.ndarray:
    """Rigid map from the world of a scan to that of another sequence of the same head (RAS+ mm, 4x4).

    Mutual information within 5 mm of the `brain` (bool, of the scan's shape) drives ANTs' rigid fit, at 3 mm or finer, from where
    the headers say the two lie and from their centres of mass; the better end is taken. One head has one size, so that the fit has
    a clear optimum, other than that to an atlas. Raises ScanError where ANTs fails.
    """
    from scipy import ndimage

    near = ndimage.binary_dilation(
        brain, iterations=max(1, round(5 / float(np.linalg.norm(grid.affine[:3, 0]))))
    )
    ends, failed = [], ScanError("")
    for start in ("Identity", None):
        try:
            pair = (image, grid.affine), (other, other_grid.affine)
            ends.append(
                _ants_fit(
                    "Rigid", *pair, min(spacing, 3.0), seed, "to the first sequence", near, start
                )
            )
        except ScanError as error:  # from one start the two may not even overlap
            failed = error
    if not ends:
        raise failed
    return max(ends, key=lambda end: likeness(image, grid, brain, other, other_grid, end))


def likeness(
    image: np.ndarray,
    grid: Grid,
    brain: np.ndarray,
    other: np.ndarray,
    other_grid: Grid,
    other_from_image: np.ndarray,
) -> float:
    """Mutual information in nats of two scans inside the brain of the first, on every second voxel of it.

    Three voxels of rim are left out: there any two stripped heads are alike.
    """
    from scipy import ndimage

    inside = ndimage.binary_erosion(brain, iterations=3)[HALF]
    inside = inside if inside.any() else brain[HALF]
    carried = resample(other, other_grid, grid.every(2), other_from_image)
    return mutual_information(image[HALF][inside], carried[inside])


def _ants_fit(
    kind: str,
    fixed_pair: tuple[np.ndarray, np.ndarray],
    moving_pair: tuple[np.ndarray, np.ndarray],
    spacing: float,
    seed: int,
    what: str,
    mask: np.ndarray | None = None,
    start: np.ndarray | str | None = None,
) -> np.ndarray:
    """ANTs' linear fit of two (image, affine) at `spacing` mm: map from fixed to moving world (RAS+ mm, 4x4); `mask` on the fixed grid.

    `start`: such a map, "Identity", or None for the centres of mass.
    """
    ants = _ants()

    fixed, moving = (
        ants.resample_image(_to_ants(*i), (spacing,) * 3, use_voxels=False, interp_type=0)
        for i in (fixed_pair, moving_pair)
    )
    near = {}
    if mask is not None:
        coarse = ants.resample_image(
            _to_ants(mask, fixed_pair[1]), (spacing,) * 3, use_voxels=False, interp_type=1
        )
        near = {"mask": coarse, "mask_all_stages": True}
    ants.config.set_ants_deterministic(
        False, seed + 1
    )  # the seed alone: `registration` swallows a random_seed argument
    with tempfile.TemporaryDirectory(prefix="norma-") as folder:
        if isinstance(start, np.ndarray):
            write_matrix(Path(folder) / "start.mat", start)
            start = f"{folder}/start.mat"
        try:
            done = ants.registration(
                fixed,
                moving,
                type_of_transform=kind,
                initial_transform=start,
                outprefix=f"{folder}/",
                aff_metric="mattes",
                aff_sampling=32,
                aff_random_sampling_rate=0.25,
                aff_iterations=(100, 50, 20),
                aff_shrink_factors=(4, 2, 1),
                aff_smoothing_sigmas=(2, 1, 0),
                **near,
            )
            return _FLIP @ read_matrix(Path(done["fwdtransforms"][0])) @ _FLIP
        except (RuntimeError, KeyError, IndexError, ValueError) as error:
            raise ScanError(f"registration {what} failed ({error}).") from None


def fit_picture(
    image: np.ndarray, mask: np.ndarray, side: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture (X, Y, 1[, C]) in the middle of a frame of `side` pixels, never enlarged; image, mask and the map frame -> picture (4x4).

    A picture that is too large is shrunk to fit, proportions kept, after a Gaussian against aliasing.
    """
    from scipy import ndimage

    scale = max(1.0, *(n / s for n, s in zip(image.shape[:2], side, strict=True)))
    world = np.diag([scale, scale, 1, 1])
    world[:2, 3] = [
        (n - 1) / 2 - scale * (s - 1) / 2 for n, s in zip(image.shape[:2], side, strict=True)
    ]
    if scale == 1:
        world[:2, 3] = np.floor(world[:2, 3])  # whole pixels: nothing is interpolated
    sigma = (scale - 1) / 2
    here, frame = Grid((*image.shape[:2], 1), np.eye(4)), Grid((*side, 1), np.eye(4))

    def framed(plane: np.ndarray) -> np.ndarray:
        smooth = ndimage.gaussian_filter(plane, (sigma, sigma, 0)) if scale > 1 else plane
        return resample(smooth, here, frame, world)

    done = (
        framed(image)
        if image.ndim == 3
        else np.stack([framed(plane) for plane in np.moveaxis(image, -1, 0)], -1)
    )
    return done, carry_mask(mask, here, frame, world), world


def nearest_rigid(matrix: np.ndarray, fixed_point: np.ndarray) -> np.ndarray:
    """Rotation nearest to an affine (4x4), with the translation that sends `fixed_point` (3,) where the affine does."""
    u, _, vt = np.linalg.svd(matrix[:3, :3])
    result = np.eye(4)
    result[:3, :3] = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    result[:3, 3] = matrix[:3, :3] @ fixed_point + matrix[:3, 3] - result[:3, :3] @ fixed_point
    return result


def centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of mass of a mask in world mm, (3,)."""
    return affine[:3, :3] @ np.array([axis.mean() for axis in np.nonzero(mask)]) + affine[:3, 3]


def resample(
    data: np.ndarray,
    grid: Grid,
    onto: Grid,
    source_from_target: np.ndarray | None = None,
    *,
    order: int = 1,
    pad: float | None = 0.0,
    within: np.ndarray | None = None,
) -> np.ndarray:
    """Carry an array from its `grid` onto another in one interpolation.

    `source_from_target` (4x4) maps mm of the grid `onto` to mm of the array; None where both are of one space.
    Order 1 for images (linear), 0 for masks (nearest neighbour). `pad` outside the source's voxel centres, or for None
    the nearest voxel. Any invertible affine will do, sheared ones too. Returns the dtype of `data`; not for bool.
    Outside the box around `within` (bool, of the shape of `onto`) the result is `pad`, or 0, and costs nothing; nor does what comes from voxels that
    are all `pad`.
    """
    from scipy import ndimage

    between = np.eye(4) if source_from_target is None else source_from_target
    matrix = np.linalg.inv(grid.affine) @ between @ onto.affine
    mode, value = ("nearest", 0.0) if pad is None else ("constant", pad)
    box = _box_of(within) if within is not None else [(0, n) for n in onto.shape]
    if pad is not None:
        box = _overlap(box, _reach(_box_of(data != pad), np.linalg.inv(matrix)))
    result = np.full(onto.shape, value, data.dtype)
    if all(low < high for low, high in box):
        start = np.array([low for low, _ in box])
        inner = ndimage.affine_transform(
            data,
            matrix[:3, :3],
            matrix[:3, :3] @ start + matrix[:3, 3],
            tuple(high - low for low, high in box),
            order=order,
            mode=mode,
            cval=value,
        )
        result[tuple(slice(low, high) for low, high in box)] = inner
    return result


def _box_of(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and one past the last index of True along each axis; (0, 0) where there is none."""
    axes = [
        np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis)))
        for axis in range(mask.ndim)
    ]
    return [(int(i[0]), int(i[-1]) + 1) if i.size else (0, 0) for i in axes]


def _reach(box: list[tuple[int, int]], matrix: np.ndarray) -> list[tuple[int, int]]:
    """The box that holds all voxels within one voxel of `box`, after the voxel-to-voxel map `matrix` (4x4)."""
    if any(low == high for low, high in box):
        return [(0, 0)] * len(box)
    corners = (
        np.array(list(itertools.product(*((low - 1, high) for low, high in box))))
        @ matrix[:3, :3].T
        + matrix[:3, 3]
    )
    return [
        (math.floor(low), math.ceil(high) + 1)
        for low, high in zip(corners.min(0), corners.max(0), strict=True)
    ]


def _overlap(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [
        (max(low, other), min(high, end)) for (low, high), (other, end) in zip(a, b, strict=True)
    ]


def carry_mask(
    mask: np.ndarray, grid: Grid, onto: Grid, source_from_target: np.ndarray | None = None
) -> np.ndarray:
    """`resample` for a bool mask, by nearest neighbour; bool, of the shape of `onto`."""
    return resample(mask.astype(np.uint8), grid, onto, source_from_target, order=0).astype(bool)


def write_matrix(path: Path, world: np.ndarray) -> None:
    """Write atlas world -> scan world (RAS+) as an ITK affine (.mat, LPS) that ANTs applies to bring the scan to the atlas."""
    ants = _ants()

    lps = _FLIP @ world @ _FLIP
    transform = ants.create_ants_transform(
        transform_type="AffineTransform", dimension=3, matrix=lps[:3, :3], translation=lps[:3, 3]
    )
    with atomic(path) as temporary:
        ants.write_transform(transform, str(temporary))


def read_matrix(path: Path) -> np.ndarray:
    """4x4 matrix of an ITK affine file, in ITK's own LPS world."""
    ants = _ants()

    transform = ants.read_transform(str(path))
    parameters = np.array(transform.parameters)
    about = np.array(transform.fixed_parameters[:3])
    matrix = np.eye(4)
    matrix[:3, :3] = parameters[:9].reshape(3, 3)
    matrix[:3, 3] = parameters[9:] + about - matrix[:3, :3] @ about
    return matrix


def n4(image: nib.Nifti1Image, mask: np.ndarray) -> nib.Nifti1Image:
    """N4 bias field correction (Tustison et al. 2010) inside a brain mask, on a grid shrunk 4 times."""
    ants = _ants()
    import nibabel as nib

    data = _to_ants(np.asarray(image.dataobj, np.float32), image.affine)
    done = ants.n4_bias_field_correction(
        data, mask=_to_ants(mask.astype(np.float32), image.affine), shrink_factor=4
    )
    return nib.Nifti1Image(done.numpy(), image.affine)


def _ants() -> Any:
    """antspyx on one ITK thread, where a seed decides everything: with more, sums and so poses vary from run to run."""
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
    import ants

    return ants


def _to_ants(data: np.ndarray, affine: np.ndarray) -> Any:
    ants = _ants()

    lps = _FLIP @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return ants.from_numpy(
        np.asarray(data, np.float32),
        origin=tuple(lps[:3, 3]),
        spacing=tuple(spacing),
        direction=lps[:3, :3] / spacing,
    )


def _affine_of(image: Any) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.direction) * np.asarray(image.spacing)
    affine[:3, 3] = image.origin
    return _FLIP @ affine
