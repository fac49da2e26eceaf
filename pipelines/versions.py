"""Versions of Norma and of what shapes a result."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from norma import __version__ as __version__
from pipelines.config import ROOT

PACKAGES = (
    "torch",
    "monai",
    "lightning-fabric",
    "antspyx",
    "deepbet",
    "nibabel",
    "numpy",
    "scipy",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """Versions of Norma, Python and the packages that shape a result, the machine and the commit.

    Packages that are not installed are left out; outside a git checkout the commit is too.
    """
    found = {
        "norma": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue

    commit = _commit()
    if commit:
        found["commit"] = commit
    return found


def _commit() -> str:
    """The short name of the commit; empty without git or outside a checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def command_line(verb: str = "") -> list[str]:
    """The arguments of this process as files record them, after `python -m <verb>`.

    Of an absolute path the last part alone stays: the file names no folder of its maker.
    """
    prefix = ["python", "-m", verb] if verb else []
    return [*prefix, *(_without_folders(part) for part in sys.argv[1:])]


def _without_folders(argument: str) -> str:
    """An argument with absolute paths shortened to their last part, after a "key=" too."""
    key, sign, value = argument.partition("=")
    if sign and Path(value).is_absolute():
        return f"{key}={Path(value).name}"
    return Path(argument).name if Path(argument).is_absolute() else argument


def shown_path(path: Path | str, root: Path | None) -> str:
    """A file as tables and pages name it: by its way from `root`, the folder that came in.

    Elsewhere, or without a root, by its name alone. A relative path stays as the user gave it.
    """
    path = Path(path)
    if not path.is_absolute() and not (root and root.is_absolute()):
        return str(path)
    if root and path.absolute().is_relative_to(root.absolute()):
        return str(path.absolute().relative_to(root.absolute()))
    return path.name


def shown_text(text: str, root: Path | None) -> str:
    """A sentence whose files are named by their way from `root`."""
    return text.replace(f"{root.absolute()}{os.sep}", "") if root else text


def shown_reason(reason: str, image: Path | str, root: Path | None) -> str:
    """Why a scan failed, with its files named by their way from `root`."""
    return shown_text(reason.replace(str(image), shown_path(image, root)), root)
