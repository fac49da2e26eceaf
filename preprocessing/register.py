"""The atlas, resampling to 1 mm, and rigid registration (ANTs)."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_to_output
from scipy import ndimage
from scipy.spatial.transform import Rotation

from preprocessing.brain import foreground
from preprocessing.files import atomic
from preprocessing.images import HALF, Grid, read_image
from preprocessing.lean_ants import ants
from preprocessing.quality import dice, mutual_information
from preprocessing.resample import carry_mask, resample
from preprocessing.scans import InputError, ScanError
from preprocessing.volumes import demand_orientation

# One ITK thread, where a seed decides everything: with more, sums and so poses vary from run to
# run. ITK reads this once it is loaded.
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
import SimpleITK as sitk

# Dice of the brains where the affine fit lays them. Below it the fit is tried from other poses:
# so the few heads of CT-ICH that lie askew come right (docs/experiments.md).
SURE = 0.93
# Dice that another pose must bring, so that a head that is nearly symmetric keeps its pose.
GAIN = 0.015
TURNS = (-25, 25)  # degrees about each axis at which other fits start

ICBM152 = Path("datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")  # in nilearn
BRAIN = 0.2  # of the highest value; what is above it is brain

NEAR = 5  # mm around the brain that count where two sequences of one head are fitted
RIM = 3  # voxels of rim that `likeness` leaves out: there any two stripped heads are alike

AntsPair = tuple[Any, Any]  # fixed and moving image of a fit, as ANTs holds them


@dataclass(frozen=True)
class Schedule:
    """The levels of a fit by ANTs, coarse to fine, and the share of voxels that it samples."""

    iterations: tuple[int, ...] = (100, 50, 20)
    shrink: tuple[int, ...] = (4, 2, 1)
    smooth: tuple[int, ...] = (2, 1, 0)
    share: float = 0.25


FULL = Schedule()
SHORT = Schedule(iterations=(12,), shrink=(1,), smooth=(0,), share=0.5)

_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # mm in RAS+ to ITK's LPS, and back


@dataclass(frozen=True, eq=False)
class Atlas:
    """The space that scans are brought to.

    image: the template (X, Y, Z), float32, 0 outside its brain.
    brain: its brain mask, bool.
    affine: 4x4, from voxels to mm.
    """

    name: str
    image: np.ndarray
    brain: np.ndarray
    affine: np.ndarray

    @property
    def grid(self) -> Grid:
        """Where the voxels of image and brain lie."""
        x, y, z = self.image.shape
        return Grid((x, y, z), self.affine)


@lru_cache(maxsize=2)
def load_atlas(
    template: str | None = None, shape: tuple[int | None, int | None, int | None] = (240, 240, None)
) -> Atlas:
    """The ICBM152 T1 brain that nilearn ships, or a NIfTI template of one's own, at 1 mm.

    The BIDS label of the former is MNI152NLin2009aSym. The latter has to be skull-stripped: its
    brain mask is its foreground. Either is zero-padded or cropped about its centre to `shape`
    voxels; None keeps an axis. Raises InputError for a template that cannot be used.
    """
    name, image, brain = _icbm152() if template is None else _template(Path(template))
    data, affine = _fit_shape(np.asarray(image.dataobj, np.float32), image.affine, shape)
    brain, _ = _fit_shape(brain, image.affine, shape)
    return Atlas(name, np.ascontiguousarray(data * brain), brain, affine)


def _icbm152() -> tuple[str, nib.Nifti1Image, np.ndarray]:
    """What nilearn's `load_mni152_template` and `load_mni152_brain_mask` give at 1 mm, to the bit.

    Its file is read here, as importing `nilearn.datasets` takes longer than all else of an atlas.
    """
    package = find_spec("nilearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("nilearn, which brings the atlas, is not installed")
    native = nib.Nifti1Image.from_filename(Path(package.origin).parent / ICBM152)
    data = np.asarray(native.dataobj).astype(np.float32)
    data /= data.max()
    return "MNI152NLin2009aSym", nib.Nifti1Image(data, native.affine), data > BRAIN


def _template(path: Path) -> tuple[str, nib.Nifti1Image, np.ndarray]:
    try:
        native = read_image(path)
        demand_orientation(native, path)
        image = to_spacing(nib.as_closest_canonical(native), 1.0)
    except ScanError as error:
        raise InputError(f"TEMPLATE: {error}") from None
    name = "".join(c for c in path.name.split(".")[0] if c.isalnum())
    return name, image, foreground(np.asarray(image.dataobj))


def _fit_shape(
    data: np.ndarray, affine: np.ndarray, shape: Sequence[int | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Pad with zeros or crop each axis about its centre; the affine follows."""
    sizes = [n if size is None else size for n, size in zip(data.shape, shape, strict=True)]
    start = [(n - size) // 2 for n, size in zip(data.shape, sizes, strict=True)]
    source = []
    target = []
    for first, size, n in zip(start, sizes, data.shape, strict=True):
        low = max(first, 0)
        high = min(first + size, n)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))

    result = np.zeros(sizes, data.dtype)
    result[tuple(target)] = data[tuple(source)]
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.array(start)
    return result, moved


