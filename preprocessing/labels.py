"""The words of a table: splits, labels, kinds of people, and what stands for nothing."""

from __future__ import annotations

from preprocessing.files import nearest
from preprocessing.scans import LABELS, SPLITS, InputError

_SPLIT_NAMES = {
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "testing": "test",
}

_LABEL_NAMES = {
    "0": "healthy",
    "normal": "healthy",
    "control": "healthy",
    "1": "abnormal",
    "lesion": "abnormal",
    "pathological": "abnormal",
}

# what a column `group` says where it names kinds of people, not images that belong together
CONTROLS = ("control", "controls", "healthy", "normal", "hc", "ctrl", "healthy control")
PATIENTS = ("patient", "patients", "case", "cases", "abnormal", "pathological", "lesion", "disease")


def split_name(value: str, where: object) -> str:
    """One of `SPLITS`, or "" for nothing; InputError for another word."""
    name = _SPLIT_NAMES.get(value.lower(), value.lower())
    if name and name not in SPLITS:
        raise InputError(
            f"{where}: split '{value}'; expected one of {', '.join(SPLITS)}{nearest(name, SPLITS)}"
        )
    return name


def label_name(value: str, where: object) -> str:
    """One of `LABELS`, or "" for nothing; InputError for another word."""
    name = _LABEL_NAMES.get(value.lower(), value.lower())
    if name and name not in LABELS:
        raise InputError(
            f"{where}: label '{value}'; expected one of {', '.join(LABELS)}{nearest(name, LABELS)}"
        )
    return name


def told(row: dict[str, str]) -> dict[str, str]:
    """A row without the cells that say n/a, as BIDS writes what is not known."""
    return {name: "" if value.lower() == "n/a" else value for name, value in row.items()}


def are_kinds_of_people(groups: set[str]) -> bool:
    """Whether groups are words such as control and patient."""
    words = {group.lower() for group in groups}
    return bool(words) and words <= {*CONTROLS, *PATIENTS}
