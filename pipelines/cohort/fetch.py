"""A public data set brought into a folder: files checked by digest, archives unpacked.

`fetched.json` beside the data holds the digest of each file as it came, so that a second fetch can
tell whether the set has changed where nobody publishes a digest.
"""

from __future__ import annotations

import logging
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.cohort.public import Dataset
from preprocessing.datasets import READERS
from preprocessing.download import PAUSE, download
from preprocessing.files import file_digest, read_json, write_json
from preprocessing.scans import InputError

RECORD = "fetched.json"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
ENOUGH = 3  # files in a row that fail: then the server or the whole set is gone

log = logging.getLogger("norma")


def described(name: str, known: Dataset) -> str:
    """What a user should know of a data set before accepting its licence."""
    checked = sum(bool(remote.digest) for remote in known.files)
    terms = f"; terms to agree to: {known.terms}" if known.terms else ""
    lines = [
        f"{name}: {known.title}",
        f"holds:    {known.holds}",
        f"size:     {known.size}",
        f"people:   {known.people}",
        f"licence:  {known.licence}{terms}",
        f"page:     {known.address}",
        f"to cite:  {known.citation}",
    ]
    if known.files and checked < len(known.files):
        lines.append(
            "check:    nobody publishes a digest of "
            f"{'these files' if not checked else 'some of these files'}, so that their bytes "
            f"cannot be checked; the digests that come are written to {RECORD}"
        )
    return "\n".join(lines)


def next_step(name: str, folder: str) -> str:
    """How a set's folder becomes a table, where Norma knows its layout."""
    command = f"make table DATASET={name} IN={folder} OUT=<table>.tsv"
    return f" List its scans with '{command}'." if name in READERS else ""


def fetch_dataset(
    name: str, known: Dataset, out: Path, accepted: bool, pause: float = PAUSE
) -> tuple[int, dict[str, str]]:
    """Bring the files of a data set to `out`: how many are there, and by name why one is not.

    InputError, before anything is asked of a server, where the set has to be asked for and where
    its licence was not accepted.
    """
    if not known.files:
        raise InputError(
            f"{name}: no command can fetch it; ask for it at {known.ask or known.address}."
            f"{next_step(name, '<folder>')}"
        )
    if not accepted:
        raise InputError(
            f"{name}: nothing was downloaded. Read the licence, and give ARGS=--accept-licence if "
            "you accept it."
        )
    record: dict[str, Any] = {}
    if (out / RECORD).is_file():
        record = read_json(out / RECORD)

    wanted: list[tuple[str, str, str]] = []
    for remote in known.files:
        wanted += [(address, file, remote.digest) for address, file in remote.files()]
    failed: dict[str, str] = {}
    in_a_row = 0
    for number, (address, file, digest) in enumerate(wanted):
        if in_a_row == ENOUGH:
            log.warning("%d files in a row failed: %d are not tried", ENOUGH, len(wanted) - number)
            failed |= {name: "not tried" for _, name, _ in wanted[number:]}
            break
        try:
            record[file] = _fetch_file(address, digest, out / file, record.get(file), pause)
            write_json(out / RECORD, record)
            in_a_row = 0
        except InputError as error:
            failed[file] = str(error)
            in_a_row += 1
            log.warning("not fetched: %s", error)
    return len(wanted) - len(failed), failed


def _fetch_file(
    address: str, digest: str, path: Path, before: dict[str, Any] | None, pause: float
) -> dict[str, Any]:
    """Bring a file, unpacked where it is an archive; what is to be remembered of it."""
    if before and _stands(path, before):
        return before
    if before and not digest and path.is_file():
        raise InputError(
            f"{path}: is not as it came on {before['fetched']}; move it away to fetch it again."
        )
    download(address, digest, path, pause)
    found = file_digest(path)
    if before and found != before["sha256"]:
        path.unlink()
        raise InputError(
            f"{address}: other bytes than came on {before['fetched']} (SHA-256 {found} now, "
            f"{before['sha256']} then); fetch a new version of the set into another folder."
        )
    entry: dict[str, Any] = {
        "address": address,
        "sha256": found,
        "bytes": path.stat().st_size,
        "checked": bool(digest),
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if _is_archive(path):
        entry["unpacked"] = _unpack(path)
        path.unlink()
    return entry


def _stands(path: Path, before: dict[str, Any]) -> bool:
    """Whether a file is as it came; of an archive, whether every file that was in it is there."""
    if "unpacked" not in before:
        return path.is_file() and file_digest(path) == before["sha256"]
    folder = _folder_of(path)
    files = {name: folder / name for name in before["unpacked"]}
    return all(f.is_file() and f.stat().st_size == before["unpacked"][n] for n, f in files.items())


def _is_archive(path: Path) -> bool:
    return path.name.endswith(ARCHIVES)


def _folder_of(archive: Path) -> Path:
    """Where an archive is unpacked: beside it, in a folder of its name."""
    ending = next(e for e in sorted(ARCHIVES, key=len, reverse=True) if archive.name.endswith(e))
    return archive.with_name(archive.name.removesuffix(ending))


def _unpack(archive: Path) -> dict[str, int]:
    """Unpack a zip or tar archive; bytes of each file by its way in the folder.

    InputError for a damaged archive, and for one that would write outside of its folder. It is
    removed, as a second try would find no other.
    """
    folder = _folder_of(archive)
    unpack: Callable[[Path, Path], None] = _unzip if archive.suffix == ".zip" else _untar
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=archive.parent) as temporary:
        place = Path(temporary) / folder.name
        place.mkdir()
        try:
            unpack(archive, place)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError) as error:
            archive.unlink()
            raise InputError(
                f"{archive.name}: no archive that can be unpacked ({error})."
            ) from None
        files = [path for path in sorted(place.rglob("*")) if path.is_file()]
        sizes = {path.relative_to(place).as_posix(): path.stat().st_size for path in files}
        for name in sizes:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (place / name).replace(target)
    return sizes


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)  # it drops roots and .. from names


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")  # no roots, no .., no devices, no links outside
