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
from models.parts.folded import Folded
from models.parts.healthy_map import Referenced
from pipelines.config import ConfigError, read_yaml, validate
from pipelines.detect.config import RunConfig
from preprocessing.files import file_digest
from preprocessing.recipe import Closed, Recipe
from preprocessing.scans import InputError
from preprocessing.slices import PLANES

Fields = dict[str, Any]
"""Type and default of each argument of a model, by its name."""


def build_model(config: RunConfig, recipe: Recipe | None = None) -> AnomalyModel:
    """The model of a config; ConfigError for an argument that its constructor does not take.

    A constructor with `in_channels` gets the number of channels of the recipe's scans. A model
    without it takes any number.
    """
    kind = model_class(config.name)
    if kind.combines:
        # the members work on slices, whether the ensemble gets slices or volumes
        _check_dimensions(config, {"spatial_dims": (int, len(config.image_size))})
        return _combined(config, kind, recipe)

    fields = _constructor_fields(kind)
    _check_dimensions(config, fields)
    arguments = validate(
        pydantic_model(f"{kind.__name__}Arguments", __base__=Closed, **fields),
        _sizes(config, fields, recipe) | config.model,
        f"model of {config.name}",
    )
    if set(kind.stages) != set(config.stages):
        raise ConfigError(
            f"stages of '{config.name}' are {', '.join(kind.stages)}; "
            f"the config has {', '.join(config.stages)}."
        )
    try:
        return create_model(config.name, **dict(arguments))
    except ValueError as error:
        raise ConfigError(f"model of {config.name}: {error}") from None


def _constructor_fields(kind: type[AnomalyModel]) -> Fields:
    """The named arguments of a model's constructor; `...` where one has no default."""
    hints = get_type_hints(kind.__init__)
    fields: Fields = {}
    for p in inspect.signature(kind.__init__).parameters.values():
        if p.name != "self" and p.kind is p.POSITIONAL_OR_KEYWORD:
            fields[p.name] = (hints[p.name], ... if p.default is p.empty else p.default)
    return fields


def channels_of(config: RunConfig, recipe: Recipe) -> int:
    """How many channels a network sees: those of a slice and of the slices around it."""
    return len(recipe.suffixes) * (1 + len(config.around))


def _sizes(config: RunConfig, fields: Fields, recipe: Recipe | None) -> dict[str, Any]:
    """The arguments that follow from the size of the slices and the channels of the scans."""
    sizes: dict[str, Any] = {}
    if "image_size" in fields:
        sizes["image_size"] = config.patch_size or config.image_size
    if "around" in fields:
        sizes["around"] = config.around
    if recipe and "in_channels" in fields:
        count = channels_of(config, recipe)
        sizes["in_channels"] = count
        if config.model.get("in_channels", count) != count:
            what = ", ".join([*recipe.suffixes, *map(str, config.around)])
            raise ConfigError(
                f"model of {config.name}: in_channels={config.model['in_channels']}, but the scans "
                f"have {count} ({what}); leave model.in_channels out, or preprocess again with as "
                "many."
            )
    return sizes


def _check_dimensions(config: RunConfig, fields: Fields) -> None:
    """ConfigError where sizes and model disagree on slices or volumes."""
    sides = len(config.image_size)
    size = list(config.image_size)
    _check_sides(config, sides, size)
    if "spatial_dims" not in fields:
        if sides == 3:
            raise ConfigError(
                f"image_size {size} asks for volumes, and '{config.name}' works on slices alone; "
                "give two numbers."
            )
        return
    if sides == 3 and config.reference.active:
        raise ConfigError(
            "reference.kind and reference.symmetry compare places of slices; "
            "they do not go with three numbers in image_size."
        )
    dims = config.model.get("spatial_dims", fields["spatial_dims"][1])
    if dims in (2, 3) and dims != sides:
        raise ConfigError(
            f"image_size {size} has {sides} numbers and model.spatial_dims of '{config.name}' is "
            f"{dims}; make them agree."
        )


def _check_sides(config: RunConfig, sides: int, size: list[int]) -> None:
    """ConfigError where the patches, neighbours or plane do not go with `image_size`."""
    if config.patch_size and len(config.patch_size) != sides:
        raise ConfigError(
            f"patch_size {list(config.patch_size)} and image_size {size} must have the same number "
            "of sides."
        )
    doubled = len(set(config.around)) < len(config.around)
    if config.around and (sides == 3 or 0 in config.around or doubled):
        raise ConfigError(
            f"around={list(config.around)}: expected the distances of other slices, each once, "
            "and two numbers in image_size."
        )
    if sides == 3 and config.plane != "axial":
        raise ConfigError(
            f"plane={config.plane} is for slices; give two numbers in image_size, or leave it out."
        )


def _combined(config: RunConfig, kind: type[AnomalyModel], recipe: Recipe | None) -> AnomalyModel:
    """A model of finished runs: their detectors, as yet without weights.

    `members` of the config holds what `with_members` found.
    """
    members = config.model.get("members", [])
    more = set(config.model) - {"members"}
    if more or config.patch_size or not all(isinstance(m, dict) for m in members):
        raise ConfigError(
            f"model of {config.name}: expected members alone, names of runs beside it, and no "
            "patch_size."
        )
    configs = [validate(RunConfig, m["config"], f"member {m['run']}") for m in members]
    _check_members(config, [m["run"] for m in members], configs)
    detectors = [build_detector(c, build_model(c, recipe)) for c in configs]
    sizes = [c.image_size for c in configs]
    planes = [PLANES[c.plane] for c in configs]
    return kind(detectors, sizes, planes, [c.around for c in configs])


