"""A run as a MONAI bundle: its network, its own scoring code, settings, model card and licences."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import monai
import nibabel as nib
import numpy as np
import torch

from pipelines.cohort.cases import Case, load
from pipelines.cohort.public import dataset_of
from pipelines.config import ROOT
from pipelines.detect.detector import NativeMap, cut
from pipelines.detect.points import Point
from pipelines.detect.run import Run
from pipelines.export import bundle_scoring
from pipelines.export.traced import write_onnx, write_torchscript
from pipelines.pages.card import card_text
from pipelines.versions import __version__
from preprocessing.files import write_atomic, write_json
from preprocessing.images import Grid
from preprocessing.recipe import Recipe
from preprocessing.register import load_atlas
from preprocessing.scans import NOTICE, InputError
from preprocessing.slices import PLANES

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
OWN_SCHEMA = Path(__file__).parent / "metadata_schema.json"
USAGE = Path(__file__).parent / "bundle_readme.md"
MAP_TOLERANCE = 1e-4  # of the voxel threshold: what a map may differ by


def write_bundle(run: Run, folder: Path) -> str:
    """Write the bundle of a run to a new folder; gives why it holds no ONNX, or nothing.

    InputError for a run that cannot be exported; the folder is then of no use.
    """
    point = exported_point(run)
    for name in ("configs", "models", "docs", "scripts"):
        (folder / name).mkdir(parents=True)
    write_torchscript(run, folder / "models/model.ts")
    without_onnx = write_onnx(run, folder / "models/model.onnx")
    network = bundle_scoring.Network(str(folder / "models/model.ts"))
    torch.save(network.state_dict(), folder / "models/model.pt")

    write_json(folder / "configs/metadata.json", metadata(run))
    write_json(folder / "configs/inference.json", inference(run, point))
    shutil.copyfile(OWN_SCHEMA, folder / "configs/metadata_schema.json")
    (folder / "scripts/__init__.py").touch()
    shutil.copyfile(bundle_scoring.__file__, folder / "scripts/scoring.py")
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    _write_docs(run, point, without_onnx, folder / "docs")
    return without_onnx


def exported_point(run: Run) -> Point:
    """The run's own operating point; InputError for a run that a bundle does not hold."""
    point = run.point()
    reasons = {
        "it is of pictures, and a bundle holds scans in the space of an atlas": (
            run.recipe.modality == "picture"
        ),
        "it is of chests, and a bundle holds scans in the space of the brain's atlas": (
            run.recipe.modality == "chest_ct"
        ),
        "its network sees patches, which the bundle's scoring does not know": (
            run.config.patch_size is not None
        ),
        "it ranks components by cluster enhancement, which the bundle's scoring does not know; "
        "train with calibration.strength=peak or mass": (
            point.component is not None and point.strength == "cluster"
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(f"{run.folder}: cannot be exported: {reason}.")
    return point


def metadata(run: Run) -> dict[str, Any]:
    """metadata.json: what the bundle is, its versions, and what goes in and comes out."""
    known = dataset_of(str(run.history.get("data", "")))
    task = f"Voxelwise anomaly map and mask of {run.recipe.name} brain scans"
    return {
        "schema": SCHEMA,
        "version": __version__,
        "changelog": {__version__: f"exported from the run {run.folder.name} by Norma"},
        "monai_version": _plain(monai.__version__),
        "pytorch_version": _plain(torch.__version__),
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": nib.__version__},
        "task": task,
        "description": f"Unsupervised anomaly detection by '{run.config.name}': it learned from "
        "healthy scans alone and says, voxel by voxel, how far a scan departs from them.",
        "authors": "Norma contributors",
        "copyright": "Copyright Norma contributors, Apache-2.0; data: see docs/data_license.txt",
        "intended_use": NOTICE,
        "data_source": known.address if known else "see docs/README.md",
        "data_type": "nibabel",
        "image_classes": f"{run.recipe.name} in [0, 1], brain only, on the grid of the atlas",
        "pred_classes": "anomaly map: 0 and above, larger is more anomalous",
        "references": [known.citation] if known else [],
        "network_data_format": _data_format(run),
    }


def _data_format(run: Run) -> dict[str, Any]:
    """What the network gets and gives: one slice, or one volume."""
    size = list(run.config.image_size)
    names: dict[str, str] = {}
    for offset in (0, *run.config.around):
        for name in run.recipe.suffixes:
            names[str(len(names))] = f"{name}, slice {offset:+d}" if offset else name
    place = _tensor("series", "indices", [], {"0": "index of the slice in the atlas"})
    return {
        "inputs": {
            "image": _tensor("image", "magnitude", size, names, [0, 1])
            | {"modality": "CT" if run.recipe.modality == "ct" else "MR"},
            "brain": _tensor("image", "segmentation", size, {"0": "brain"}, [0, 1]),
            "place": place | {"dtype": "int64"},
        },
        "outputs": {"pred": _tensor("image", "magnitude", size, {"0": "anomaly map"})},
    }


def _tensor(
    kind: str,
    values: str,
    size: Sequence[int],
    channels: dict[str, str],
    limits: Sequence[float] = (),
) -> dict[str, Any]:
    """A tensor as MONAI's metadata describe it."""
    return {
        "type": kind,
        "format": values,
        "modality": "n/a",
        "num_channels": len(channels),
        "spatial_shape": list(size),
        "dtype": "float32",
        "value_range": list(limits),
        "is_patch_data": False,
        "channel_def": channels,
    }


def inference(run: Run, point: Point) -> dict[str, Any]:
    """inference.json: the network, the settings of the run, and what `run` does."""
    grid = atlas_grid(run.recipe)
    config = run.config
    return {
        "imports": [
            "$from scripts.scoring import find_scans",
            "$from scripts.scoring import score_scans",  # MONAI reads one name per line
        ],
        "bundle_root": ".",
        "dataset_dir": "prepared",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "cpu",
        "network_def": {
            "_target_": "scripts.scoring.Network",
            "path": "$@bundle_root + '/models/model.ts'",
        },
        "network": "$@network_def.eval()",
        "sequences": list(run.recipe.suffixes),
        "scorer": {
            "_target_": "scripts.scoring.Scorer",
            "network": "@network",
            "image_size": list(config.image_size),
            "grid": {"shape": list(grid.shape), "affine": grid.affine.tolist()},
            "voxel": point.voxel,
            "component": point.component,
            "strength": point.strength,
            "axes": list(PLANES[config.plane]),
            "around": list(config.around),
            "median": config.postprocess.median,
            "rim_mm": config.postprocess.rim_mm,
            "closing_mm": config.postprocess.closing_mm,
            "min_volume_mm3": config.postprocess.min_volume_mm3,
        },
        "scans": "$find_scans(@dataset_dir, @sequences)",
        "run": ["$score_scans(@scorer, @scans, @output_dir)"],
    }


def atlas_grid(recipe: Recipe) -> Grid:
    """The grid that a recipe brings scans to."""
    return load_atlas(recipe.template, recipe.grid).grid


def check_bundle(run: Run, folder: Path, cases: Sequence[Case]) -> float:
    """By how much the bundle's maps of prepared cases differ at most, as a share of the threshold.

    InputError where that is above `MAP_TOLERANCE`. The voxels of the masks must be the same.
    """
    settings = json.loads((folder / "configs/inference.json").read_text())["scorer"]
    del settings["_target_"]
    settings["network"] = bundle_scoring.Network(str(folder / "models/model.ts"))
    scorer = bundle_scoring.Scorer(**settings)
    largest = 0.0
    for case in cases:
        prepared = load(case)
        expected = run.detector.atlas_map(prepared.image, prepared.brain)
        found = scorer.map(prepared.image, prepared.brain)
        apart = float(np.abs(found - expected).max()) / scorer.voxel
        native = NativeMap(expected, prepared.brain, prepared.grid)
        marked = cut(native, run.point(), run.config.postprocess)
        other = np.count_nonzero(scorer.mask(found, prepared.brain) != marked)
        if apart > MAP_TOLERANCE or other:
            raise InputError(
                f"{run.folder}: the bundle's map of {case.id} differs from Norma's by {apart:.2g} "
                f"of the threshold and its mask at {other} voxels; no bundle is written."
            )
        largest = max(largest, apart)
    return largest


def write_zip(folder: Path, archive: Path) -> None:
    """Zip a bundle, below one folder of its name."""
    made = shutil.make_archive(str(archive.with_suffix("")), "zip", folder.parent, folder.name)
    assert Path(made) == archive


def _write_docs(run: Run, point: Point, without_onnx: str, docs: Path) -> None:
    """README.md with the model card, and the licence of the data."""
    data = str(run.history.get("data", ""))
    known = dataset_of(data)
    licence = [f"Data that the network learned from: {data or 'not known'}"]
    if known:
        licence += [known.title, known.address, f"Licence: {known.licence}", known.citation]
    else:
        licence += ["Licence: not known to Norma; ask who trained the run before passing it on."]
    write_atomic(docs / "data_license.txt", "\n".join(licence) + "\n")

    card = run.folder / "README.md"
    text = card.read_text() if card.is_file() else card_text(run, [], [], "")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # for a model hub
    for picture in sorted(run.folder.glob("*.png")):
        if picture.name in text:
            shutil.copyfile(picture, docs / picture.name)
    write_atomic(docs / "README.md", _usage(run, point, without_onnx) + text.lstrip())


def _usage(run: Run, point: Point, without_onnx: str) -> str:
    """How the bundle is used, before the model card."""
    strong = f", in components whose {point.strength} is above {point.component or 0:.4g}"
    onnx = (
        f"There is no `model.onnx`: {without_onnx}."
        if without_onnx
        else "`model.onnx` gives the same maps."
    )
    return Template(USAGE.read_text(encoding="utf-8")).substitute(
        name=run.folder.name,
        version=__version__,
        notice=NOTICE,
        files=", ".join(f"`<stem>_desc-preproc_{name}.nii.gz`" for name in run.recipe.suffixes),
        modality=run.recipe.name,
        voxel=f"{point.voxel:.4g}",
        strong="" if point.component is None else strong,
        tolerance=f"{MAP_TOLERANCE:g}",
        onnx=onnx,
        recipe=json.dumps(run.recipe.model_dump(mode="json"), indent=2).replace("\n", "\n    "),
    )


def _plain(version: str) -> str:
    """A version without what names the build."""
    return version.partition("+")[0]
