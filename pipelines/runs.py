"""The run folder: everything that inference needs, written by training and read by infer and evaluate."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from norma import __version__
from pipelines.config import ROOT, ConfigError, Recipe, RunConfig, read_config, read_yaml, validate
from preprocessing.scans import InputError, file_digest, write_atomic
from preprocessing.slices import PLANES

if TYPE_CHECKING:
    import torch

    from evaluation.metrics import VoxelHistogram
    from models.base import AnomalyModel

PACKAGES = ("torch", "monai", "lightning-fabric", "antspyx", "deepbet", "nibabel", "numpy", "scipy", "scikit-learn")


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
        from evaluation.metrics import VoxelHistogram

        with np.load(path) as stored:
            return VoxelHistogram.from_rows(stored["rows"])

    @property
    def weights_digest(self) -> str:
        """What the network is, as a digest of its weights file."""
        return file_digest(self.folder / "weights.pt")


def build_model(config: RunConfig, recipe: Recipe | None = None) -> AnomalyModel:
    """The model of a config; its arguments are checked against the constructor's signature, closed and typed.

    A constructor that takes `in_channels` is told how many channels the scans of the recipe have; a model without it takes any.
    """
    import inspect
    from typing import get_type_hints

    from pydantic import create_model as pydantic_model

    from models import create_model, model_class
    from pipelines.config import Closed

    kind = model_class(config.name)
    if kind.combines:
        _check_dimensions(config, {"spatial_dims": (int, len(config.image_size))})  # members take slices from either
        return _combined(config, kind, recipe)
    hints = get_type_hints(kind.__init__)
    signature = inspect.signature(kind.__init__).parameters.values()
    parameters = [p for p in signature if p.name != "self" and p.kind is p.POSITIONAL_OR_KEYWORD]
    fields: dict[str, Any] = {p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in parameters}
    _check_dimensions(config, fields)
    sized: dict[str, Any] = {"image_size": config.patch_size or config.image_size} if "image_size" in fields else {}
    if recipe and "in_channels" in fields:
        sized["in_channels"] = count = len(recipe.suffixes) * (1 + len(config.around))
        if config.model.get("in_channels", count) != count:
            what = ", ".join([*recipe.suffixes, *map(str, config.around)])
            raise ConfigError(
                f"model of {config.name}: in_channels={config.model['in_channels']}, but the scans have {count} "
                f"({what}); leave model.in_channels out, or preprocess again with as many."
            )
    arguments = validate(
        pydantic_model(f"{kind.__name__}Arguments", __base__=Closed, **fields), sized | config.model, f"model of {config.name}"
    )
    missing = set(kind.stages) ^ set(config.stages)
    if missing:
        raise ConfigError(f"stages of '{config.name}' are {', '.join(kind.stages)}; the config has {', '.join(config.stages)}.")
    try:
        return create_model(config.name, **dict(arguments))
    except ValueError as error:
        raise ConfigError(f"model of {config.name}: {error}") from None


def _check_dimensions(config: RunConfig, fields: dict[str, Any]) -> None:
    """ConfigError where `image_size`, `patch_size` and the model disagree on slices or volumes; `fields`: type and default by argument."""
    sides, size = len(config.image_size), list(config.image_size)
    if config.patch_size and len(config.patch_size) != sides:
        raise ConfigError(f"patch_size {list(config.patch_size)} and image_size {size} must have the same number of sides.")
    if config.around and (sides == 3 or 0 in config.around or len(set(config.around)) < len(config.around)):
        raise ConfigError(
            f"around={list(config.around)}: expected the distances of other slices, each once, and two numbers in image_size."
        )
    if sides == 3 and config.plane != "axial":
        raise ConfigError(f"plane={config.plane} is for slices; give two numbers in image_size, or leave it out.")
    if "spatial_dims" not in fields:
        if sides == 3:
            raise ConfigError(f"image_size {size} asks for volumes, and '{config.name}' works on slices alone; give two numbers.")
        return
    if sides == 3 and config.reference.active:
        raise ConfigError(
            "reference.kind and reference.symmetry compare places of slices; they do not go with three numbers in image_size."
        )
    dims = config.model.get("spatial_dims", fields["spatial_dims"][1])
    if dims in (2, 3) and dims != sides:
        raise ConfigError(f"image_size {size} has {sides} numbers and model.spatial_dims of '{config.name}' is {dims}; make them agree.")


def _combined(config: RunConfig, kind: type[AnomalyModel], recipe: Recipe | None) -> AnomalyModel:
    """A model of finished runs: their detectors, as yet without weights; `members` holds what `with_members` found."""
    members = config.model.get("members", [])
    if set(config.model) - {"members"} or config.patch_size or not all(isinstance(m, dict) for m in members):
        raise ConfigError(f"model of {config.name}: expected members alone, names of runs beside it, and no patch_size.")
    own = [validate(RunConfig, m["config"], f"member {m['run']}") for m in members]
    odd = next((m["run"] for m, c in zip(members, own, strict=True) if c.patch_size or c.around or len(c.image_size) != 2), None)
    if odd:
        raise ConfigError(f"model of {config.name}: member '{odd}' works on patches, volumes or several slices; give runs on whole slices.")
    other = next((c.plane for c in own if c.plane != "axial"), None)
    if config.around or config.plane != "axial":
        raise ConfigError(f"{config.name}: each member sees the slices that it was trained on; leave out around and plane.")
    if other and len(config.image_size) != 3:
        raise ConfigError(f"image_size of {config.name}: a member sees {other} slices; give three numbers, the grid of the scans.")
    detectors = [build_detector(c, build_model(c, recipe)) for c in own]
    return kind(detectors, [c.image_size for c in own], [PLANES[c.plane] for c in own])


def member_folder(run: Path, name: str) -> Path:
    """The finished run `name` beside a run: `../<name>`, in a comparison `../../<name>/<unit>` or its first seed; InputError for none."""
    places = [run.parent / name, run.parent.parent / name / run.name, run.parent.parent / name / "seed-0"]
    found = next((p for p in places if (p / "weights.pt").is_file()), None)
    if not found:
        raise InputError(f"{run}: no finished run '{name}' beside it; train it first, in a comparison name it first.")
    return found


def with_members(config: RunConfig, run: Path) -> RunConfig:
    """The config with the configs and weights' digests of its members in it, so that the run stands alone; others as they are."""
    from models import model_class

    if not model_class(config.name).combines:
        return config
    names = config.model.get("members") or []
    if not names or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"model of {config.name}: expected names of finished runs, such as model.members=[atlas,vae].")
    folders = {name: member_folder(run, name) for name in names}
    members = [
        {"run": name, "weights": file_digest(f / "weights.pt"), "config": read_yaml(f / "config.yaml")} for name, f in folders.items()
    ]
    return config.model_copy(update={"model": config.model | {"members": members}})


