"""From a config to a model: arguments checked, members found, healthy reference around it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import create_model as pydantic_model
from torch import nn

from models import create_model, model_class
from models.base import AnomalyModel
from models.parts.healthy_map import Referenced
from pipelines.config import ConfigError, read_yaml, validate
from pipelines.detect.config import RunConfig
from preprocessing.files import file_digest
from preprocessing.recipe import Closed, Recipe
from preprocessing.scans import InputError
from preprocessing.slices import PLANES


def build_model(config: RunConfig, recipe: Recipe | None = None) -> AnomalyModel:
    """The model of a config; its arguments are checked against the constructor's signature, closed and typed.

    A constructor that takes `in_channels` is told how many channels the scans of the recipe have; a model without it takes any.
    """
    kind = model_class(config.name)
    if kind.combines:
        _check_dimensions(
            config, {"spatial_dims": (int, len(config.image_size))}
        )  # members take slices from either
        return _combined(config, kind, recipe)
    hints = get_type_hints(kind.__init__)
    signature = inspect.signature(kind.__init__).parameters.values()
    parameters = [p for p in signature if p.name != "self" and p.kind is p.POSITIONAL_OR_KEYWORD]
    fields: dict[str, Any] = {
        p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in parameters
    }
    _check_dimensions(config, fields)
    sized: dict[str, Any] = (
        {"image_size": config.patch_size or config.image_size} if "image_size" in fields else {}
    )
    if recipe and "in_channels" in fields:
        sized["in_channels"] = count = len(recipe.suffixes) * (1 + len(config.around))
        if config.model.get("in_channels", count) != count:
            what = ", ".join([*recipe.suffixes, *map(str, config.around)])
            raise ConfigError(
                f"model of {config.name}: in_channels={config.model['in_channels']}, but the scans have {count} "
                f"({what}); leave model.in_channels out, or preprocess again with as many."
            )
    arguments = validate(
        pydantic_model(f"{kind.__name__}Arguments", __base__=Closed, **fields),
        sized | config.model,
        f"model of {config.name}",
    )
    missing = set(kind.stages) ^ set(config.stages)
    if missing:
        raise ConfigError(
            f"stages of '{config.name}' are {', '.join(kind.stages)}; the config has {', '.join(config.stages)}."
        )
    try:
        return create_model(config.name, **dict(arguments))
    except ValueError as error:
        raise ConfigError(f"model of {config.name}: {error}") from None


def _check_dimensions(config: RunConfig, fields: dict[str, Any]) -> None:
    """ConfigError where `image_size`, `patch_size` and the model disagree on slices or volumes; `fields`: type and default by argument."""
    sides, size = len(config.image_size), list(config.image_size)
    if config.patch_size and len(config.patch_size) != sides:
        raise ConfigError(
            f"patch_size {list(config.patch_size)} and image_size {size} must have the same number of sides."
        )
    if config.around and (
        sides == 3 or 0 in config.around or len(set(config.around)) < len(config.around)
    ):
        raise ConfigError(
            f"around={list(config.around)}: expected the distances of other slices, each once, and two numbers in image_size."
        )
    if sides == 3 and config.plane != "axial":
        raise ConfigError(
            f"plane={config.plane} is for slices; give two numbers in image_size, or leave it out."
        )
    if "spatial_dims" not in fields:
        if sides == 3:
            raise ConfigError(
                f"image_size {size} asks for volumes, and '{config.name}' works on slices alone; give two numbers."
            )
        return
    if sides == 3 and config.reference.active:
        raise ConfigError(
            "reference.kind and reference.symmetry compare places of slices; they do not go with three numbers in image_size."
        )
    dims = config.model.get("spatial_dims", fields["spatial_dims"][1])
    if dims in (2, 3) and dims != sides:
        raise ConfigError(
            f"image_size {size} has {sides} numbers and model.spatial_dims of '{config.name}' is {dims}; make them agree."
        )


def _combined(config: RunConfig, kind: type[AnomalyModel], recipe: Recipe | None) -> AnomalyModel:
    """A model of finished runs: their detectors, as yet without weights; `members` holds what `with_members` found."""
    members = config.model.get("members", [])
    if (
        set(config.model) - {"members"}
        or config.patch_size
        or not all(isinstance(m, dict) for m in members)
    ):
        raise ConfigError(
            f"model of {config.name}: expected members alone, names of runs beside it, and no patch_size."
        )
    own = [validate(RunConfig, m["config"], f"member {m['run']}") for m in members]
    odd = next(
        (
            m["run"]
            for m, c in zip(members, own, strict=True)
            if c.patch_size or c.around or len(c.image_size) != 2
        ),
        None,
    )
    if odd:
        raise ConfigError(
            f"model of {config.name}: member '{odd}' works on patches, volumes or several slices; give runs on whole slices."
        )
    other = next((c.plane for c in own if c.plane != "axial"), None)
    if config.around or config.plane != "axial":
        raise ConfigError(
            f"{config.name}: each member sees the slices that it was trained on; leave out around and plane."
        )
    if other and len(config.image_size) != 3:
        raise ConfigError(
            f"image_size of {config.name}: a member sees {other} slices; give three numbers, the grid of the scans."
        )
    detectors = [build_detector(c, build_model(c, recipe)) for c in own]
    return kind(detectors, [c.image_size for c in own], [PLANES[c.plane] for c in own])


def member_folder(run: Path, name: str) -> Path:
    """The finished run `name` beside a run: `../<name>`, in a comparison `../../<name>/<unit>` or its first seed; InputError for none."""
    places = [
        run.parent / name,
        run.parent.parent / name / run.name,
        run.parent.parent / name / "seed-0",
    ]
    found = next((p for p in places if (p / "weights.pt").is_file()), None)
    if not found:
        raise InputError(
            f"{run}: no finished run '{name}' beside it; train it first, in a comparison name it first."
        )
    return found


def with_members(config: RunConfig, run: Path) -> RunConfig:
    """The config with the configs and weights' digests of its members in it, so that the run stands alone; others as they are."""
    if not model_class(config.name).combines:
        return config
    names = config.model.get("members") or []
    if not names or not all(isinstance(n, str) for n in names):
        raise ConfigError(
            f"model of {config.name}: expected names of finished runs, such as model.members=[atlas,vae]."
        )
    folders = {name: member_folder(run, name) for name in names}
    members = [
        {
            "run": name,
            "weights": file_digest(f / "weights.pt"),
            "config": read_yaml(f / "config.yaml"),
        }
        for name, f in folders.items()
    ]
    return config.model_copy(update={"model": config.model | {"members": members}})


