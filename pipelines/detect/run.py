"""The run folder: everything that inference needs, written by training, read by infer and evaluate."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.metrics import VoxelHistogram
from models.base import AnomalyModel
from pipelines.config import read_config
from pipelines.detect.build import build_detector, build_model, pick_device
from pipelines.detect.config import RunConfig
from preprocessing.files import file_digest, read_json, write_atomic
from preprocessing.recipe import Recipe
from preprocessing.scans import InputError


@dataclass(frozen=True)
class Run:
    """A trained run: model in eval mode, its config, the recipe of its scans, operating points and healthy scan scores."""

    folder: Path
    model: AnomalyModel
    config: RunConfig
    recipe: Recipe
    points: dict[str, dict[str, Any]]
    reference: dict[str, Any]
    device: torch.device

    @property
    def threshold(self) -> float:
        """The voxel threshold of the run's own operating point."""
        return float(self.points[self.config.calibration.point]["voxel"])

    @property
    def healthy_scores(self) -> np.ndarray:
        return np.array([case["score"] for case in self.reference["scans"]], float)

    @property
    def healthy_voxels(self) -> VoxelHistogram:
        """Map values inside the brain of the healthy validation scans."""
        path = self.folder / "healthy_voxels.npz"
        if not path.is_file():
            raise InputError(f"{path}: no such file; train the run again with 'make train'.")

        with np.load(path) as stored:
            return VoxelHistogram.from_rows(stored["rows"])

    @property
    def weights_digest(self) -> str:
        """What the network is, as a digest of its weights file."""
        return file_digest(self.folder / "weights.pt")


def load_run(folder: str | Path, accelerator: str = "auto") -> Run:
    """Read a run folder; InputError names what is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; train one with 'make train'.")
    for name in ("config.yaml", "recipe.yaml", "weights.pt", "threshold.json", "reference.json"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: no {name}, so this is no finished run; finish it with 'make train'."
            )
    config = read_config(RunConfig, folder / "config.yaml")
    recipe = read_config(Recipe, folder / "recipe.yaml")
    device = pick_device(accelerator)
    model = build_detector(config, build_model(config, recipe))
    try:
        model.load_state_dict(
            torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise InputError(
            f"{folder / 'weights.pt'}: not the weights of this config ({str(error).splitlines()[0]})."
        ) from None
    model.eval().to(device)
    points = _with_key(folder / "threshold.json", "points")["points"]
    return Run(
        folder, model, config, recipe, points, _with_key(folder / "reference.json", "scans"), device
    )


def _with_key(path: Path, key: str) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or key not in content:
        raise InputError(
            f"{path}: no '{key}' in it, so this is no finished run; train it again with 'make train'."
        )
    return content


def write_weights(model: object, run: Path) -> None:
    """The last file of a run: where it stands, the run is finished."""
    buffer = io.BytesIO()
    torch.save({k: v.cpu() for k, v in model.state_dict().items()}, buffer)  # type: ignore[attr-defined]
    write_atomic(run / "weights.pt", buffer.getvalue())


def write_voxels(healthy: VoxelHistogram, run: Path) -> None:
    """Keep the healthy voxels, so that any other healthy operating point can be taken later."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, rows=np.array(healthy.to_rows()))
    write_atomic(run / "healthy_voxels.npz", buffer.getvalue())