def _check_members(config: RunConfig, runs: list[str], members: list[RunConfig]) -> None:
    """ConfigError where members do not work on whole slices as they are, or need a volume."""
    for run, member in zip(runs, members, strict=True):
        if member.harmonise:
            raise ConfigError(
                f"model of {config.name}: member '{run}' is adapted to another scanner; give its "
                "parent, and adapt the whole."
            )
        if member.patch_size or len(member.image_size) != 2:
            raise ConfigError(
                f"model of {config.name}: member '{run}' works on patches or volumes; give runs on "
                "whole slices."
            )
    if config.around or config.plane != "axial":
        raise ConfigError(
            f"{config.name}: each member sees the slices that it was trained on; leave out around "
            "and plane."
        )
    if len(config.image_size) == 3:
        return
    for run, member in zip(runs, members, strict=True):
        if member.around or member.plane != "axial":
            seen = "the slices around each" if member.around else f"{member.plane} slices"
            raise ConfigError(
                f"image_size of {config.name}: member '{run}' sees {seen}; give three numbers, "
                "the grid of the scans."
            )


def member_folder(run_dir: Path, name: str) -> Path:
    """The finished run `name` beside a run; InputError for none.

    It is `../<name>`, or in a comparison `../../<name>/<unit>` or its first seed. Of
    a run that is a fold of another it is that fold of the member.
    """
    if run_dir.parent.name == "folds":
        return _fold_of(member_folder(run_dir.parent.parent, name), run_dir.name)
    beside = run_dir.parent / name
    model = run_dir.parent.parent / name
    for folder in (beside, model / run_dir.name, model / "seed-0"):
        if (folder / "weights.pt").is_file():
            return folder
    raise InputError(
        f"{run_dir}: no finished run '{name}' beside it; train it first, in a comparison name it "
        "first."
    )


def _fold_of(member: Path, number: str) -> Path:
    """A fold of a member that was trained in folds; InputError where it has none of that number."""
    folder = member / "folds" / number
    if not (folder / "weights.pt").is_file():
        raise InputError(
            f"{member}: not trained in as many folds; train it with the same calibration.folds."
        )
    return folder


def with_members(config: RunConfig, run_dir: Path) -> RunConfig:
    """The config of a combined model with its members in it, so that the run stands alone.

    Each member has its config and the digest of its weights. Other configs stay as they are.
    """
    if not model_class(config.name).combines:
        return config
    names = config.model.get("members") or []
    if not names or not all(isinstance(n, str) for n in names):
        raise ConfigError(
            f"model of {config.name}: expected names of finished runs, such as "
            "model.members=[atlas,vae]."
        )
    folders = {name: member_folder(run_dir, name) for name in names}
    members = [_member(name, folder) for name, folder in folders.items()]
    return config.model_copy(update={"model": config.model | {"members": members}})


def _member(name: str, folder: Path) -> dict[str, Any]:
    """What the config of a combined model holds of one member."""
    return {
        "run": name,
        "weights": file_digest(folder / "weights.pt"),
        "config": read_yaml(folder / "config.yaml"),
    }


def load_members(model: AnomalyModel, config: RunConfig, run_dir: Path) -> None:
    """Give a model of finished runs their weights."""
    assert isinstance(model.members, nn.ModuleList)
    for member, entry in zip(model.members, config.model["members"], strict=True):
        name = entry["run"]
        path = member_folder(run_dir, name) / "weights.pt"
        state = torch.load(path, map_location="cpu", weights_only=True)
        try:
            member.load_state_dict(state)
        except RuntimeError:
            raise ConfigError(
                f"model of {config.name}: member '{name}' was trained on scans with other channels "
                "than these."
            ) from None


def build_run(config: RunConfig, recipe: Recipe | None = None) -> AnomalyModel:
    """What a run folder holds the weights of: a detector, or with folds one of each as one."""
    count = config.calibration.folds
    made = [build_detector(config, build_model(config, recipe)) for _ in range(max(count, 1))]
    return Folded(made) if count else made[0]


def build_detector(config: RunConfig, model: AnomalyModel) -> AnomalyModel:
    """The model, or around it the comparison with healthy maps that the config asks for."""
    r = config.reference
    if r.active and config.patch_size:
        raise ConfigError(
            "reference.kind and reference.symmetry compare places of whole slices; "
            "they do not go with patch_size."
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
    """The device for "cpu", "cuda" or "auto" (CUDA if there is one); ConfigError for none."""
    cuda = torch.cuda.is_available()
    if accelerator in ("cuda", "gpu") and not cuda:
        raise ConfigError("a CUDA device was asked for and torch sees none; use accelerator=cpu.")
    return torch.device("cuda" if cuda and accelerator in ("auto", "cuda", "gpu") else "cpu")
