"""One scan to the space of its atlas: check, 1 mm, brain, fit, intensity."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from preprocessing import deform, intensity, lungs, orientation, quality, register
from preprocessing.background import fill_background, off_background
from preprocessing.brain import brain_mask, picture_foreground
from preprocessing.images import HALF, Grid, is_picture, read_image, read_picture
from preprocessing.quality import Check
from preprocessing.recipe import Intensity, Recipe, Series
from preprocessing.resample import carry_mask, resample
from preprocessing.scans import Scan, ScanError, how_to_give
from preprocessing.stripped import is_stripped
from preprocessing.volumes import (
    MAX_GB,
    absent,
    demand_orientation,
    forms_apart,
    has_orientation,
)
from preprocessing.warp import Map, Warp

log = logging.getLogger("norma")

VIEW_LEVELS = 64  # of MR, as registration sees it
GUESSES = 2  # orientations in which a scan that has none is stripped and fitted


@dataclass(frozen=True)
class Prepared:
    """A scan in the space of its atlas (a picture or chest CT: of its frame), and the way back.

    image: (X, Y, Z) float32 in [0, 1], 0 outside the brain; with several channels (X, Y, Z, C).
    brain: (X, Y, Z) bool; of a chest CT the lungs.
    grid: of image and brain.
    home: the grid of the scan (its first sequence) as it came in; `header` is its NIfTI header.
    scan_from_atlas: maps mm of `grid` to mm of `home`, RAS+; 4x4, or a `Warp` where deformable.
    space: the name of the atlas, "picture", or "lungs".
    outline: the atlas brain, for pictures to look at.
    brain_method: what made the brain mask, as `brain.brain_mask` names it.
    checks: what was measured on the way.
    further_from_atlas: as scan_from_atlas, to mm of each sequence but the first.
    """

    image: np.ndarray
    brain: np.ndarray
    grid: Grid
    home: Grid
    scan_from_atlas: Map
    space: str = ""
    outline: np.ndarray | None = None
    header: nib.Nifti1Header | None = None
    brain_method: str = ""
    checks: list[Check] = field(default_factory=list)
    further_from_atlas: tuple[Map, ...] = ()

    @property
    def organ(self) -> str:
        """What `brain` is in words."""
        return "lung" if self.space == lungs.NAME else "brain"

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
    turn: (4x4) from the mm of the scan's own header to those of `native`, which differ where the
        orientation was guessed.
    source: which of the two is interpolated to the atlas.
    """

    path: Path
    native: nib.Nifti1Image
    work: nib.Nifti1Image
    brain: np.ndarray
    method: str
    source: nib.Nifti1Image
    checks: list[Check]
    turn: np.ndarray = field(default_factory=lambda: np.eye(4))

    @property
    def home(self) -> Grid:
        """The grid of the scan as its own header has it."""
        grid = Grid.of(self.native)
        return Grid(grid.shape, self.turn.T @ grid.affine)


class RefusedScan(ScanError):
    """A scan failed its checks.

    It carries all checks, and where there is one a picture (image, brain) for the quality page.
    `brain_method` is what made the brain, "" where it was not yet looked for.
    """

    def __init__(
        self,
        message: str,
        checks: list[Check],
        picture: tuple[np.ndarray, np.ndarray] | None = None,
        brain_method: str = "",
    ) -> None:
        super().__init__(message)
        self.checks = checks
        self.picture = picture
        self.brain_method = brain_method

    def __reduce__(self) -> tuple[Any, ...]:
        """What makes it again in another process."""
        return type(self), (str(self), self.checks, self.picture, self.brain_method)


def prepare(scan: Scan, recipe: Recipe) -> Prepared:
    """The steps of the recipe's modality for one scan; every ScanError names the file."""
    steps = {"picture": prepare_picture, "chest_ct": prepare_chest}
    try:
        return steps.get(recipe.modality, prepare_volume)(scan, recipe)
    except RefusedScan:
        raise
    except ScanError as error:
        if str(error).startswith((*map(str, scan.files), str(scan.brain_mask))):
            raise
        raise ScanError(f"{scan.image}: {error}") from None


