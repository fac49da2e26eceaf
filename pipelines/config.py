"""YAML in, typed and closed models out; an unknown key or a wrong type is an error with a hint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from preprocessing.files import nearest
from preprocessing.recipe import Recipe, Series

ROOT = Path(__file__).resolve().parent.parent

CONFIGS = ROOT / "configs"
RESULTS = ROOT / "docs" / "results"

DEMO = Path("work/demo")  # what make preprocess and make train use where nothing is named


class ConfigError(ValueError):
    """A config, key, model or modality that does not exist or has the wrong type."""


def load_recipe(
    modality: str, overrides: list[str] | None = None, template: str | None = None
) -> Recipe:
    """The recipe of configs/modality/<modality>.yaml with overrides such as "brain=none".

    "t1+flair" takes the first modality's recipe, and of each further one its intensity; "flair.intensity.top=0.9" changes that.
    """
    first, *further = modality.split("+")
    given = overrides or []
    own = [text for text in given if text.partition(".")[0] in further]
    path = config_path(CONFIGS / "modality", first, "MODALITY")
    values = merge(read_yaml(path), [text for text in given if text not in own])
    for name in further:
        sequence = read_yaml(config_path(CONFIGS / "modality", name, "MODALITY"))
        mine = [text.partition(".")[2] for text in own if text.partition(".")[0] == name]
        kept = {k: sequence[k] for k in Series.model_fields if k in sequence}
        values["sequences"] = [*values.get("sequences", []), merge(kept, mine)]
    if template:
        values["template"] = str(Path(template).resolve())
    return validate(Recipe, values, path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; ConfigError where it is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({error}).") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(values).__name__}.")
    return values


def read_config(kind: type[Any], path: Path) -> Any:
    """A config of `kind` from the YAML file that holds it; ConfigError where it is none."""
    return validate(kind, read_yaml(path), path)


def write_yaml(config: BaseModel) -> str:
    """A config as YAML text that reads back to the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def merge(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply "a.b=value" overrides (values are YAML) to nested dictionaries; the keys are checked on validation."""
    values = overlaid({}, values)
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ConfigError(
                f"'{text}': expected key=value, such as stages.finetune.max_epochs=50."
            )
        node = values
        *parents, last = key.split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"'{text}': '{parent}' holds a value, not keys.")
            node = child
        try:
            node[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"'{text}': the value is not readable as YAML.") from None
    return values


def validate(kind: type[Any], values: dict[str, Any], where: object) -> Any:
    """Build `kind` from values; every problem in one ConfigError, with the nearest spelling of an unknown key."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(
            f"{where}: " + "; ".join(_problem(kind, e) for e in error.errors())
        ) from None
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def names(folder: Path) -> list[str]:
    """Names of the YAML files in a folder."""
    return sorted(p.stem for p in folder.glob("*.yaml"))


def config_path(folder: Path, name: str, what: str) -> Path:
    known = names(folder)
    if name not in known:
        raise ConfigError(
            f"unknown {what} '{name}'; known: {', '.join(known)}{nearest(name, known)}"
        )
    return folder / f"{name}.yaml"


def overlaid(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in top.items():
        nested = isinstance(value, dict)
        result[key] = (
            overlaid(base[key] if isinstance(base.get(key), dict) else {}, value)
            if nested
            else value
        )
    return result


def _problem(kind: type[BaseModel], error: Any) -> str:
    if error["type"] == "value_error":  # of a validator of our own, whose sentence says it all
        return str(error["ctx"]["error"])
    place = [str(p) for p in error["loc"]]
    if error["type"] != "extra_forbidden":
        return f"'{'.'.join(place)}': {error['msg'].lower()}, got {error['input']!r}"
    fields = _fields(kind, place[:-1])
    return (
        f"unknown key '{'.'.join(place)}'; known: {', '.join(fields)}{nearest(place[-1], fields)}"
    )


def _fields(kind: Any, path: list[str]) -> list[str]:
    for part in path:
        annotation = (
            kind.model_fields[part].annotation
            if part in getattr(kind, "model_fields", {})
            else kind
        )
        args = getattr(annotation, "__args__", ())
        kind = next((a for a in (annotation, *args) if hasattr(a, "model_fields")), kind)
    return list(kind.model_fields)
