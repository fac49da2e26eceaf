"""Zip files, unpacked with care: what they claim is judged first, and no name becomes a path."""

from __future__ import annotations

import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

MOST_FILES = 20_000  # a CT of the whole body in thin slices has some thousands
END = b"PK\x05\x06"
END_SIZE = 22
LONGEST_COMMENT = 2**16


class NotAnArchive(ValueError):
    """A zip file that is damaged, or holds what is not unpacked; the message says what."""


def is_zip(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a zip file."""
    return start.startswith((b"PK\x03\x04", END))


def unzip(path: Path, folder: Path, most_bytes: int) -> int:
    """Unpack a zip file into `folder` as 000000, 000001, …; how many files there are.

    Raises NotAnArchive where it holds more than 20,000 files or `most_bytes`, a link, an encrypted
    file, or a name that leads out of the folder.
    """
    _judge_end(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _judge(entries, most_bytes)
            for number, entry in enumerate(entries):
                with (
                    archive.open(entry) as packed,
                    open(folder / f"{number:06d}", "xb") as target,
                ):
                    shutil.copyfileobj(packed, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise NotAnArchive(f"a damaged zip file ({error}); make it again.") from None
    return len(entries)


def _judge_end(path: Path) -> None:
    """Refuse by the last record of a zip file, before its list of files is read into memory."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - LONGEST_COMMENT - END_SIZE))
        tail = file.read()
    place = tail.rfind(END)
    if place < 0 or len(tail) - place < END_SIZE:
        raise NotAnArchive("a damaged zip file (it has no end); make it again.")
    count = struct.unpack_from("<H", tail, place + 10)[0]
    large = tail[max(0, place - 20) : place].startswith(b"PK\x06\x07")
    if count > MOST_FILES or large:
        raise NotAnArchive(_too_many(count))


def _too_many(count: int) -> str:
    return f"it holds {count} files or more, expected at most {MOST_FILES}; send fewer at once."


def _judge(entries: list[zipfile.ZipInfo], most_bytes: int) -> None:
    """Refuse a list of files as a whole: nothing of it is unpacked then."""
    if len(entries) > MOST_FILES:
        raise NotAnArchive(_too_many(len(entries)))
    total = sum(entry.file_size for entry in entries)
    if total > most_bytes:
        raise NotAnArchive(
            f"it unpacks to {total / 1e6:.0f} MB, expected at most {most_bytes / 1e6:.0f} MB."
        )
    for entry in entries:
        parts = PurePosixPath(entry.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
            raise NotAnArchive("it holds a name that leads out of its folder; make it again.")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise NotAnArchive("it holds a link; put the files themselves into it.")
        if entry.flag_bits & 1:
            raise NotAnArchive("it is encrypted; send it without a password.")