def prepare_volume(scan: Scan, recipe: Recipe) -> Prepared:
    """The steps for one scan: check, 1 mm, brain, N4, to the atlas, intensity.

    Other sequences follow as channels. Raises ScanError, as RefusedScan where a check fails.
    """
    files = channel_files(scan, recipe)
    first, prepared = _first_on_atlas(scan, recipe)
    for series, path in zip(recipe.sequences, files[1:], strict=True):
        prepared = add_sequence(prepared, first, series, path, recipe)
    return prepared


def _first_on_atlas(scan: Scan, recipe: Recipe) -> tuple[Stripped, Prepared]:
    """The first sequence stripped, and laid on the atlas.

    Where "auto" took a scan for stripped and a check of its brain fails, deepbet has its turn. If
    that fails too, the first failure is raised.
    """
    try:
        first = strip(scan, recipe)
        return first, lay_on_atlas(first, recipe)
    except RefusedScan as error:
        if recipe.brain != "auto" or error.brain_method != "none":
            raise
        refused = error
    log.info("%s: a check of it as a skull-stripped scan failed; deepbet is tried", scan.id)
    try:
        first = strip(scan, recipe.model_copy(update={"brain": "deepbet"}))
        return first, lay_on_atlas(first, recipe)
    except ScanError as second:
        log.debug("%s: %s", scan.id, second)
        raise refused from None


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
    native, checks = read_volume(scan.image, recipe.modality, recipe)
    checks = [*scan.checks, *checks]
    _demand(checks, scan.image)
    if not has_orientation(native):
        return _guessed(scan, native, recipe, checks)
    return _stripped(scan, native, recipe, checks)


def _stripped(
    scan: Scan,
    native: nib.Nifti1Image,
    recipe: Recipe,
    checks: list[Check],
    turn: np.ndarray | None = None,
) -> Stripped:
    """A scan that was read, at the recipe's spacing and with its brain."""
    work = register.to_spacing(nib.as_closest_canonical(native), recipe.spacing, recipe.pad)
    brain, method = find_brain(scan, native, work, recipe)
    checks = checks + quality.brain_checks(brain, (recipe.spacing,) * 3, recipe.limits.brain_ml)
    _demand(checks, scan.image, (np.asarray(work.dataobj), brain), method)

    if recipe.n4 and recipe.modality != "ct":  # N4 is for MR alone
        work = register.n4(work, brain)
    # Without N4 the image is interpolated once, from its own voxels to the atlas. The copy at the
    # recipe's spacing then serves the brain and the fit alone.
    source = work if recipe.n4 else native
    turn = np.eye(4) if turn is None else turn
    return Stripped(scan.image, native, work, brain, method, source, checks, turn)


def _guessed(scan: Scan, native: nib.Nifti1Image, recipe: Recipe, checks: list[Check]) -> Stripped:
    """A scan without orientation, stripped in the one in which it is most like the atlas.

    A coarse fit of the whole head names the likeliest few; of these the brain decides.
    """
    atlas = register.load_atlas(recipe.template, recipe.grid)
    shown = orientation.without_bone(native, recipe.intensity)
    turns = orientation.likely_turns(shown, Grid.of(native), atlas)[:GUESSES]
    best: Stripped | None = None
    most = -np.inf
    for turn in turns:
        placed = _placed(native, turn @ native.affine)
        guess = quality.guess_check("".join(nib.aff2axcodes(placed.affine)))
        try:
            first = _stripped(scan, placed, recipe, [*checks, guess], turn)
            view = _view(first, recipe)
            _, affine_fit = _fitted(first, view, recipe)
        except ScanError as error:  # no brain is found in a head that lies wrong
            failure = error
            continue
        _, information = _affine_likeness(first, view, affine_fit, atlas)
        if information > most:
            best = first
            most = information
    if best is None:
        raise failure
    return best


