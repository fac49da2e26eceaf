"""One scan to the space of its atlas: check, 1 mm, brain, rigid fit, intensity."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from preprocessing import brain, intensity, quality, register
from preprocessing.images import Grid, is_picture, read_image, read_picture, voxel_sizes
from preprocessing.quality import Check
from preprocessing.recipe import Intensity, Recipe, Series
from preprocessing.scans import Scan, ScanError, how_to_give

log = logging.getLogger("norma")


@dataclass(frozen=True)
class Prepared:
    """A scan in the space of its atlas (a picture: of its frame), and the way back.

    image: (X, Y, Z) float32 in [0, 1], 0 outside the brain; with several channels (X, Y, Z, C).
    brain: (X, Y, Z) bool.
    grid: of image and brain, in the space named.
    home: the grid of the scan (its first sequence) as it came in; `header` is its NIfTI header.
    scan_from_atlas: (4x4) maps mm of `grid` to mm of `home`, RAS+.
    space: the name of the atlas, or "picture".
    outline: the atlas brain, for pictures to look at.
    brain_method: what made the brain mask, as `brain.brain_mask` names it.
    checks: what was measured on the way.
    further_from_atlas: as scan_from_atlas, to mm of each further sequence.
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
        return quality.flags(self.checks)

    @property
    def channels(self) -> list[np.ndarray]:
        """Each channel (X, Y, Z)."""
        return [self.image] if self.image.ndim == 3 else list(np.moveaxis(self.image, -1, 0))


