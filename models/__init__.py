"""Detectors: one file each, found by its name; `create_model("vae_cr", beta=0.1)`."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from models.base import AnomalyModel


def model_names() -> list[str]:
    """Return the names of the detectors: the files of this folder without `base`."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(p.stem for p in files if p.stem not in ("__init__", "base"))


def model_class(name: str) -> type[AnomalyModel]:
    """Return the `AnomalyModel` class defined in models/<name>.py; ValueError for another name."""
    if name not in model_names():
        raise ValueError(f"unknown model '{name}'; known: {', '.join(model_names())}")
    module = importlib.import_module(f"models.{name}")
    return next(
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, AnomalyModel) and c.__module__ == module.__name__
    )


def create_model(name: str, **arguments: Any) -> AnomalyModel:
    """Build a detector by its file name; `arguments` go to its constructor."""
    return model_class(name)(**arguments)