def _placed(image: nib.Nifti1Image, affine: np.ndarray) -> nib.Nifti1Image:
    """An image without orientation at another place; its header says no more than before."""
    moved = nib.Nifti1Image(np.asarray(image.dataobj), affine, image.header)
    moved.header["qform_code"] = 0
    moved.header["sform_code"] = 0
    return moved


def find_brain(
    scan: Scan, native: nib.Nifti1Image, work: nib.Nifti1Image, recipe: Recipe
) -> tuple[np.ndarray, str]:
    """The brain on the grid of `work`, bool, and what made it; a mask of the table goes first.

    What is background, and whether the scan is stripped, is asked of it as it came in, `native`.
    """
    if scan.brain_mask:
        given = read_image(scan.brain_mask, recipe.limits.max_gb)
        place = _mask_grid(given, scan.brain_mask, native)
        brain = carry_mask(np.asarray(given.dataobj) > 0, place, Grid.of(work))
        if not brain.any():
            raise ScanError(
                f"{scan.brain_mask}: the brain mask is empty on the grid of {scan.image}."
            )
        return brain, "given"

    method = recipe.brain
    if method == "auto":
        method = "none" if is_stripped(native, recipe.modality) else "deepbet"
        if method == "none":
            log.info("%s: already skull-stripped, taken as it is", scan.id)
    front = _front(native, recipe.spacing) if method == "none" else None
    return brain_mask(work, recipe.modality, method, front)


def _mask_grid(given: nib.Nifti1Image, path: Path, native: nib.Nifti1Image) -> Grid:
    """Where a brain mask lies; beside a scan without orientation it is taken voxel by voxel."""
    if has_orientation(native):
        demand_orientation(given, path)
        return Grid.of(given)
    if given.shape != native.shape:
        raise ScanError(
            f"{path}: shape {given.shape}, and the scan has {native.shape} and no orientation; "
            "expected the same shape; draw the mask on the scan."
        )
    return Grid.of(native)


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
    shown = _view(first, recipe)
    over_others = _over_others(first, shown, recipe)
    rigid_fit, affine_fit = _fitted(first, shown, recipe)
    scan_from_atlas: Map = rigid_fit if recipe.align == "rigid" else affine_fit
    if recipe.align == "deformable":
        scan_from_atlas = deform.fit_deformation(shown, here, first.brain, atlas, affine_fit)
    in_atlas = carry_mask(first.brain, here, atlas.grid, scan_from_atlas)
    image = _onto_brain(first.source, atlas.grid, scan_from_atlas, in_atlas)
    turned = in_atlas
    if recipe.align != "rigid":
        turned = carry_mask(first.brain, here, atlas.grid, rigid_fit)
    affine_dice, information = _affine_likeness(first, shown, affine_fit, atlas)
    checks = [
        *first.checks,
        *quality.registration_checks(
            quality.dice(turned, atlas.brain),
            affine_dice,
            information,
            over_others(affine_fit) if over_others else None,
            recipe.limits,
        ),
    ]
    if isinstance(scan_from_atlas, Warp):
        overlap = quality.dice(in_atlas, atlas.brain)
        checks += quality.deformation_checks(overlap, affine_dice, scan_from_atlas)
    _demand(checks, first.path, (image, in_atlas), first.method)
    return Prepared(
        image=scale_intensity(image, in_atlas, recipe.intensity),
        brain=in_atlas,
        grid=atlas.grid,
        home=first.home,
        scan_from_atlas=first.turn.T @ scan_from_atlas,
        space=atlas.name,
        outline=atlas.brain,
        header=first.native.header,
        brain_method=first.method,
        checks=checks,
    )


def _onto_brain(
    image: nib.Nifti1Image, grid: Grid, image_from_grid: Map, brain: np.ndarray
) -> np.ndarray:
    """An image on a grid, inside the box around the brain.

    The brain may reach half a voxel beyond the outermost slices: there the last value is repeated.
    """
    data = np.asarray(image.dataobj)
    return resample(data, Grid.of(image), grid, image_from_grid, pad=None, within=brain)


