"""Which runs there are, told from small files alone: no weights and no torch are loaded."""

from __future__ import annotations

from pathlib import Path

from pipelines.config import CONFIGS, ROOT, read_recipe, read_yaml
from pipelines.detect.folder import FINISHED


def listed_runs(folder: Path | None = None) -> dict[str, str]:
    """The modality of each ready-made run by name, and of each finished run below a folder."""
    found: dict[str, str] = {}
    for path in sorted((CONFIGS / "ready").glob("*.yaml")):
        found[path.stem] = read_recipe(ROOT / read_yaml(path)["folder"]).name
    for recipe in sorted(folder.rglob("recipe.yaml")) if folder else []:
        if all((recipe.parent / name).is_file() for name in FINISHED):
            found[str(recipe.parent)] = read_recipe(recipe.parent).name
    return found