class RefusedScan(ScanError):
    """A scan failed its checks; carries what was seen, for the report and the picture."""

    def __init__(
        self,
        message: str,
        checks: list[Check],
        picture: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        super().__init__(message)
        self.checks, self.picture = checks, picture


def prepare(scan: Scan, recipe: Recipe) -> Prepared:
    """`prepare_volume` or `prepare_picture` for one scan; every ScanError names the file."""
    try:
        return (
            prepare_picture(scan, recipe)
            if recipe.modality == "picture"
            else prepare_volume(scan, recipe)
        )
    except RefusedScan:
        raise
    except ScanError as error:
        if str(error).startswith((*map(str, scan.files), str(scan.brain_mask))):
            raise
        raise ScanError(f"{scan.image}: {error}") from None


def prepare_volume(scan: Scan, recipe: Recipe) -> Prepared:
    """The steps for one scan: check, 1 mm, brain mask, N4, rigid to the atlas, intensity; raises ScanError.

    Without N4 the image is interpolated once, from its own voxels to the atlas: the 1 mm copy serves the mask and the
    fit. Half a voxel beyond the outermost slices, where the mask may reach, the image repeats its last value. Further sequences
    follow as channels.
    """
    files = channel_files(scan, recipe)
    native = read_image(scan.image)
    checks = quality.image_checks(np.asarray(native.dataobj), recipe.modality, _extent(native))
    _demand(checks, scan)
    work = register.to_spacing(nib.as_closest_canonical(native), recipe.spacing, recipe.pad)
    mask, method = _brain(scan, work, recipe)
    checks += quality.brain_checks(mask, (recipe.spacing,) * 3, recipe.limits.brain_ml)
    _demand(checks, scan, (np.asarray(work.dataobj), mask))
    if recipe.n4 and recipe.modality != "ct":
        work = register.n4(work, mask)
    source = work if recipe.n4 else native
    atlas = register.load_atlas(recipe.template, recipe.grid)
    shown = registration_view(np.asarray(work.dataobj), mask, recipe.intensity)
    world, loose = register.fit(
        shown, Grid.of(work), atlas, brain=mask, spacing=recipe.registration_spacing
    )
    in_atlas = register.carry_mask(mask, Grid.of(work), atlas.grid, world)
    image = register.resample(
        np.asarray(source.dataobj), Grid.of(source), atlas.grid, world, pad=None, within=in_atlas
    )
    checks += _registration_checks(shown, mask, in_atlas, Grid.of(work), loose, atlas, recipe)
    _demand(checks, scan, (image, in_atlas))
    scaled, worlds = [scale_intensity(image, in_atlas, recipe.intensity)], []
    for series, path in zip(recipe.sequences, files[1:], strict=True):
        other, between, its_checks = further_sequence(series, path, native, work, mask, recipe)
        worlds.append(between @ world)
        covered = register.carry_mask(
            np.ones(other.shape, bool), Grid.of(other), atlas.grid, worlds[-1]
        )
        its_checks += quality.coverage_checks(covered, in_atlas)
        checks += [replace(c, name=f"{series.modality}: {c.name}") for c in its_checks]
        image = register.resample(
            np.asarray(other.dataobj),
            Grid.of(other),
            atlas.grid,
            worlds[-1],
            pad=None,
            within=in_atlas,
        )
        _demand(checks, scan, (image, in_atlas), path)
        scaled.append(scale_intensity(image, in_atlas, series.intensity))
    image = np.stack(scaled, -1) if worlds else scaled[0]
    return Prepared(
        image=image,
        brain=in_atlas,
        grid=atlas.grid,
        home=Grid.of(native),
        scan_from_atlas=world,
        space=atlas.name,
        outline=atlas.brain,
        header=native.header,
        brain_method=method,
        checks=checks,
        further_from_atlas=tuple(worlds),
    )


def further_sequence(
    series: Series,
    path: Path,
    first: nib.Nifti1Image,
    work: nib.Nifti1Image,
    mask: np.ndarray,
    recipe: Recipe,
) -> tuple[nib.Nifti1Image, np.ndarray, list[Check]]:
    """A further sequence as it is to be interpolated, the rigid map (4x4) from the first one's mm to its own, and its checks.

    `work` and `mask` are the first sequence at 1 mm and its brain. Sequences whose headers give one shape and affine are taken as
    aligned; all others are registered.
    """
    native = read_image(path)
    checks = quality.image_checks(np.asarray(native.dataobj), series.modality, _extent(native))
    if any(c.hard and not c.passed for c in checks):
        return native, np.eye(4), checks
    here = register.to_spacing(nib.as_closest_canonical(native), recipe.spacing, series.pad)
    pair = (
        _ranged(work, recipe.intensity),
        Grid.of(work),
        mask,
        _ranged(here, series.intensity),
        Grid.of(here),
    )
    same = native.shape == first.shape and np.allclose(native.affine, first.affine, atol=1e-4)
    between = (
        np.eye(4) if same else register.fit_sequence(*pair, spacing=recipe.registration_spacing)
    )
    checks += quality.likeness_checks(
        register.likeness(*pair, between), recipe.modality, hard="ct" not in recipe.name
    )
    if recipe.n4 and series.modality != "ct":
        inside = register.carry_mask(mask, Grid.of(work), Grid.of(here), np.linalg.inv(between))
        return register.n4(here, inside), between, checks
    return native, between, checks


def channel_files(scan: Scan, recipe: Recipe) -> list[Path]:
    """The files of a scan's sequences in the order of the channels; ScanError where one is missing."""
    for series in recipe.sequences:
        if series.modality not in scan.sequences:
            raise ScanError(
                f"{scan.image}: no {series.modality} sequence of this scan, or more than one. {how_to_give(recipe.name)}"
            )
    files = [scan.image, *(scan.sequences[s.modality] for s in recipe.sequences)]
    lost = next((f for f in files if not f.is_file()), None)
    if lost:
        raise ScanError(f"{lost}: no such file.")
    return files


def prepare_picture(scan: Scan, recipe: Recipe) -> Prepared:
    """The steps for one 2-D picture: read, foreground, the middle of the frame, intensity; no atlas."""
    native, planes = _picture_and_planes(scan.image, recipe.channels)
    data = np.asarray(native.dataobj)
    if data.shape[2] != 1:
        raise ScanError(
            f"{scan.image}: expected a picture, got a volume of shape {data.shape}; give MODALITY=ct, t1, t2 or flair."
        )
    if scan.brain_mask:
        mask, method = np.asarray(read_image(scan.brain_mask).dataobj) > 0, "given"
        if mask.shape != data.shape:
            raise ScanError(
                f"{scan.brain_mask}: shape {mask.shape[:2]} differs from the picture's, {data.shape[:2]}."
            )
    elif recipe.brain == "none":
        mask, method = np.ones(data.shape, bool), "none"
    else:
        mask, method = brain.picture_foreground(data), "foreground"
    checks = quality.picture_checks(data, mask)
    _demand(checks, scan, (data, mask))
    side = (recipe.grid[0] or data.shape[0], recipe.grid[1] or data.shape[1])
    image, framed, world = register.fit_picture(planes, mask, side)
    there = framed if image.ndim == 3 else framed[..., None]
    return Prepared(
        image=scale_intensity(image, there, recipe.intensity),
        brain=framed,
        grid=Grid((*side, 1), np.eye(4)),
        home=Grid.of(native),
        scan_from_atlas=world,
        space="picture",
        header=native.header,
        brain_method=method,
        checks=checks,
    )


def _picture_and_planes(path: Path, channels: int) -> tuple[nib.Nifti1Image, np.ndarray]:
    """A picture as a grey scan (X, Y, 1), and what its channels are made of: the same, or its colour planes (X, Y, 1, C)."""
    if channels == 1:
        native = read_image(path)
        return native, np.asarray(native.dataobj)
    if not is_picture(path):
        raise ScanError(
            f"{path}: channels={channels} is for pictures, this is none; give PNG, JPG or TIF."
        )
    planes = np.asarray(read_picture(path, channels).dataobj)
    return nib.Nifti1Image(planes.mean(-1), np.eye(4)), planes


def _registration_checks(
    shown: np.ndarray,
    mask: np.ndarray,
    in_atlas: np.ndarray,
    grid: Grid,
    loose: np.ndarray,
    atlas: register.Atlas,
    recipe: Recipe,
) -> list[Check]:
    """Overlaps and mutual information; the affine ones on every second atlas voxel."""
    coarse, half = atlas.grid.every(2), register.HALF
    there, atlas_there = atlas.brain[half], atlas.image[half]
    mask_there = register.carry_mask(mask, grid, coarse, loose)
    image_there = register.resample(shown, grid, coarse, loose)
    both = mask_there & there
    information = (
        quality.mutual_information(image_there[both], atlas_there[both]) if both.any() else 0.0
    )
    return quality.registration_checks(
        quality.dice(in_atlas, atlas.brain),
        quality.dice(mask_there, there),
        information,
        recipe.limits.min_overlap,
        recipe.limits.min_information,
    )


def _demand(
    checks: list[Check],
    scan: Scan,
    picture: tuple[np.ndarray, np.ndarray] | None = None,
    path: Path | None = None,
) -> None:
    try:
        quality.demand(checks)
    except ScanError as error:
        raise RefusedScan(f"{path or scan.image}: {error}", checks, picture) from None


def _extent(image: nib.Nifti1Image) -> list[float]:
    return [float(n * s) for n, s in zip(image.shape, voxel_sizes(image.affine), strict=True)]


def _brain(scan: Scan, work: nib.Nifti1Image, recipe: Recipe) -> tuple[np.ndarray, str]:
    if scan.brain_mask:
        given = read_image(scan.brain_mask)
        mask = register.carry_mask(np.asarray(given.dataobj) > 0, Grid.of(given), Grid.of(work))
        if not mask.any():
            raise ScanError(
                f"{scan.brain_mask}: the brain mask is empty on the grid of {scan.image}."
            )
        return mask, "given"
    mask, method = brain.brain_mask(work, recipe.modality, recipe.brain)
    if method == "none" and recipe.brain == "auto":
        log.info("%s: already skull-stripped, taken as it is", scan.id)
    return mask, method


def registration_view(data: np.ndarray, mask: np.ndarray, how: Intensity) -> np.ndarray:
    """Brain alone, in a range that registration can use."""
    if how.kind == "window":
        return intensity.window(data, mask, how.low, how.high)
    return intensity.percentiles(data, mask, 0.5, 99.5)


def _ranged(image: nib.Nifti1Image, how: Intensity) -> np.ndarray:
    """The whole head, in a range that registration can use."""
    data = np.asarray(image.dataobj, np.float32)
    limits = (how.low, how.high) if how.kind == "window" else np.percentile(data, (0.5, 99.5))
    return np.clip(data, *limits)


def scale_intensity(image: np.ndarray, mask: np.ndarray, how: Intensity) -> np.ndarray:
    if how.kind == "window":
        return intensity.window(image, mask, how.low, how.high)
    return intensity.percentiles(image, mask, how.low, how.high, how.top)
