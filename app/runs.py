"""The runs that a study can be scored by: the ready-made ones, and those of the admin's folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import norma
from app.settings import Settings

FRESH = 10.0  # seconds


@dataclass(frozen=True)
class RunChoice:
    """A run as users know it; `path` is what norma loads it by."""

    name: str
    modality: str
    path: str


def runs_of(settings: Settings) -> dict[str, RunChoice]:
    """The runs on offer by their name: that of a folder's run is its way from the folder.

    They are looked up at most every ten seconds.
    """
    return _listed(settings, int(time.monotonic() / FRESH))


@lru_cache(maxsize=4)
def _listed(settings: Settings, period: int) -> dict[str, RunChoice]:
    found: dict[str, RunChoice] = {}
    for path, modality in norma.list_runs(settings.runs).items():
        name = path
        if settings.runs and Path(path).is_relative_to(settings.runs):
            name = Path(path).relative_to(settings.runs).as_posix()
        found[name] = RunChoice(name, modality, path)
    return found


def choose(choices: dict[str, RunChoice], modality: str, run: str = "") -> RunChoice:
    """The run that is named, or else the first one of a modality; ValueError says what is wrong."""
    if run:
        if run not in choices:
            raise ValueError(f"there is no run '{run[:100]}'; there are {', '.join(choices)}.")
        found = choices[run]
        if modality and found.modality != modality:
            raise ValueError(
                f"the run '{run}' is for {found.modality} scans, not for {modality[:20]}."
            )
        return found
    for choice in choices.values():
        if choice.modality == modality:
            return choice
    known = ", ".join(dict.fromkeys(choice.modality for choice in choices.values()))
    raise ValueError(f"there is no run for '{modality[:20]}'; there are runs for {known}.")
