"""Versions of Norma and of what shapes a result."""

from __future__ import annotations

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
    """Versions of Norma, of Python and of the packages that shape a result, the machine and, in a git checkout, the commit."""
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
    try:
        commit = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
        found |= {"commit": commit.stdout.strip()} if commit.returncode == 0 else {}
    except OSError:
        pass  # no git here: the version stays unknown
    return found


def command_line(verb: str = "") -> list[str]:
    """The arguments of this process as they are written into files, after `python -m <verb>`.

    Of an absolute path the last part alone stays: a file that travels names no folder of its maker.
    """
    prefix = ["python", "-m", verb] if verb else []
    return [*prefix, *(_without_folders(part) for part in sys.argv[1:])]


def _without_folders(argument: str) -> str:
    key, sign, value = argument.partition("=")
    if sign and Path(value).is_absolute():
        return f"{key}={Path(value).name}"
    return Path(argument).name if Path(argument).is_absolute() else argument