def to_spacing(image: nib.Nifti1Image, spacing: float, pad: float = 0.0) -> nib.Nifti1Image:
    """Resample to isotropic voxels of `spacing` mm: ANTs ResampleImageBySpacing, linear.

    ITK cannot hold a sheared affine (a gantry tilt that nobody corrected). It is resampled onto a
    straight grid by nibabel, with `pad` outside the scan.
    """
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        return resample_to_output(image, (spacing,) * 3, order=1, cval=pad)
    if np.allclose(nib.affines.voxel_sizes(image.affine), spacing, atol=1e-3):
        return image
    new = _coarse(np.asarray(image.dataobj, np.float32), image.affine, spacing)
    return nib.Nifti1Image(new.numpy(), affine_of(new))


def n4(image: nib.Nifti1Image, brain: np.ndarray) -> nib.Nifti1Image:
    """N4 bias field correction (Tustison et al. 2010) inside a brain, on a grid shrunk 4 times."""
    done = ants().n4_bias_field_correction(
        to_ants(np.asarray(image.dataobj, np.float32), image.affine),
        mask=to_ants(brain.astype(np.float32), image.affine),
        shrink_factor=4,
    )
    return nib.Nifti1Image(done.numpy(), image.affine)


def fit(
    image: np.ndarray,
    grid: Grid,
    atlas: Atlas,
    *,
    brain: np.ndarray | None = None,
    spacing: float = 3.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Rigid and affine `scan_from_atlas` (RAS+ mm, 4x4) that lay a stripped scan on the atlas.

    Mutual information (ANTs, 32 bins) drives an *affine* fit at `spacing` mm from the centres of
    mass. The rigid map has its rotation (polar decomposition) and sends the centre of the atlas
    brain where it does; scale and shear are thrown away. A rigid fit of a brain to a template of
    another size has no clear optimum. This way poses by other seeds lie a few tenths of a
    millimetre apart on T1, and about one on thick slices (docs/results/pose_repeats.json). The
    affine map serves the checks, and scans that are to be aligned by it.

    A head that lies askew can end in a wrong optimum. So where the brains overlap by a Dice below
    `SURE`, other starts are tried. `brain` is bool, by default what of the image is above 0.
    Raises ScanError where ANTs fails.
    """
    inside = image > 0 if brain is None else brain
    pair = (atlas.image, atlas.affine), (image, grid.affine)
    coarse = _coarse_pair(*pair, spacing)
    full = _ants_fit("Affine", coarse, seed)

    overlap = _overlap_with(atlas, inside, grid, full)
    if overlap < SURE and inside.any():
        # the starts race at twice the spacing, which finds the same poses in half the time
        racing = _coarse_pair(*pair, 2 * spacing)
        centres = centre(atlas.brain, atlas.affine), centre(inside, grid.affine)
        rotations = [
            Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
            for axis, degrees in itertools.product("xyz", TURNS)
        ]
        starts = turned_about(*centres, rotations)
        ends = [_ants_fit("Affine", racing, seed, start=start) for start in starts]
        overlaps = [_overlap_with(atlas, inside, grid, end) for end in ends]
        if max(overlaps) > overlap:
            best = starts[overlaps.index(max(overlaps))]
            other = _ants_fit("Affine", coarse, seed, start=best)
            if _overlap_with(atlas, inside, grid, other) > overlap + GAIN:
                full = other
    return nearest_rigid(full, centre(atlas.brain, atlas.affine)), full


def turned_about(
    fixed: np.ndarray, moving: np.ndarray, rotations: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Rigid maps (4x4) with the rotations of some matrices, that lay one centre (3,) on another."""
    starts = []
    for rotation in rotations:
        start = np.eye(4)
        start[:3, :3] = rotation[:3, :3]
        start[:3, 3] = moving - start[:3, :3] @ fixed
        starts.append(start)
    return starts


def short_fits(
    atlas: tuple[np.ndarray, Grid], head: tuple[np.ndarray, Grid], starts: Sequence[np.ndarray]
) -> list[np.ndarray | None]:
    """Affine `head_from_atlas` (4x4) by short fits of two coarse images, one from each start (4x4).

    None stands where ANTs fails, as where the two do not even overlap.
    """
    fixed, moving = (to_ants(image, grid.affine) for image, grid in (atlas, head))
    ends: list[np.ndarray | None] = []
    for start in starts:
        try:
            ends.append(_ants_fit("Affine", (fixed, moving), 0, start=start, schedule=SHORT))
        except ScanError:
            ends.append(None)
    return ends


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
    """Rigid `other_from_image` (RAS+ mm, 4x4): from a scan to another sequence of the same head.

    Mutual information within 5 mm of the `brain` (bool, of the scan's shape) drives ANTs' rigid
    fit, at 3 mm or finer. One head has one size, so this fit has a clear optimum, other than that
    to an atlas. It starts from where the headers say the two lie, and from their centres of mass;
    the better end is taken. Raises ScanError where ANTs fails.
    """
    spacing = min(spacing, 3.0)
    reach = max(1, round(NEAR / float(np.linalg.norm(grid.affine[:3, 0]))))
    near = ndimage.binary_dilation(brain, iterations=reach)
    mask = _coarse(near, grid.affine, spacing, nearest=True)
    pair = _coarse_pair((image, grid.affine), (other, other_grid.affine), spacing)

    ends = []
    failures = []
    for start in ("Identity", None):
        try:
            ends.append(_ants_fit("Rigid", pair, seed, mask, start))
        except ScanError as error:  # from one start the two may not even overlap
            failures.append(error)
    if not ends:
        raise failures[-1]
    return max(ends, key=lambda end: likeness(image, grid, brain, other, other_grid, end))


def likeness(
    image: np.ndarray,
    grid: Grid,
    brain: np.ndarray,
    other: np.ndarray,
    other_grid: Grid,
    other_from_image: np.ndarray,
) -> float:
    """Mutual information in nats of two scans inside the brain of the first.

    It is measured on every second voxel, without the rim of the brain.
    """
    inside = ndimage.binary_erosion(brain, iterations=RIM)[HALF]
    inside = inside if inside.any() else brain[HALF]
    carried = resample(other, other_grid, grid.every(2), other_from_image)
    return mutual_information(image[HALF][inside], carried[inside])


def _coarse_pair(
    fixed: tuple[np.ndarray, np.ndarray], moving: tuple[np.ndarray, np.ndarray], spacing: float
) -> AntsPair:
    """Two (image, affine) at `spacing` mm."""
    return _coarse(*fixed, spacing), _coarse(*moving, spacing)


def _coarse(data: np.ndarray, affine: np.ndarray, spacing: float, nearest: bool = False) -> Any:
    """An image of ANTs at `spacing` mm, linear or by nearest neighbour.

    SimpleITK runs the filter of `ants.resample_image`, with the same result to the bit, without the
    copies that take it up to twenty times as long.
    """
    origin, steps, direction = _frame(affine)
    size = [int(n * step / spacing + 0.5) for n, step in zip(data.shape, steps, strict=True)]
    source = sitk.GetImageFromArray(np.asarray(data, np.float32).T)
    source.SetOrigin(origin)
    source.SetSpacing(steps)
    source.SetDirection(direction.ravel())
    how = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    new = (spacing,) * 3
    done = sitk.Resample(source, size, sitk.Transform(), how, origin, new, direction.ravel())
    return ants().from_numpy(sitk.GetArrayViewFromImage(done).T, origin, new, direction)


def _ants_fit(
    kind: str,
    pair: AntsPair,
    seed: int,
    mask: Any = None,
    start: np.ndarray | str | None = None,
    schedule: Schedule = FULL,
) -> np.ndarray:
    """ANTs' linear fit, "Affine" or "Rigid": `moving_from_fixed` (RAS+ mm, 4x4).

    `mask` lies on the fixed image. `start` is such a map, "Identity", or None for the centres of
    mass. Raises ScanError where ANTs fails.
    """
    fixed, moving = pair
    near = {} if mask is None else {"mask": mask, "mask_all_stages": True}
    # the seed alone: `registration` swallows a random_seed argument
    ants().config.set_ants_deterministic(False, seed + 1)
    with tempfile.TemporaryDirectory(prefix="norma-") as folder:
        if isinstance(start, np.ndarray):
            write_matrix(Path(folder) / "start.mat", start)
            start = f"{folder}/start.mat"
        try:
            done = ants().registration(
                fixed,
                moving,
                type_of_transform=kind,
                initial_transform=start,
                outprefix=f"{folder}/",
                aff_metric="mattes",
                aff_sampling=32,
                aff_random_sampling_rate=schedule.share,
                aff_iterations=schedule.iterations,
                aff_shrink_factors=schedule.shrink,
                aff_smoothing_sigmas=schedule.smooth,
                **near,
            )
            return _FLIP @ read_matrix(Path(done["fwdtransforms"][0])) @ _FLIP
        except (RuntimeError, KeyError, IndexError, ValueError) as error:
            what = "to the atlas" if kind == "Affine" else "to the first sequence"
            raise ScanError(f"registration {what} failed ({error}).") from None


def fit_picture(
    image: np.ndarray, foreground: np.ndarray, side: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture (X, Y, 1[, C]) in the middle of a frame of `side` pixels, never enlarged.

    Returns image and foreground in the frame, and `picture_from_frame` (4x4). A picture that is too
    large is shrunk to fit, proportions kept, after a Gaussian against aliasing.
    """
    sizes = list(zip(image.shape[:2], side, strict=True))
    scale = max(1.0, *(n / s for n, s in sizes))
    picture_from_frame = np.diag([scale, scale, 1, 1])
    picture_from_frame[:2, 3] = [(n - 1) / 2 - scale * (s - 1) / 2 for n, s in sizes]
    if scale == 1:
        # whole pixels: nothing is interpolated
        picture_from_frame[:2, 3] = np.floor(picture_from_frame[:2, 3])

    sigma = (scale - 1) / 2
    x, y = image.shape[:2]
    grid = Grid((x, y, 1), np.eye(4))
    frame = Grid((*side, 1), np.eye(4))

    def framed(plane: np.ndarray) -> np.ndarray:
        smooth = ndimage.gaussian_filter(plane, (sigma, sigma, 0)) if scale > 1 else plane
        return resample(smooth, grid, frame, picture_from_frame)

    if image.ndim == 3:
        result = framed(image)
    else:
        result = np.stack([framed(plane) for plane in np.moveaxis(image, -1, 0)], -1)
    return result, carry_mask(foreground, grid, frame, picture_from_frame), picture_from_frame


def nearest_rigid(matrix: np.ndarray, fixed_point: np.ndarray) -> np.ndarray:
    """The rotation nearest to an affine (4x4), sending `fixed_point` (3,) where the affine does."""
    u, _, vt = np.linalg.svd(matrix[:3, :3])
    result = np.eye(4)
    # the determinant keeps it from mirroring
    result[:3, :3] = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    result[:3, 3] = matrix[:3, :3] @ fixed_point + matrix[:3, 3] - result[:3, :3] @ fixed_point
    return result


def centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of mass of a mask in mm, (3,)."""
    middle = []
    for axis, n in enumerate(mask.shape):
        others = tuple(other for other in range(3) if other != axis)
        middle.append(np.average(np.arange(n), weights=np.count_nonzero(mask, axis=others)))
    return affine[:3, :3] @ np.array(middle) + affine[:3, 3]


def write_matrix(path: Path, scan_from_atlas: np.ndarray) -> None:
    """Write a map from atlas to scan (RAS+) as an ITK affine (.mat, LPS).

    ANTs applies it to bring the scan to the atlas.
    """
    lps = _FLIP @ scan_from_atlas @ _FLIP
    transform = ants().create_ants_transform(
        transform_type="AffineTransform", dimension=3, matrix=lps[:3, :3], translation=lps[:3, 3]
    )
    with atomic(path) as temporary:
        ants().write_transform(transform, str(temporary))


def read_matrix(path: Path) -> np.ndarray:
    """4x4 matrix of an ITK affine file, in ITK's own LPS mm."""
    transform = ants().read_transform(str(path))
    parameters = np.array(transform.parameters)
    middle = np.array(transform.fixed_parameters[:3])
    matrix = np.eye(4)
    matrix[:3, :3] = parameters[:9].reshape(3, 3)
    matrix[:3, 3] = parameters[9:] + middle - matrix[:3, :3] @ middle
    return matrix


def to_ants(data: np.ndarray, affine: np.ndarray) -> Any:
    """An array as an image of ANTs, float32, in its place."""
    origin, spacing, direction = _frame(affine)
    return ants().from_numpy(np.asarray(data, np.float32), origin, spacing, direction)


def _frame(affine: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], np.ndarray]:
    """Origin, spacing and direction (3x3) of an image in ITK's LPS mm."""
    lps = _FLIP @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return tuple(lps[:3, 3].tolist()), tuple(spacing.tolist()), lps[:3, :3] / spacing


def affine_of(image: Any) -> np.ndarray:
    """Affine (4x4, RAS+) of an image of ANTs."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.direction) * np.asarray(image.spacing)
    affine[:3, 3] = image.origin
    return _FLIP @ affine
