"""The slices without lesion of a scan with a lesion, as a healthy case of their own.

Healthy FLAIR is scarce, so the field trains on them (Kascenas et al. 2022). They are not slices of
healthy people: a tumour shifts tissue far from it, and scanner and age are those of the test.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pipelines.cohort.cases import PART
from pipelines.cohort.store import cohort_row, read_sidecar, sidecar_of
from preprocessing import slices
from preprocessing.files import digest_of, file_digest, write_json
from preprocessing.images import Grid, load_array, read_image, save_nifti
from preprocessing.resample import carry_mask
from preprocessing.scans import LESION_FREE, Scan, ScanError

log = logging.getLogger("norma")


def part_id(scan: Scan) -> str:
    """The id of the case that holds a scan's slices without lesion."""
    return scan.id + PART


def part_sidecar(scan: Scan, out: Path) -> Path:
    """The sidecar of that case."""
    return out / scan.subject / f"{part_id(scan)}_preproc.json"


def free_slices(lesions: np.ndarray, brain: np.ndarray, margin_mm: float) -> np.ndarray:
    """Which axial slices (Z,) of the atlas grid show brain, and no lesion within a margin.

    `lesions` and `brain` are bool (X, Y, Z); slices are 1 mm apart.
    """
    ill = np.flatnonzero(lesions.any((0, 1)))
    z = np.arange(brain.shape[2])
    away = np.full(z.shape, np.inf)
    if ill.size:
        away = np.abs(z[:, None] - ill).min(1)
    return brain.any((0, 1)) & (away > margin_mm)


def write_part(scan: Scan, out: Path, min_pixels: int) -> None:
    """Write the slices without lesion of a preprocessed scan; its sidecar last.

    They share the scan's image; their brain mask is empty elsewhere. It is skipped where nothing
    has changed. ScanError for a mask on another grid, or where every slice is near a lesion.
    """
    assert scan.mask
    whole = read_sidecar(sidecar_of(scan, out))
    path = part_sidecar(scan, out)
    margin = scan.margin_mm
    fingerprint = digest_of("lesion-free", whole["fingerprint"], file_digest(scan.mask), margin)
    row = cohort_row(scan, out) | {
        "id": part_id(scan),
        "label": "healthy",
        "pathology": "",
        "mask": "",
        "healthy_slices": LESION_FREE,
    }
    done = read_sidecar(path)
    if done.get("fingerprint") == fingerprint and done.get("scan") == row:
        return

    brain_image = read_image(out / whole["mask"])
    brain = np.asarray(brain_image.dataobj) > 0
    lesions = _lesions_in_atlas(scan, whole, Grid.of(brain_image))
    kept = free_slices(lesions, brain, margin)
    brain &= kept
    z = slices.select(brain, min_pixels)
    if z.size == 0:
        raise ScanError(
            f"{scan.mask}: no slice lies more than {margin:g} mm from a lesion; take "
            "'healthy_slices' out of this row, or give a smaller 'margin_mm'."
        )
    channels = [load_array(out / f) for f in _channel_files(whole)]
    slices.write_arrays(out / "slices", row["id"], np.stack(channels, -1), brain, z)
    stem = Path(whole["mask"]).name.replace(scan.id, row["id"], 1)
    target = out / scan.subject / stem
    save_nifti(nib.Nifti1Image(brain.astype(np.uint8), brain_image.affine), target)
    files = [target, *(out / "slices" / f"{row['id']}_{n}.npy" for n in ("image", "mask"))]
    names = [str(file.relative_to(out)) for file in files]
    described: dict[str, Any] = {
        "fingerprint": fingerprint,
        "scan": row,
        "mask": names[0],
        "files": names,
        "sizes": [file.stat().st_size for file in files],
        "z": z,
        "brain_px": brain.sum((0, 1))[z],
        "margin_mm": margin,
    }
    write_json(path, whole | described)


def _channel_files(whole: dict[str, Any]) -> list[str]:
    return [whole["image"], *(entry["image"] for entry in whole.get("further", []))]


def _lesions_in_atlas(scan: Scan, whole: dict[str, Any], grid: Grid) -> np.ndarray:
    """The lesions (bool) on the grid of the atlas; ScanError where they are not on the scan's."""
    assert scan.mask
    image = read_image(scan.mask)
    home = Grid(tuple(whole["native_shape"]), np.array(whole["native_affine"]))
    same = image.shape == home.shape and np.allclose(image.affine, home.affine, atol=0.1)
    if not same:
        raise ScanError(f"{scan.mask}: not on the grid of {scan.image}; give a mask that is.")
    lesions = np.nan_to_num(np.asarray(image.dataobj)) > 0
    return carry_mask(lesions, home, grid, np.array(whole["world"], float))