def _view(first: Stripped, recipe: Recipe) -> np.ndarray:
    """A stripped scan as it is fitted."""
    return registration_view(np.asarray(first.work.dataobj), first.brain, recipe.intensity)


def _fitted(first: Stripped, shown: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Rigid and affine map (4x4) from the atlas to a stripped scan, which `_view` has `shown`."""
    return register.fit(
        shown,
        Grid.of(first.work),
        register.load_atlas(recipe.template, recipe.grid),
        brain=first.brain,
        spacing=recipe.registration_spacing,
    )


def _over_others(
    first: Stripped, shown: np.ndarray, recipe: Recipe
) -> Callable[[np.ndarray], float] | None:
    """A call that compares where a fit lays a scan with other poses; None where nobody asks.

    Other poses are looked for from now on, where a process has time for that.
    """
    if not recipe.limits.min_pose_ratio:
        return None
    scan = orientation.Coarse.of(shown, first.brain, Grid.of(first.work))
    rivals = orientation.begin_rivals(recipe.template, recipe.grid, scan)
    atlas = orientation.coarse_atlas(register.load_atlas(recipe.template, recipe.grid))
    return lambda pose: orientation.over_other_poses(scan, atlas, pose, rivals())


def _affine_likeness(
    first: Stripped, shown: np.ndarray, affine_fit: np.ndarray, atlas: register.Atlas
) -> tuple[float, float]:
    """Dice and mutual information with the atlas where the affine fit lays a scan.

    Both are measured on every second atlas voxel.
    """
    grid = Grid.of(first.work)
    coarse = atlas.grid.every(2)
    brain_there = carry_mask(first.brain, grid, coarse, affine_fit)
    overlap = quality.dice(brain_there, atlas.brain[HALF])
    both = brain_there & atlas.brain[HALF]
    if not both.any():
        return overlap, 0.0
    image_there = resample(shown, grid, coarse, affine_fit)
    return overlap, quality.mutual_information(image_there[both], atlas.image[HALF][both])


def add_sequence(
    prepared: Prepared, first: Stripped, series: Series, path: Path, recipe: Recipe
) -> Prepared:
    """`prepared` with another sequence of the scan as its last channel."""
    image, between, checks = place_sequence(series, path, first, recipe)
    sequence_from_atlas = between @ first.turn @ prepared.scan_from_atlas
    everywhere = np.ones(image.shape, bool)
    covered = carry_mask(everywhere, Grid.of(image), prepared.grid, sequence_from_atlas)
    checks += quality.coverage_checks(covered, prepared.brain)
    checks = [replace(c, name=f"{series.modality}: {c.name}") for c in checks]

    data = _onto_brain(image, prepared.grid, sequence_from_atlas, prepared.brain)
    checks = [*prepared.checks, *checks]
    _demand(checks, path, (data, prepared.brain))
    channel = scale_intensity(data, prepared.brain, series.intensity)
    if not has_orientation(image):
        sequence_from_atlas = first.turn.T @ sequence_from_atlas
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
    native, checks = read_volume(path, series.modality, recipe)
    if not has_orientation(native):
        native = _beside(native, path, first)
    if any(c.hard and not c.passed for c in checks):
        return native, np.eye(4), checks

    work = register.to_spacing(nib.as_closest_canonical(native), recipe.spacing, series.pad)
    pair = (
        orientation.whole_head(first.work, recipe.intensity),
        Grid.of(first.work),
        first.brain,
        orientation.whole_head(work, series.intensity),
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
        corrected = register.n4(work, inside)
        if not has_orientation(native):
            corrected = _placed(corrected, corrected.affine)
        return corrected, sequence_from_scan, checks
    return native, sequence_from_scan, checks


def _beside(native: nib.Nifti1Image, path: Path, first: Stripped) -> nib.Nifti1Image:
    """Another sequence without orientation, voxel by voxel on the first one, which has none too."""
    sizes = (native.header.get_zooms()[:3], first.native.header.get_zooms()[:3])
    if has_orientation(first.native) or native.shape != first.native.shape:
        demand_orientation(native, path)
    if not np.allclose(*sizes, rtol=1e-3):
        demand_orientation(native, path)
    return _placed(native, first.native.affine)


def prepare_chest(scan: Scan, recipe: Recipe) -> Prepared:
    """The steps for one chest CT: check, coarse voxels, lungs, the middle of the frame, intensity.

    There is no atlas: nothing is turned or scaled. A brain mask of the table is the lungs here.
    """
    native, checks = read_volume(scan.image, recipe.modality, recipe)
    checks = [*scan.checks, *checks]
    _demand(checks, scan.image)
    hu, coarse = lungs.to_coarse(native, recipe.spacing, recipe.pad)
    found, windpipe = lungs.lung_mask(hu, recipe.spacing)
    method = lungs.NAME
    if scan.brain_mask:
        given = read_image(scan.brain_mask, recipe.limits.max_gb)
        demand_orientation(given, scan.brain_mask)
        found = carry_mask(np.asarray(given.dataobj) > 0, Grid.of(given), coarse)
        method = "given"
    no_chest = "no chest CT, or one without whole lungs; a head is MODALITY=ct"
    checks += quality.brain_checks(
        found, coarse.spacing, recipe.limits.brain_ml, organ="lung", advice=no_chest
    )
    _demand(checks, scan.image, (hu, found), method)

    image, framed, grid, scan_from_frame = lungs.into_frame(
        hu, found, coarse, recipe.grid, recipe.pad
    )
    windpipe_ml = float(windpipe.sum()) * recipe.spacing**3 / 1000
    lost = 1 - float(framed.sum()) / float(found.sum())
    checks += quality.lung_checks(hu, found, windpipe_ml, lost)
    _demand(checks, scan.image, (hu, found), method)
    return Prepared(
        image=scale_intensity(image, framed, recipe.intensity),
        brain=framed,
        grid=grid,
        home=Grid.of(native),
        scan_from_atlas=scan_from_frame,
        space=lungs.NAME,
        header=native.header,
        brain_method=method,
        checks=checks,
    )


def prepare_picture(scan: Scan, recipe: Recipe) -> Prepared:
    """The steps for one 2-D picture: read, foreground, the middle of the frame, intensity.

    There is no atlas.
    """
    native, planes = _picture_and_planes(scan.image, recipe.channels, recipe.limits.max_gb)
    data = np.asarray(native.dataobj)
    if data.shape[2] != 1:
        raise ScanError(
            f"{scan.image}: expected a picture, got a volume of shape {data.shape}; "
            "give MODALITY=ct, t1, t2, flair or chest_ct."
        )
    brain, method = _picture_brain(scan, data, recipe)
    checks = quality.picture_checks(data, brain)
    _demand(checks, scan.image, (data, brain))

    side = (recipe.grid[0] or data.shape[0], recipe.grid[1] or data.shape[1])
    image, framed, picture_from_frame = register.fit_picture(planes, brain, side)
    if image.ndim == 3:
        scaled = scale_intensity(image, framed, recipe.intensity)
    else:
        planes_of = np.moveaxis(image, -1, 0)
        scaled = np.stack([scale_intensity(p, framed, recipe.intensity) for p in planes_of], -1)
    return Prepared(
        image=scaled,
        brain=framed,
        grid=Grid((*side, 1), np.eye(4)),
        home=Grid.of(native),
        scan_from_atlas=picture_from_frame,
        space="picture",
        header=native.header,
        brain_method=method,
        checks=checks,
    )


def _picture_and_planes(
    path: Path, channels: int, max_gb: float
) -> tuple[nib.Nifti1Image, np.ndarray]:
    """A picture as a grey scan (X, Y, 1), and what its channels are made of.

    That is the same array, or its colour planes (X, Y, 1, C).
    """
    if channels == 1:
        native = read_image(path, max_gb)
        return native, np.asarray(native.dataobj)
    if not is_picture(path):
        raise ScanError(
            f"{path}: channels={channels} is for pictures, this is none; give PNG, JPG or TIF."
        )
    planes = np.asarray(read_picture(path, channels, max_gb).dataobj)
    return nib.Nifti1Image(planes.mean(-1), np.eye(4)), planes


def _picture_brain(scan: Scan, data: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, str]:
    """The part of a picture (X, Y, 1) that counts, bool, and what made it."""
    if scan.brain_mask:
        given = np.asarray(read_image(scan.brain_mask, recipe.limits.max_gb).dataobj) > 0
        if given.shape != data.shape:
            raise ScanError(
                f"{scan.brain_mask}: shape {given.shape[:2]} differs from the picture's, "
                f"{data.shape[:2]}."
            )
        return given, "given"
    if recipe.brain == "none":
        return np.ones(data.shape, bool), "none"
    return picture_foreground(data), "foreground"


def read_volume(
    path: Path, modality: str, recipe: Recipe | None = None
) -> tuple[nib.Nifti1Image, list[Check]]:
    """A scan as it came in, and the checks of its voxels.

    A background of NaN is filled, and MR of evenly spaced values becomes whole numbers.

    A scan without orientation is refused where the `recipe` guesses none.
    """
    native = read_image(path, recipe.limits.max_gb if recipe else MAX_GB)
    if recipe is None or recipe.orientation == "refuse":
        demand_orientation(native, path)
    own = np.asarray(native.dataobj)
    # CT keeps its HU, on which its windows rest
    in_hu = modality in ("ct", "chest_ct")
    data, share = fill_background(own if in_hu else intensity.grey_levels(own))
    if data is not own:
        native = nib.Nifti1Image(data, native.affine, native.header)
    grid = Grid.of(native)
    extent = [float(n * s) for n, s in zip(grid.shape, grid.spacing, strict=True)]
    checks = [*quality.form_checks(*forms_apart(native)), *quality.nan_checks(share)]
    return native, [*checks, *quality.image_checks(data, modality, extent)]


def _demand(
    checks: Sequence[Check],
    path: Path,
    picture: tuple[np.ndarray, np.ndarray] | None = None,
    brain_method: str = "",
) -> None:
    """Raise RefusedScan where a hard check failed, naming the file."""
    try:
        quality.demand(checks)
    except ScanError as error:
        text = f"{path}: {error}"
        raise RefusedScan(text, list(checks), picture, brain_method) from None


def registration_view(data: np.ndarray, brain: np.ndarray, how: Intensity) -> np.ndarray:
    """The brain alone, in a range that registration can use; MR in few grey levels.

    ANTs answers a rounding of 1e-7 by a pose that is tenths of a millimetre off. Between 64 levels
    a rounding hardly ever makes a difference.
    """
    if how.kind == "window":
        return intensity.window(data, brain, how.low, how.high)
    shown = intensity.percentiles(data.astype(np.float64), brain, 0.5, 99.5)
    return np.round(shown * (VIEW_LEVELS - 1)) / np.float32(VIEW_LEVELS - 1)


def scale_intensity(image: np.ndarray, brain: np.ndarray, how: Intensity) -> np.ndarray:
    """An image to [0, 1] as the recipe says, 0 outside the brain; float32."""
    if how.kind == "window":
        if how.tissue is not None:
            image = intensity.match_tissue(image, brain, how.tissue)
        return intensity.window(image, brain, how.low, how.high)
    if how.kind == "nyul":
        return intensity.nyul(image, brain)
    if how.peak is not None:
        return intensity.white(image, brain, how.low, how.top, how.peak)
    return intensity.percentiles(image, brain, how.low, how.high, how.top)