def load_members(model: AnomalyModel, config: RunConfig, run: Path) -> None:
    """Give a model of finished runs their weights."""
    assert isinstance(model.members, nn.ModuleList)
    for member, about in zip(model.members, config.model["members"], strict=True):
        state = torch.load(
            member_folder(run, about["run"]) / "weights.pt", map_location="cpu", weights_only=True
        )
        try:
            member.load_state_dict(state)
        except RuntimeError:
            name = about["run"]
            raise ConfigError(
                f"model of {config.name}: member '{name}' was trained on scans with other channels than these."
            ) from None


def build_detector(config: RunConfig, model: AnomalyModel) -> AnomalyModel:
    """The model as it is, or with its map measured against healthy maps where the config says so."""
    r = config.reference
    if r.active and config.patch_size:
        raise ConfigError(
            "reference.kind and reference.symmetry compare places of whole slices; they do not go with patch_size."
        )
    if not r.active:
        return model
    try:
        return Referenced(
            model, r.kind, r.of, r.tail, r.smooth, r.prior, r.mirror, r.symmetry, r.reach, r.scores
        )
    except ValueError as error:
        raise ConfigError(f"reference of {config.name}: {error}") from None


def pick_device(accelerator: str = "auto") -> torch.device:
    """The device for "cpu", "cuda" or "auto" (CUDA where there is one); ConfigError where it is absent."""
    wanted = (
        "cuda" if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available() else "cpu"
    )
    if accelerator in ("cuda", "gpu") and wanted == "cpu":
        raise ConfigError("a CUDA device was asked for and torch sees none; use accelerator=cpu.")
    return torch.device(wanted)