def load_members(model: AnomalyModel, config: RunConfig, run: Path) -> None:
    """Give a model of finished runs their weights."""
    import torch
    from torch import nn

    assert isinstance(model.members, nn.ModuleList)
    for member, about in zip(model.members, config.model["members"], strict=True):
        state = torch.load(member_folder(run, about["run"]) / "weights.pt", map_location="cpu", weights_only=True)
        try:
            member.load_state_dict(state)
        except RuntimeError:
            name = about["run"]
            raise ConfigError(f"model of {config.name}: member '{name}' was trained on scans with other channels than these.") from None


def build_detector(config: RunConfig, model: AnomalyModel) -> AnomalyModel:
    """The model as it is, or with its map measured against healthy maps where the config says so."""
    from models.reference import Referenced

    r = config.reference
    if r.active and config.patch_size:
        raise ConfigError("reference.kind and reference.symmetry compare places of whole slices; they do not go with patch_size.")
    if not r.active:
        return model
    try:
        return Referenced(model, r.kind, r.of, r.tail, r.smooth, r.prior, r.mirror, r.symmetry, r.reach, r.scores)
    except ValueError as error:
        raise ConfigError(f"reference of {config.name}: {error}") from None


def load_run(folder: str | Path, accelerator: str = "auto") -> Run:
    """Read a run folder; InputError names what is missing."""
    import torch

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; train one with 'make train'.")
    for name in ("config.yaml", "recipe.yaml", "weights.pt", "threshold.json", "reference.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}, so this is no finished run; finish it with 'make train'.")
    config = read_config(RunConfig, folder / "config.yaml")
    recipe = read_config(Recipe, folder / "recipe.yaml")
    device = pick_device(accelerator)
    model = build_detector(config, build_model(config, recipe))
    try:
        model.load_state_dict(torch.load(folder / "weights.pt", map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise InputError(f"{folder / 'weights.pt'}: not the weights of this config ({str(error).splitlines()[0]}).") from None
    model.eval().to(device)
    points = _with_key(folder / "threshold.json", "points")["points"]
    return Run(folder, model, config, recipe, points, _with_key(folder / "reference.json", "scans"), device)


def _with_key(path: Path, key: str) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or key not in content:
        raise InputError(f"{path}: no '{key}' in it, so this is no finished run; train it again with 'make train'.")
    return content


def pick_device(accelerator: str = "auto") -> torch.device:
    """The device for "cpu", "cuda" or "auto" (CUDA where there is one); ConfigError where it is absent."""
    import torch

    wanted = "cuda" if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available() else "cpu"
    if accelerator in ("cuda", "gpu") and wanted == "cpu":
        raise ConfigError("a CUDA device was asked for and torch sees none; use accelerator=cpu.")
    return torch.device(wanted)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; InputError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error}).") from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN becomes null, numpy numbers become numbers."""
    write_atomic(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def write_rows(path: Path, content: dict[str, Any]) -> None:
    """`write_json` for results: what a top-level key holds stands on one line, and each entry of a list on one of its own."""
    lines = []
    for key, value in plain(content).items():
        if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            text = "[\n" + ",\n".join("  " + json.dumps(v, allow_nan=False) for v in value) + "\n ]"
        else:
            text = json.dumps(value, allow_nan=False)
        lines.append(f" {json.dumps(key)}: {text}")
    write_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")


def plain(value: Any) -> Any:
    """Only what JSON knows: dictionaries, lists, strings, finite numbers, null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value if value is None or isinstance(value, str) else str(value)


def versions() -> dict[str, str]:
    """Versions of Norma, of Python and of the packages that shape a result, the machine and, in a git checkout, the commit."""
    found = {"norma": __version__, "python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    try:
        commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        found |= {"commit": commit.stdout.strip()} if commit.returncode == 0 else {}
    except OSError:
        pass  # no git here: the version stays unknown
    return found
