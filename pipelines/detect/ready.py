"""Ready-made runs: shipped with Norma or brought from an address, checked by digest."""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import yaml
from pydantic import Field

from pipelines.cohort.public import dataset_of
from pipelines.config import CONFIGS, ROOT, read_config, read_recipe
from pipelines.detect.folder import SEALED, read_history
from preprocessing.download import download
from preprocessing.files import file_digest, nearest, write_atomic
from preprocessing.recipe import Closed
from preprocessing.scans import InputError

FOLDER = CONFIGS / "ready"
READY = ROOT / "ready"
PARTS = ("run.json", "README.md", *SEALED)  # of a run in an archive, beside pictures of its card


class Ready(Closed):
    """configs/ready/<name>.yaml: where a ready-made run lies, and what it may be used for.

    `digest` is the SHA-256 of its run.json, which holds the digests of all its other files. A run
    that is not shipped has the `address` of a zip archive, and the archive's own SHA-256.
    """

    folder: str
    digest: str = Field(min_length=64, max_length=64)
    licence: str
    trained_on: str
    card: str
    address: str | None = None
    archive: str | None = Field(None, min_length=64, max_length=64)


def ready_names() -> list[str]:
    """The ready-made runs by name; the first choice for a modality bears its name."""
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
    if known.address and not history.is_file():
        raise InputError(f"{folder}: not here yet; bring it with 'make fetch READY={name}'.")
    if not history.is_file() or file_digest(history) != known.digest:
        raise InputError(
            f"{folder}: not the ready-made run that {FOLDER / name}.yaml names; get Norma's files "
            "again, or train a run and give it as RUN."
        )
    return folder


def is_place_of(name: str, folder: Path) -> bool:
    """Whether a folder is that of the ready-made run of this name."""
    return name in ready_names() and folder.resolve() == (ROOT / ready(name).folder).resolve()


def fetch(name: str, address: str | None = None, digest: str | None = None) -> Path:
    """Bring a ready-made run from a zip archive at an address; gives its folder.

    The first time `address` and `digest` (SHA-256 of the archive) are given, and
    configs/ready/<name>.yaml remembers them. InputError for a run that is shipped, another run of
    that name, or an archive that is no run.
    """
    if not re.fullmatch("[a-z0-9_-]+", name):
        raise InputError(f"READY={name}: expected lower-case letters, digits, '_' and '-'.")
    from pipelines.detect.run import load_run  # loads torch

    known = ready(name) if name in ready_names() else None
    if known:
        _demand_same(name, known, address, digest)
        address = known.address
        digest = known.archive
        if (ROOT / known.folder / "run.json").is_file():
            load_run(ready_run(name), "cpu")
            return ROOT / known.folder
    if not (address and digest):
        raise InputError(
            f"no address is known for '{name}'; give ADDRESS= and DIGEST=, the SHA-256 of its zip "
            "archive."
        )
    READY.mkdir(exist_ok=True)
    archive = READY / f"{name}.zip"
    download(address, digest, archive)
    folder = READY / name
    try:
        _unpack(archive, address, folder)
    except InputError:  # no run, and a second try would find none either
        archive.unlink()
        raise
    register(name, folder, address, digest)
    archive.unlink()
    return folder


def _demand_same(name: str, known: Ready, address: str | None, digest: str | None) -> None:
    """InputError for a run that is shipped, or another archive than the one of that name."""
    if not known.address:
        raise InputError(f"the run '{name}' is shipped with Norma; there is nothing to fetch.")
    if address not in (None, known.address) or digest not in (None, known.archive):
        raise InputError(
            f"{FOLDER / name}.yaml: names another archive as '{name}'; give another READY=, or "
            "delete that file."
        )


def _unpack(archive: Path, address: str, folder: Path) -> None:
    """Unpack a run, and put it in its place once it can be loaded; InputError for anything else."""
    from pipelines.detect.run import load_run

    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder.parent) as temporary:
        found = Path(temporary) / folder.name
        found.mkdir()
        try:
            with zipfile.ZipFile(archive) as file:
                for entry in file.infolist():
                    _unpack_entry(file, entry, found, address)
        except zipfile.BadZipFile as error:
            raise InputError(f"{address}: no zip archive of a run ({error}).") from None
        load_run(found, "cpu")
        if folder.exists():
            raise InputError(f"{folder}: is in the way; move it elsewhere.")
        shutil.move(found, folder)


def _unpack_entry(
    file: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, address: str
) -> None:
    """Write a file of a run below `folder`; in the archive it lies at the top, or in one folder."""
    if entry.is_dir():
        return
    path = PurePosixPath(entry.filename)
    if len(path.parts) > 2 or not (path.name in PARTS or path.suffix == ".png"):
        raise InputError(f"{address}: holds '{entry.filename}', which is no part of a run.")
    with file.open(entry) as source, open(folder / path.name, "wb") as target:
        shutil.copyfileobj(source, target)


def register(
    name: str, folder: Path, address: str | None = None, archive: str | None = None
) -> Path:
    """Write configs/ready/<name>.yaml for a run inside Norma's folder; gives the file."""
    data = str(read_history(folder).get("data", ""))
    known = dataset_of(data)
    found = Ready(
        folder=folder.resolve().relative_to(ROOT).as_posix(),
        digest=file_digest(folder / "run.json"),
        licence=known.licence if known else "other",
        trained_on=data,
        card=(folder / "README.md").resolve().relative_to(ROOT).as_posix(),
        address=address,
        archive=archive,
    )
    path = FOLDER / f"{name}.yaml"
    write_atomic(path, yaml.safe_dump(found.model_dump(exclude_none=True), sort_keys=False))
    return path


def run_folder(run: str | Path) -> Path:
    """The folder of a run that is named by its path, or a ready-made one by its modality."""
    path = Path(run)
    if not path.exists() and str(run) in ready_names():
        return ready_run(str(run))
    return path


def asked_run(run: str | None, modality: str | None) -> Path:
    """The folder of the run that a command names, or else of the ready-made one of a modality.

    InputError for a run of another modality than the one that is named beside it.
    """
    if not run:
        if not modality:
            raise InputError("give RUN=<run folder>, or MODALITY= for the ready-made run of it.")
        return ready_run(modality)
    folder = run_folder(run)
    own = read_recipe(folder).name if (folder / "recipe.yaml").is_file() else modality
    if modality and modality != own:
        raise InputError(
            f"RUN={run} is for scans of modality {own}, and MODALITY={modality} was given; "
            "leave one of the two out."
        )
    return folder
