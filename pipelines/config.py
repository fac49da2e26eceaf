"""YAML in, typed and closed models out; an unknown key or a wrong type is an error with a hint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from preprocessing.files import nearest, write_atomic
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

    "t1+flair" takes the recipe of the first sequence, and of every other one its intensity. An
    override "flair.intensity.top=0.9" changes the intensity of one of those.
    """
    first, *others = modality.split("+")
    overrides = overrides or []
    of_others = [text for text in overrides if text.partition(".")[0] in others]
    of_first = [text for text in overrides if text not in of_others]

    path = config_path(CONFIGS / "modality", first, "MODALITY")
    values = merge(read_yaml(path), of_first)
    for name in others:
        series = _series_values(name, of_others)
        values["sequences"] = [*values.get("sequences", []), series]
    if template:
        values["template"] = str(Path(template).resolve())
    return validate(Recipe, values, path)


def _series_values(name: str, overrides: list[str]) -> dict[str, Any]:
    """What a recipe of several sequences takes from modality `name`, with its overrides."""
    values = read_yaml(config_path(CONFIGS / "modality", name, "MODALITY"))
    series = {key: values[key] for key in Series.model_fields if key in values}
    changes: list[str] = []
    for text in overrides:
        sequence, _, change = text.partition(".")
        if sequence == name:
            changes.append(change)
    return merge(series, changes)


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
    """A copy of nested dictionaries with overrides "a.b=value", whose values are YAML.

    `validate` checks the keys.
    """
    merged = overlaid({}, values)
    for text in overrides:
        _override(merged, text)
    return merged


def _override(values: dict[str, Any], text: str) -> None:
    """Set one "a.b=value" in place."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"'{text}': expected key=value, such as stages.finetune.max_epochs=50.")
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


def validate(kind: type[Any], values: dict[str, Any], where: object) -> Any:
    """Build `kind` from values; one ConfigError names all problems.

    It gives the nearest spelling of an unknown key.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        problems = "; ".join(_problem(kind, problem) for problem in error.errors())
        raise ConfigError(f"{where}: {problems}") from None
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def names(folder: Path) -> list[str]:
    """Names of the YAML files in a folder."""
    return sorted(p.stem for p in folder.glob("*.yaml"))


def config_path(folder: Path, name: str, what: str) -> Path:
    """The file of config `name`; ConfigError where there is none. `what`: "MODEL", "PRESET"..."""
    known = names(folder)
    if name not in known:
        raise ConfigError(
            f"unknown {what} '{name}'; known: {', '.join(known)}{nearest(name, known)}"
        )
    return folder / f"{name}.yaml"


def overlaid(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`base` with `top` over it, level by level; neither changes."""
    result = dict(base)
    for key, value in top.items():
        if isinstance(value, dict):
            below = base.get(key)
            result[key] = overlaid(below if isinstance(below, dict) else {}, value)
        else:
            result[key] = value
    return result


def _problem(kind: type[BaseModel], error: Any) -> str:
    """One problem that pydantic found, as part of a sentence."""
    if error["type"] == "value_error":  # of a validator of our own, whose sentence says it all
        return str(error["ctx"]["error"])
    place = [str(p) for p in error["loc"]]
    if error["type"] != "extra_forbidden":
        return f"'{'.'.join(place)}': {error['msg'].lower()}, got {error['input']!r}"
    known = _fields(kind, place[:-1])
    return f"unknown key '{'.'.join(place)}'; known: {', '.join(known)}{nearest(place[-1], known)}"


def _fields(kind: Any, path: list[str]) -> list[str]:
    """The keys of the config that lies at `path` in a config of `kind`."""
    for part in path:
        fields = getattr(kind, "model_fields", {})
        annotation = fields[part].annotation if part in fields else kind
        args = getattr(annotation, "__args__", ())
        kind = next((a for a in (annotation, *args) if hasattr(a, "model_fields")), kind)
    return list(kind.model_fields)


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run or cohort folder; a template that lies in the folder is named in full."""
    recipe = read_config(Recipe, folder / "recipe.yaml")
    if recipe.template and (folder / recipe.template).is_file():
        return recipe.model_copy(update={"template": str(folder / recipe.template)})
    return recipe


def write_recipe(folder: Path, recipe: Recipe) -> Recipe:
    """Write recipe.yaml of a run or cohort folder; the recipe as it is written.

    A template of the user's is copied beside it, so that the folder stands alone.
    """
    if recipe.template:
        template = Path(recipe.template)
        target = folder / ("template" + "".join(template.suffixes[-2:]))
        if template.resolve() != target.resolve():
            shutil.copyfile(template, target)
        recipe = recipe.model_copy(update={"template": target.name})
    write_atomic(folder / "recipe.yaml", write_yaml(recipe))
    return recipe
