"""One scan to the space of its atlas: check, 1 mm, brain, rigid fit, intensity."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from preprocessing import intensity, quality, register
from preprocessing.brain import (
    brain_mask,
    fill_background,
    off_background,
    picture_foreground,
)
from preprocessing.images import HALF, Grid, is_picture, read_image, read_picture
from preprocessing.quality import Check
from preprocessing.recipe import Intensity, Limits, Recipe, Series
from preprocessing.resample import carry_mask, resample
from preprocessing.scans import Scan, ScanError, how_to_give
from preprocessing.volumes import absent, demand_orientation, forms_apart

log = logging.getLogger("norma")


@dataclass(frozen=True)
class Prepared:
    """A scan in the space of its atlas (a picture: of its frame), and the way back.

    image: (X, Y, Z) float32 in [0, 1], 0 outside the brain; with several channels (X, Y, Z, C).
    brain: (X, Y, Z) bool.
    grid: of image and brain.
    home: the grid of the scan (its first sequence) as it came in; `header` is its NIfTI header.
    scan_from_atlas: (4x4) maps mm of `grid` to mm of `home`, RAS+.
    space: the name of the atlas, or "picture".
    outline: the atlas brain, for pictures to look at.
    brain_method: what made the brain mask, as `brain.brain_mask` names it.
    checks: what was measured on the way.
    further_from_atlas: as scan_from_atlas, to mm of each sequence but the first.
    """

    image: np.ndarray
    brain: np.ndarray
    grid: Grid
    home: Grid
    scan_from_atlas: np.ndarray
    space: str = ""
    outline: np.ndarray | None = None
    header: nib.Nifti1Header | None = None
    brain_method: str = ""
    checks: list[Check] = field(default_factory=list)
    further_from_atlas: tuple[np.ndarray, ...] = ()

    @property
    def flags(self) -> list[str]:
        """Sentences for the checks that did not hold, and did not refuse the scan."""
        return quality.flags(self.checks)

    @property
    def channels(self) -> list[np.ndarray]:
        """Each channel (X, Y, Z)."""
        return [self.image] if self.image.ndim == 3 else list(np.moveaxis(self.image, -1, 0))


@dataclass(frozen=True)
class Stripped:
    """The first sequence of a scan and its brain, before registration.

    native: as it came in.
    work: at the recipe's spacing, RAS+.
    brain: bool, on the grid of `work`.
    source: which of the two is interpolated to the atlas.
    """

    path: Path
    native: nib.Nifti1Image
    work: nib.Nifti1Image
    brain: np.ndarray
    method: str
    source: nib.Nifti1Image
    checks: list[Check]


class RefusedScan(ScanError):
    """A scan failed its checks.

    It carries all checks, and where there is one a picture (image, brain) for the quality page.
    """

    def __init__(
        self,
        message: str,
        checks: list[Check],
        picture: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        super().__init__(message)
        self.checks = checks
        self.picture = picture


def prepare(scan: Scan, recipe: Recipe) -> Prepared:
    """`prepare_volume` or `prepare_picture` for one scan; every ScanError names the file."""
    steps = prepare_picture if recipe.modality == "picture" else prepare_volume
    try:
        return steps(scan, recipe)
    except RefusedScan:
        raise
    except ScanError as error:
        if str(error).startswith((*map(str, scan.files), str(scan.brain_mask))):
            raise
        raise ScanError(f"{scan.image}: {error}") from None


def prepare_volume(scan: Scan, recipe: Recipe) -> Prepared:
    """The steps for one scan: check, 1 mm, brain, N4, rigid to the atlas, intensity.

    Other sequences follow as channels. Raises ScanError, as RefusedScan where a check fails.
    """
    files = channel_files(scan, recipe)
    first = strip(scan, recipe)
    prepared = lay_on_atlas(first, recipe)
    for series, path in zip(recipe.sequences, files[1:], strict=True):
        prepared = add_sequence(prepared, first, series, path, recipe)
    return prepared


def channel_files(scan: Scan, recipe: Recipe) -> list[Path]:
    """The files of a scan's sequences in the order of the channels; ScanError if one is missing."""
    for series in recipe.sequences:
        if series.modality not in scan.sequences:
            raise ScanError(
                f"{scan.image}: no {series.modality} sequence of this scan, or more than one. "
                f"{how_to_give(recipe.name)}"
            )
    files = [scan.image, *(scan.sequences[s.modality] for s in recipe.sequences)]
    lost = next((f for f in files if not f.is_file()), None)
    if lost:
        raise ScanError(absent(lost))
    return files


