"""Protocols: how runs are tested and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from pipelines.config import CONFIGS, config_path, merge, read_yaml, validate
from pipelines.detect.identity import Level, Shapes
from preprocessing.recipe import Closed
from preprocessing.scans import InputError


def listed(value: Any) -> Any:
    """One name as a list of it: by=sex is by=[sex]."""
    return (value,) if isinstance(value, str) else value


class Protocol(Closed):
    """How runs are tested and compared; configs/protocol/<name>.yaml.

    Every output names its protocol so. `seeds` runs on one split, or with `folds` one run per fold
    and repeat. `slices`: also per slice; left out, all scans but pictures. `by`: columns of the
    scan or slice table whose classes get figures of their own. `resamples`: bootstrap samples of
    subjects.
    """

    shapes: ClassVar[Level] = "nothing"

    name: str
    seeds: int = Field(5, ge=1)
    folds: int | None = Field(None, ge=3)
    repeats: int = Field(1, ge=1)
    slices: Annotated[bool | None, Shapes("figures")] = None
    by: Annotated[tuple[str, ...], BeforeValidator(listed), Shapes("figures")] = ("pathology",)
    resamples: int = Field(1000, ge=1)


def load_protocol(name: str, overrides: list[str] | None = None) -> Protocol:
    """The protocol of configs/protocol/<name>.yaml with overrides such as "seeds=3"."""
    path = config_path(CONFIGS / "protocol", name, "PROTOCOL")
    return validate(Protocol, {"name": name} | merge(read_yaml(path), overrides or []), path)


def existing_data(data: Path) -> Path:
    """A preprocessed cohort's folder as it is given; InputError where there is none."""
    if not data.is_dir():
        raise InputError(
            f"{data}: no such folder; give the OUT folder of 'make preprocess' as DATA."
        )
    return data


def protocol_for(data: Path, name: str | None, overrides: list[str]) -> Protocol:
    """The named protocol; by default "pictures" for pictures and "volumes" for all else."""
    recipe = existing_data(data) / "recipe.yaml"
    modality = read_yaml(recipe).get("modality") if name is None or recipe.is_file() else None
    if name is None:
        name = "pictures" if modality == "picture" else "volumes"
    protocol = load_protocol(name, overrides)
    if protocol.slices is None:
        return protocol.model_copy(update={"slices": modality != "picture"})
    return protocol
