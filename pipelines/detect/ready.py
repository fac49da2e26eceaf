"""Ready-made runs: trained on public healthy scans, shipped with Norma, checked by digest."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipelines.cohort.public import dataset_of
from pipelines.config import CONFIGS, ROOT, read_config, write_yaml
from pipelines.detect.run import read_history
from preprocessing.files import file_digest, nearest, write_atomic
from preprocessing.recipe import Closed
from preprocessing.scans import InputError

FOLDER = CONFIGS / "ready"


class Ready(Closed):
    """configs/ready/<name>.yaml: where a ready-made run lies, and what it may be used for.

    `digest` is the SHA-256 of its run.json, which holds the digests of all its other files.
    """

    folder: str
    digest: str = Field(min_length=64, max_length=64)
    licence: str
    trained_on: str
    card: str


def ready_names() -> list[str]:
    """The ready-made runs by name, which is their modality."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def ready(name: str) -> Ready:
    """What is known of a ready-made run; InputError for an unknown one."""
    known = ready_names()
    if name not in known:
        raise InputError(
            f"no ready-made run for '{name}'; there is one for {', '.join(known) or 'nothing'}"
            f"{nearest(name, known)}; else train one with 'make train' and give it as RUN."
        )
    found: Ready = read_config(Ready, FOLDER / f"{name}.yaml")
    return found


def ready_run(name: str) -> Path:
    """The folder of a ready-made run; InputError for an unknown, missing or changed one."""
    known = ready(name)
    folder = ROOT / known.folder
    history = folder / "run.json"
    if not history.is_file() or file_digest(history) != known.digest:
        raise InputError(
            f"{folder}: not the ready-made run that {FOLDER / name}.yaml names; get Norma's files "
            "again, or train a run and give it as RUN."
        )
    return folder


def register(name: str, folder: Path) -> Path:
    """Write configs/ready/<name>.yaml for a run inside Norma's folder; gives the file."""
    data = str(read_history(folder).get("data", ""))
    known = dataset_of(data)
    found = Ready(
        folder=folder.resolve().relative_to(ROOT).as_posix(),
        digest=file_digest(folder / "run.json"),
        licence=known.licence if known else "other",
        trained_on=data,
        card=(folder / "README.md").resolve().relative_to(ROOT).as_posix(),
    )
    path = FOLDER / f"{name}.yaml"
    write_atomic(path, write_yaml(found))
    return path


def run_folder(run: str | Path) -> Path:
    """The folder of a run that is named by its path, or a ready-made one by its modality."""
    path = Path(run)
    if not path.exists() and str(run) in ready_names():
        return ready_run(str(run))
    return path