def strip(scan: Scan, recipe: Recipe) -> Stripped:
    """Read and check the first sequence, bring it to the recipe's spacing, and find its brain."""
    native, checks = read_volume(scan.image, recipe.modality)
    checks = [*scan.checks, *checks]
    _demand(checks, scan.image)

    work = register.to_spacing(nib.as_closest_canonical(native), recipe.spacing, recipe.pad)
    brain, method = find_brain(scan, native, work, recipe)
    checks += quality.brain_checks(brain, (recipe.spacing,) * 3, recipe.limits.brain_ml)
    _demand(checks, scan.image, (np.asarray(work.dataobj), brain))

    if recipe.n4 and recipe.modality != "ct":  # N4 is for MR alone
        work = register.n4(work, brain)
    # Without N4 the image is interpolated once, from its own voxels to the atlas. The copy at the
    # recipe's spacing then serves the brain and the fit alone.
    source = work if recipe.n4 else native
    return Stripped(scan.image, native, work, brain, method, source, checks)


def find_brain(
    scan: Scan, native: nib.Nifti1Image, work: nib.Nifti1Image, recipe: Recipe
) -> tuple[np.ndarray, str]:
    """The brain on the grid of `work`, bool, and what made it; a mask of the table goes first.

    What is background is asked of the scan as it came in, `native`.
    """
    if scan.brain_mask:
        given = read_image(scan.brain_mask)
        demand_orientation(given, scan.brain_mask)
        brain = carry_mask(np.asarray(given.dataobj) > 0, Grid.of(given), Grid.of(work))
        if not brain.any():
            raise ScanError(
                f"{scan.brain_mask}: the brain mask is empty on the grid of {scan.image}."
            )
        return brain, "given"

    front = None
    if recipe.brain in ("auto", "none"):
        front = _front(native, recipe.spacing)
    brain, method = brain_mask(work, recipe.modality, recipe.brain, front)
    if method == "none" and recipe.brain == "auto":
        log.info("%s: already skull-stripped, taken as it is", scan.id)
    return brain, method


def _front(native: nib.Nifti1Image, spacing: float) -> np.ndarray:
    """What of a scan is not background, on its copy at `spacing` mm; bool.

    A voxel of the copy counts where any voxel that it is interpolated from does.
    """
    front = off_background(np.asarray(native.dataobj)).astype(np.float32)
    image = nib.as_closest_canonical(nib.Nifti1Image(front, native.affine))
    return np.asarray(register.to_spacing(image, spacing).dataobj) > 0


def lay_on_atlas(first: Stripped, recipe: Recipe) -> Prepared:
    """Fit a stripped sequence to the atlas, check the fit, and scale its intensities there."""
    atlas = register.load_atlas(recipe.template, recipe.grid)
    here = Grid.of(first.work)
    shown = registration_view(np.asarray(first.work.dataobj), first.brain, recipe.intensity)
    scan_from_atlas, affine_fit = register.fit(
        shown, here, atlas, brain=first.brain, spacing=recipe.registration_spacing
    )

    in_atlas = carry_mask(first.brain, here, atlas.grid, scan_from_atlas)
    image = _onto_brain(first.source, atlas.grid, scan_from_atlas, in_atlas)
    overlap = quality.dice(in_atlas, atlas.brain)
    checks = [
        *first.checks,
        *_fit_checks(shown, first.brain, here, affine_fit, atlas, overlap, recipe.limits),
    ]
    _demand(checks, first.path, (image, in_atlas))
    return Prepared(
        image=scale_intensity(image, in_atlas, recipe.intensity),
        brain=in_atlas,
        grid=atlas.grid,
        home=Grid.of(first.native),
        scan_from_atlas=scan_from_atlas,
        space=atlas.name,
        outline=atlas.brain,
        header=first.native.header,
        brain_method=first.method,
        checks=checks,
    )


