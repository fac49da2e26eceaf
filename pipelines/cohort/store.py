"""One preprocessed scan on disk: its files, its slices, and the sidecar that says how."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from preprocessing import register, slices
from preprocessing.files import digest_of, file_digest, read_json, write_atomic, write_json
from preprocessing.images import save_nifti
from preprocessing.prepare import Prepared, channel_files, prepare
from preprocessing.recipe import Recipe
from preprocessing.scans import InputError, Scan, scan_row
from preprocessing.volumes import partner_of
from preprocessing.warp import Warp, linear, write_field

log = logging.getLogger("norma")

STEPS_VERSION = 6  # raise when the steps change, so that nothing old is taken for done

Failure = dict[str, Any]
"""Why a scan was left out: `reason`, and `checks` as rows."""


def sidecar_of(scan: Scan, out: Path) -> Path:
    """The JSON beside a preprocessed scan: how it was made, and where its files are."""
    return out / scan.subject / f"{scan.id}_preproc.json"


def file_stem(scan_id: str, space: str) -> str:
    """What the names of a preprocessed scan's images begin with."""
    return f"{scan_id}_space-{space}"


def input_files(scan: Scan, recipe: Recipe) -> list[Path]:
    """Every file that a preprocessed scan is made of."""
    files = channel_files(scan, recipe)
    if scan.brain_mask:
        files.append(scan.brain_mask)
    partners = [partner_of(path) for path in files]
    files += [path for path in partners if path and path.is_file()]
    if recipe.template:
        files.append(Path(recipe.template))
    return files


def fingerprint(scan: Scan, recipe: Recipe) -> str:
    """Digest of recipe, version of the steps, and all that a scan is made of: same, same result."""
    return _fingerprint(scan, recipe, [file_digest(path) for path in input_files(scan, recipe)])


def _fingerprint(scan: Scan, recipe: Recipe, digests: Sequence[str]) -> str:
    """`fingerprint` with the digests of the scan's files."""
    return recipe_digest(recipe, [*digests, *scan.made_of])


def recipe_digest(recipe: Recipe, digests: Sequence[Any] = ()) -> str:
    """Digest of the version of the steps, the recipe, and the `digests` of its inputs."""
    return digest_of(STEPS_VERSION, recipe, list(digests))


def preprocess_scan(scan: Scan, recipe: Recipe, out: Path, formats: Sequence[str] = ()) -> None:
    """Preprocess one scan into `out`, its sidecar last; skip it where nothing has changed since.

    Nothing has changed where recipe, steps and files are the same: files by path, size and time, or
    else by their bytes.
    """
    sidecar = sidecar_of(scan, out)
    files = input_files(scan, recipe)
    state = {"settings": recipe_digest(recipe), "stamps": _stamps(files)}
    done = read_sidecar(sidecar)
    complete = bool(done) and is_complete(done, out, formats)
    if complete and {key: done.get(key) for key in state} == state:
        row = cohort_row(scan, out)
        if done.get("scan") != row:  # the table says something new of the scan
            write_json(sidecar, done | {"scan": row})
        return

    digests = [file_digest(path) for path in files]
    digest = _fingerprint(scan, recipe, digests)
    if complete and done["fingerprint"] == digest:
        changed = {"scan": cohort_row(scan, out), "digest": digests[0]}
        write_json(sidecar, done | state | changed)
        return

    prepared = prepare(scan, recipe)
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    sidecar.unlink(missing_ok=True)  # it must not describe files that are about to change
    written = write_prepared(scan, recipe, prepared, out)
    z = slices.select(prepared.brain, recipe.min_brain_pixels)
    slices.write_arrays(out / "slices", scan.id, prepared.image, prepared.brain, z)
    if "nifti" in formats:
        folder = out / "slices" / "nifti" / scan.id
        slices.export_nifti(folder, scan.id, prepared.image, prepared.grid.affine, z)
    arrays = [out / "slices" / f"{scan.id}_{name}.npy" for name in ("image", "mask")]
    written["files"] += [str(path.relative_to(out)) for path in arrays]
    written["sizes"] = [(out / name).stat().st_size for name in written["files"]]
    described = _described(prepared, z)
    first: dict[str, Any] = {"fingerprint": digest, **state, "digest": digests[0]}
    first |= {"formats": list(formats), "scan": cohort_row(scan, out)}
    if scan.origin:
        first["dicom"] = scan.origin
    write_json(sidecar, first | written | described)


def read_sidecar(path: Path) -> dict[str, Any]:
    """A sidecar; empty where there is none, or one that is damaged and has to be made again."""
    try:
        found = read_json(path) if path.is_file() else {}
    except InputError as error:
        log.warning("%s It is made again.", error)
        return {}
    needed = ("fingerprint", "image", "mask", "z", "brain_px", "checks", "flags")
    if not isinstance(found, dict) or not all(key in found for key in needed):
        return {}
    return found


