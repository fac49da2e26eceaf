"""Identity: which settings shape a result, and the digests that tell two results apart.

Every config class says once what its fields shape, in `shapes`; a field that differs says so itself
with `Shapes`. A level holds what shapes the levels before it:

| level | what it shapes |
|---|---|
| training | the weights, and so everything after them |
| map | the anomaly map, and so the figures |
| figures | masks, scores and every number |
| nothing | speed alone |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from models import model_class, model_names
from preprocessing.files import digest_of

Level = Literal["training", "map", "figures", "nothing"]
LEVELS: tuple[Level, ...] = ("training", "map", "figures", "nothing")

MAP_VERSION = 1  # raise when a map of the same settings changes
FIGURES_VERSION = 6  # raise when figures of the same map change


@dataclass(frozen=True)
class Shapes:
    """The level of a field that has not that of its class: `Annotated[int, Shapes("map")]`."""

    level: Level


def settings(config: BaseModel, level: Level) -> dict[str, Any]:
    """The settings of a config, as JSON knows them, that shape `level` or a level before it."""
    own: Level = getattr(type(config), "shapes", "training")
    dumped = config.model_dump(mode="json")
    found: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        marked = [m.level for m in field.metadata if isinstance(m, Shapes)]
        if isinstance(value, BaseModel):
            found[name] = settings(value, level)
        elif isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values()):
            found[name] = {key: settings(part, level) for key, part in value.items()}
        elif name not in dumped:
            continue  # left out, and so without a trace in the digests
        elif LEVELS.index(marked[0] if marked else own) <= LEVELS.index(level):
            found[name] = dumped[name]
    if level == "training" and found.get("name") in model_names() and "model" in found:
        found["model"] = _trained_arguments(found["name"], found["model"])
    return found


def _trained_arguments(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A model's constructor arguments without those that its training does not depend on."""
    scoring = model_class(name).scoring_arguments
    return {k: v for k, v in arguments.items() if k not in scoring}


def map_digest(weights: str, config: BaseModel, scan: str) -> str:
    """Of a map: digest of the weights file, settings, fingerprint of the preprocessed scan."""
    return digest_of("map", MAP_VERSION, weights, settings(config, "map"), scan)


def figures_digest(weights: str, config: BaseModel, *more: Any) -> str:
    """Of figures, masks or reports: digest of the weights file, settings, and `more` they need."""
    return digest_of("figures", FIGURES_VERSION, weights, settings(config, "figures"), *more)