def _onto_brain(
    image: nib.Nifti1Image, grid: Grid, image_from_grid: np.ndarray, brain: np.ndarray
) -> np.ndarray:
    """An image on a grid, inside the box around the brain.

    The brain may reach half a voxel beyond the outermost slices: there the last value is repeated.
    """
    data = np.asarray(image.dataobj)
    return resample(data, Grid.of(image), grid, image_from_grid, pad=None, within=brain)


def _fit_checks(
    shown: np.ndarray,
    brain: np.ndarray,
    grid: Grid,
    affine_fit: np.ndarray,
    atlas: register.Atlas,
    rigid_overlap: float,
    limits: Limits,
) -> list[Check]:
    """Overlaps and mutual information; those of the affine fit on every second atlas voxel."""
    coarse = atlas.grid.every(2)
    atlas_brain = atlas.brain[HALF]
    brain_there = carry_mask(brain, grid, coarse, affine_fit)
    image_there = resample(shown, grid, coarse, affine_fit)
    both = brain_there & atlas_brain
    information = 0.0
    if both.any():
        information = quality.mutual_information(image_there[both], atlas.image[HALF][both])
    return quality.registration_checks(
        rigid_overlap,
        quality.dice(brain_there, atlas_brain),
        information,
        limits.min_overlap,
        limits.min_information,
    )


def add_sequence(
    prepared: Prepared, first: Stripped, series: Series, path: Path, recipe: Recipe
) -> Prepared:
    """`prepared` with another sequence of the scan as its last channel."""
    image, between, checks = place_sequence(series, path, first, recipe)
    sequence_from_atlas = between @ prepared.scan_from_atlas
    everywhere = np.ones(image.shape, bool)
    covered = carry_mask(everywhere, Grid.of(image), prepared.grid, sequence_from_atlas)
    checks += quality.coverage_checks(covered, prepared.brain)
    checks = [replace(c, name=f"{series.modality}: {c.name}") for c in checks]

    data = _onto_brain(image, prepared.grid, sequence_from_atlas, prepared.brain)
    checks = [*prepared.checks, *checks]
    _demand(checks, path, (data, prepared.brain))
    channel = scale_intensity(data, prepared.brain, series.intensity)
    return replace(
        prepared,
        image=np.stack([*prepared.channels, channel], -1),
        checks=checks,
        further_from_atlas=(*prepared.further_from_atlas, sequence_from_atlas),
    )


def place_sequence(
    series: Series, path: Path, first: Stripped, recipe: Recipe
) -> tuple[nib.Nifti1Image, np.ndarray, list[Check]]:
    """Another sequence as it is to be interpolated, `sequence_from_scan` (4x4), and its checks.

    Sequences whose headers give one shape and affine are taken as aligned; all others are
    registered to the first one, rigidly.
    """
    native, checks = read_volume(path, series.modality)
    if any(c.hard and not c.passed for c in checks):
        return native, np.eye(4), checks

    work = register.to_spacing(nib.as_closest_canonical(native), recipe.spacing, series.pad)
    pair = (
        _ranged(first.work, recipe.intensity),
        Grid.of(first.work),
        first.brain,
        _ranged(work, series.intensity),
        Grid.of(work),
    )
    sequence_from_scan = np.eye(4)
    aligned = np.allclose(native.affine, first.native.affine, atol=1e-4)
    if not aligned or native.shape != first.native.shape:
        sequence_from_scan = register.fit_sequence(*pair, spacing=recipe.registration_spacing)

    likeness = register.likeness(*pair, sequence_from_scan)
    # the likeness of CT and MR was not measured, so it only flags them
    hard = "ct" not in recipe.name
    checks += quality.likeness_checks(likeness, recipe.modality, hard=hard)

    if recipe.n4 and series.modality != "ct":
        scan_from_sequence = np.linalg.inv(sequence_from_scan)
        inside = carry_mask(first.brain, Grid.of(first.work), Grid.of(work), scan_from_sequence)
        return register.n4(work, inside), sequence_from_scan, checks
    return native, sequence_from_scan, checks