def cohort_row(scan: Scan, out: Path) -> dict[str, str]:
    """What a table said of a scan, as text; files by their way from `out`."""
    row = {**scan.extra, **scan_row(replace(scan, extra={}))}
    cells: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, Path):
            value = os.path.relpath(value, out.resolve())
        cells[name] = "" if value is None else str(value)
    return cells


def _stamps(files: Sequence[Path]) -> list[list[Any]]:
    """Path, size and time of each file."""
    stats = [(path, path.stat()) for path in files]
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def is_complete(done: dict[str, Any], out: Path, formats: Sequence[str]) -> bool:
    """Whether everything that a sidecar names is there, whole, in all formats asked for."""
    if not set(formats) <= set(done.get("formats", ())):
        return False
    files = [out / name for name in done.get("files", ())]
    sizes = done.get("sizes", ())
    if len(sizes) != len(files):  # of a version that did not write them
        return False
    pairs = zip(files, sizes, strict=True)
    return all(path.is_file() and path.stat().st_size == size for path, size in pairs)


def write_prepared(scan: Scan, recipe: Recipe, prepared: Prepared, out: Path) -> dict[str, Any]:
    """Write images, brain, transforms and pictures of a scan; where they are, for the sidecar."""
    folder = out / scan.subject
    base = file_stem(scan.id, prepared.space)
    image = folder / f"{base}_desc-preproc_{recipe.suffixes[0]}.nii.gz"
    brain = folder / f"{base}_desc-brain_mask.nii.gz"
    transform = folder / f"{scan.id}_from-orig_to-{prepared.space}_mode-image_xfm.mat"
    picture = out / "quality" / f"{scan.id}.png"
    affine = prepared.grid.affine
    save_nifti(nib.Nifti1Image(prepared.channels[0], affine), image)
    save_nifti(nib.Nifti1Image(prepared.brain.astype(np.uint8), affine), brain)
    register.write_matrix(transform, linear(prepared.scan_from_atlas))

    files = [image, brain, transform, picture]
    warp = transform.with_suffix(".nii.gz")  # before the matrix, as ANTs takes the two
    if isinstance(prepared.scan_from_atlas, Warp):
        write_field(warp, prepared.scan_from_atlas.fields[0])
        files.append(warp)
    further: list[dict[str, Any]] = []
    for i, suffix in enumerate(recipe.suffixes[1:], start=1):
        entry, paths = _write_further(scan, i, suffix, prepared, out)
        further.append(entry)
        files += paths

    title = f"{scan.id} {recipe.suffixes[0]}" if further else scan.id
    write_outline(picture, prepared.channels[0], prepared.brain, title, prepared.outline)
    written: dict[str, Any] = {
        "files": [str(path.relative_to(out)) for path in files],
        "image": str(image.relative_to(out)),
        "mask": str(brain.relative_to(out)),
    }
    if warp in files:
        written["warp"] = str(warp.relative_to(out))
    if further:
        written["further"] = further
    return written


def _write_further(
    scan: Scan, channel: int, suffix: str, prepared: Prepared, out: Path
) -> tuple[dict[str, Any], list[Path]]:
    """Write a further channel: its entry in the sidecar, and its files."""
    folder = out / scan.subject
    data = prepared.channels[channel]
    image = folder / f"{file_stem(scan.id, prepared.space)}_desc-preproc_{suffix}.nii.gz"
    picture = out / "quality" / f"{scan.id}_{suffix}.png"
    save_nifti(nib.Nifti1Image(data, prepared.grid.affine), image)
    write_outline(picture, data, prepared.brain, f"{scan.id} {suffix}", prepared.outline)
    entry: dict[str, Any] = {"suffix": suffix, "image": str(image.relative_to(out))}
    files = [image, picture]
    if prepared.further_from_atlas:
        matrix = linear(prepared.further_from_atlas[channel - 1])
        transform = folder / f"{scan.id}_from-{suffix}_to-{prepared.space}_mode-image_xfm.mat"
        register.write_matrix(transform, matrix)
        entry["world"] = matrix
        files.append(transform)
    return entry, files


def _described(prepared: Prepared, z: np.ndarray) -> dict[str, Any]:
    """What the sidecar says of a scan: matrices, slices, checks."""
    return {
        "world": linear(prepared.scan_from_atlas),
        "native_shape": prepared.home.shape,
        "native_affine": prepared.home.affine,
        "brain_method": prepared.brain_method,
        "space": prepared.space,
        "z": z,
        "brain_px": prepared.brain.sum((0, 1))[z],
        "checks": [check.row() for check in prepared.checks],
        "flags": prepared.flags,
    }


def write_outline(
    path: Path,
    image: np.ndarray,
    brain: np.ndarray,
    title: str,
    atlas_brain: np.ndarray | None = None,
) -> None:
    """A picture of a scan with the outline of its brain, and that of the atlas."""
    from evaluation.figures.plots import outline_figure  # slow to load

    path.parent.mkdir(parents=True, exist_ok=True)
    png = outline_figure(
        image, brain, spacing=(1.0, 1.0, 1.0), title=title, window=(0.0, 1.0), atlas=atlas_brain
    )
    write_atomic(path, png)
