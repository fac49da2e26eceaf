"""Columns in gzipped CSV: many rows in few bytes, with every digit of their numbers."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from preprocessing.files import write_atomic
from preprocessing.scans import InputError


class Table(BaseModel):
    """A written table: its number of rows, and the SHA-256 of its text before compression.

    The digest is of the text, as two versions of zlib may compress one text to different bytes.
    """

    rows: int
    sha256: str


def write_columns(path: Path, names: Sequence[str], rows: Iterable[dict[str, Any]]) -> Table:
    """Write rows as gzipped CSV with these columns; None and a missing value are an empty cell.

    ValueError where a row holds anything else. The bytes name no time and no file.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    count = 0
    for row in rows:
        writer.writerow({name: cell(value) for name, value in row.items()})
        count += 1

    text = buffer.getvalue().encode()
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as handle:
        handle.write(text)
    write_atomic(path, packed.getvalue())
    return Table(rows=count, sha256=hashlib.sha256(text).hexdigest())


def read_columns(path: Path, is_text: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """The rows of a table: texts where `is_text` says so of a column's name, else numbers or None.

    InputError where the file is missing or damaged.
    """
    try:
        lines = csv.reader(io.StringIO(_text(path).decode()))
        names = next(lines)
        texts = [is_text(name) for name in names]
        for cells in lines:
            row: dict[str, Any] = {}
            for name, text, value in zip(names, texts, cells, strict=True):
                row[name] = value if text else number(value)
            yield row
    except (ValueError, StopIteration, csv.Error) as error:
        raise InputError(f"{path}: not the columns of a results folder ({error}).") from None


def digest_of_columns(path: Path) -> str:
    """The SHA-256 of a table's text, as `Table` holds it."""
    return hashlib.sha256(_text(path)).hexdigest()


def cell(value: Any) -> str:
    """A text as it is, a number as in JSON, true and false as 1 and 0, None as nothing."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(int(value) if isinstance(value, bool) else value, allow_nan=False)


def number(text: str) -> int | float | None:
    """The number of a cell, whole where it is written so; None for an empty cell."""
    if not text:
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _text(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a readable gzip file ({error}).") from None