def prepare_picture(scan: Scan, recipe: Recipe) -> Prepared:
    """The steps for one 2-D picture: read, foreground, the middle of the frame, intensity.

    There is no atlas.
    """
    native, planes = _picture_and_planes(scan.image, recipe.channels)
    data = np.asarray(native.dataobj)
    if data.shape[2] != 1:
        raise ScanError(
            f"{scan.image}: expected a picture, got a volume of shape {data.shape}; "
            "give MODALITY=ct, t1, t2 or flair."
        )
    brain, method = _picture_brain(scan, data, recipe)
    checks = quality.picture_checks(data, brain)
    _demand(checks, scan.image, (data, brain))

    side = (recipe.grid[0] or data.shape[0], recipe.grid[1] or data.shape[1])
    image, framed, picture_from_frame = register.fit_picture(planes, brain, side)
    inside = framed if image.ndim == 3 else framed[..., None]
    return Prepared(
        image=scale_intensity(image, inside, recipe.intensity),
        brain=framed,
        grid=Grid((*side, 1), np.eye(4)),
        home=Grid.of(native),
        scan_from_atlas=picture_from_frame,
        space="picture",
        header=native.header,
        brain_method=method,
        checks=checks,
    )


def _picture_and_planes(path: Path, channels: int) -> tuple[nib.Nifti1Image, np.ndarray]:
    """A picture as a grey scan (X, Y, 1), and what its channels are made of.

    That is the same array, or its colour planes (X, Y, 1, C).
    """
    if channels == 1:
        native = read_image(path)
        return native, np.asarray(native.dataobj)
    if not is_picture(path):
        raise ScanError(
            f"{path}: channels={channels} is for pictures, this is none; give PNG, JPG or TIF."
        )
    planes = np.asarray(read_picture(path, channels).dataobj)
    return nib.Nifti1Image(planes.mean(-1), np.eye(4)), planes


def _picture_brain(scan: Scan, data: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, str]:
    """The part of a picture (X, Y, 1) that counts, bool, and what made it."""
    if scan.brain_mask:
        given = np.asarray(read_image(scan.brain_mask).dataobj) > 0
        if given.shape != data.shape:
            raise ScanError(
                f"{scan.brain_mask}: shape {given.shape[:2]} differs from the picture's, "
                f"{data.shape[:2]}."
            )
        return given, "given"
    if recipe.brain == "none":
        return np.ones(data.shape, bool), "none"
    return picture_foreground(data), "foreground"


def read_volume(path: Path, modality: str) -> tuple[nib.Nifti1Image, list[Check]]:
    """A scan as it came in, a background of NaN filled, and the checks of its voxels."""
    native = read_image(path)
    demand_orientation(native, path)
    data, share = fill_background(np.asarray(native.dataobj))
    if share:
        native = nib.Nifti1Image(data, native.affine, native.header)
    grid = Grid.of(native)
    extent = [float(n * s) for n, s in zip(grid.shape, grid.spacing, strict=True)]
    checks = [*quality.form_checks(*forms_apart(native)), *quality.nan_checks(share)]
    return native, [*checks, *quality.image_checks(data, modality, extent)]


def _demand(
    checks: Sequence[Check], path: Path, picture: tuple[np.ndarray, np.ndarray] | None = None
) -> None:
    """Raise RefusedScan where a hard check failed, naming the file."""
    try:
        quality.demand(checks)
    except ScanError as error:
        raise RefusedScan(f"{path}: {error}", list(checks), picture) from None


def registration_view(data: np.ndarray, brain: np.ndarray, how: Intensity) -> np.ndarray:
    """The brain alone, in a range that registration can use."""
    if how.kind == "window":
        return intensity.window(data, brain, how.low, how.high)
    return intensity.percentiles(data, brain, 0.5, 99.5)


def _ranged(image: nib.Nifti1Image, how: Intensity) -> np.ndarray:
    """The whole head, in a range that registration can use."""
    data = np.asarray(image.dataobj, np.float32)
    limits = (how.low, how.high) if how.kind == "window" else np.percentile(data, (0.5, 99.5))
    return np.clip(data, *limits)


def scale_intensity(image: np.ndarray, brain: np.ndarray, how: Intensity) -> np.ndarray:
    """An image to [0, 1] as the recipe says, 0 outside the brain; float32."""
    if how.kind == "window":
        return intensity.window(image, brain, how.low, how.high)
    return intensity.percentiles(image, brain, how.low, how.high, how.top)
