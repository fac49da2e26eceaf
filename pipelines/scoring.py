"""From a prepared scan to its anomaly map on its own grid, its scan score and its mask: shared by train, infer and evaluate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation import postprocess
from evaluation.checks import bounding_box
from preprocessing import register
from preprocessing.register import Atlas

if TYPE_CHECKING:
    import torch

    from models.base import AnomalyModel
    from pipelines.config import Postprocess, Recipe, RunConfig

SLICES_AT_ONCE = 16


@dataclass(frozen=True)
class NativeMap:
    """A map on the scan's own grid (X, Y, Z): float32 >= 0, zero outside `brain` (bool) and in its rim."""

    map: np.ndarray
    brain: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def atlas_map(model: AnomalyModel, config: RunConfig, image: np.ndarray, brain: np.ndarray, device: torch.device) -> np.ndarray:
    """Anomaly map of a scan in atlas space (X, Y, Z), slice by slice, filtered, without the rim of the brain."""
    return filtered(_slicewise(model.anomaly_map, config, image, brain, device), brain, config.postprocess)


def reconstruction(model: AnomalyModel, config: RunConfig, image: np.ndarray, brain: np.ndarray, device: torch.device) -> np.ndarray | None:
    """Pseudo-healthy volume (X, Y, Z), 0 outside the brain; None for a model that reconstructs nothing."""
    try:
        return _slicewise(lambda x, mask: model.reconstruct(x) * mask, config, image, brain, device) * brain
    except NotImplementedError:
        return None


def _slicewise(
    network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    config: RunConfig,
    image: np.ndarray,
    brain: np.ndarray,
    device: torch.device,
) -> np.ndarray:
    """Apply a network to every slice with brain at the network's resolution, and come back to the volume's (X, Y, Z)."""
    import torch
    from torch.nn import functional as F

    from pipelines.data import resize_volume

    rows = np.flatnonzero(brain.any((0, 1)))
    small, mask = resize_volume(image[:, :, rows], brain[:, :, rows], config.image_size)
    result = np.zeros(image.shape, np.float32)
    with torch.inference_mode():
        for i in range(0, len(rows), SLICES_AT_ONCE):
            part = slice(i, i + SLICES_AT_ONCE)
            raw = network(small[part].to(device), mask[part].to(device)).float()
            full = F.interpolate(raw, image.shape[:2], mode="bilinear", align_corners=False)[:, 0]
            result[:, :, rows[part]] = full.permute(1, 2, 0).cpu().numpy()
    return result


def filtered(raw: np.ndarray, brain: np.ndarray, settings: Postprocess) -> np.ndarray:
    """Median filter, then zero outside the brain and in its rim; atlas voxels of 1 mm."""
    box = bounding_box(brain, margin=settings.median)
    result = np.zeros_like(raw)
    if box is not None:
        smooth = postprocess.smooth(raw[box], settings.median)
        result[box] = smooth * postprocess.erode_rim(brain[box], (1.0, 1.0, 1.0), settings.rim_mm)
    return result


def to_native(
    values: np.ndarray, brain: np.ndarray, atlas: Atlas, world: np.ndarray, shape: tuple[int, ...], affine: np.ndarray
) -> NativeMap:
    """Carry an atlas-space map (linear) and brain mask (nearest neighbour) to the scan's own grid."""
    back = np.linalg.inv(world)
    native_brain = register.carry_mask(brain, atlas.affine, shape, affine, back)
    native = register.resample(values, atlas.affine, shape, affine, back)
    return NativeMap(np.where(native_brain, np.maximum(native, 0), 0).astype(np.float32), native_brain, affine)


def scan_score(native: NativeMap, fraction: float) -> float:
    """Mean of the highest `fraction` of the map's values inside the brain; 0 where there is no brain."""
    return top_mean(native.map[native.brain], fraction)


def slice_scores(native: NativeMap, fraction: float) -> dict[int, float]:
    """The scan score's rule for each axial slice of the scan's own grid that shows brain, by slice index."""
    axis = axial_axis(native.affine)
    maps, brains = (np.moveaxis(v, axis, 0) for v in (native.map, native.brain))
    return {i: top_mean(m[b], fraction) for i, (m, b) in enumerate(zip(maps, brains, strict=True)) if b.any()}


def top_mean(values: np.ndarray, fraction: float) -> float:
    """Mean of the highest `fraction` of the values, at least one of them; 0 for none."""
    if values.size == 0:
        return 0.0
    count = max(1, round(fraction * values.size))
    return float(np.partition(values, values.size - count)[-count:].mean(dtype=np.float64))


def axial_axis(affine: np.ndarray) -> int:
    """The array axis that runs closest to head-foot."""
    import nibabel as nib

    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])


def cut(native: NativeMap, threshold: float, settings: Postprocess) -> np.ndarray:
    """Mask (bool) of a native map: threshold, closing, components under the smallest volume removed."""
    return postprocess.binarise(native.map, native.brain, native.spacing, threshold, settings.closing_mm, settings.min_volume_mm3)


def load_array(path: Path) -> np.ndarray:
    """Voxels of a NIfTI that Norma wrote."""
    import nibabel as nib

    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj)


def cohort_maps(model: AnomalyModel, config: RunConfig, recipe: Recipe, data: Path, row: dict[str, str], device: torch.device) -> NativeMap:
    """Native map of a scan that `make preprocess` prepared (a row of its scans.tsv); no raw scan is read."""
    from pipelines.runs import read_json

    side = read_json(data / row["sidecar"])
    image, brain = (load_array(data / row[k]) for k in ("preproc", "brain"))
    atlas = register.load_atlas(recipe.template, recipe.grid)
    values = atlas_map(model, config, image.astype(np.float32), brain > 0, device)
    return to_native(values, brain > 0, atlas, np.array(side["world"]), tuple(side["native_shape"]), np.array(side["native_affine"]))


def calibrate(
    model: AnomalyModel, config: RunConfig, recipe: Recipe, data: Path, rows: list[dict[str, str]], device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """threshold.json and reference.json from healthy validation scans (rows of scans.tsv)."""
    from tqdm import tqdm

    from evaluation.metrics import VoxelHistogram
    from evaluation.thresholds import healthy_quantile

    pooled, scans = VoxelHistogram(), []
    settings = config.calibration
    for row in tqdm(rows, desc="healthy reference", unit="scan"):
        native = cohort_maps(model, config, recipe, data, row, device)
        values = native.map[native.brain]
        pooled.update(values, np.zeros(values.size, np.uint8))
        scans.append({"id": row["id"], "score": scan_score(native, settings.score_fraction)})
    value = healthy_quantile(pooled, settings.quantile)
    threshold = {
        "value": float(value),
        "rule": "quantile of the map inside the brain of healthy validation scans",
        "quantile": settings.quantile,
        "n_scans": len(scans),
    }
    quantiles = {str(q): float(healthy_quantile(pooled, q)) for q in (0.5, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)}
    reference = {
        "score": f"mean of the highest {settings.score_fraction:.1%} of the map inside the brain",
        "scans": sorted(scans, key=lambda s: s["score"]),
        "voxel_quantiles": quantiles,
    }
    return threshold, reference
