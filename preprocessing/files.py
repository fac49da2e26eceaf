"""Files: atomic writing, tables, JSON, digests, spelling hints."""

from __future__ import annotations

import csv
import difflib
import hashlib
import itertools
import json
import math
import os
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from preprocessing.scans import InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which becomes `path` at the end.

    After an error nothing stays behind; an OSError names `path`. The name is this process's own.
    """
    temporary = path.with_name(f"{_own_prefix()}{path.name}"[-255:])
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        # a full disk names no file, or the temporary one, which the user does not know
        error.filename = str(path)
        error.filename2 = None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _own_prefix() -> str:
    return f".tmp-{socket.gethostname()}-{os.getpid()}-"


def remove_left_behind(folder: Path) -> None:
    """Remove temporary files below `folder` whose process was killed on this machine."""
    host = re.escape(socket.gethostname())
    for path in folder.rglob(".tmp-*"):
        found = re.match(rf"\.tmp-{host}-(\d+)-", path.name)
        if found and not _is_alive(int(found[1])) and path.is_file():
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it."""
    with atomic(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_table(
    path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write dictionaries as a tab-separated table, atomically; None becomes an empty cell.

    `columns` are by default those of the first row.
    """
    rows = iter(rows)
    if columns is None:
        first = next(rows, {})
        columns = list(first)
        rows = itertools.chain([first] if first else [], rows)

    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        # the writer quotes a cell that holds a quotation mark
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row.get(name)) for name in columns])


def _cell(value: Any) -> str:
    """A value on one line, without tabs."""
    return "" if value is None else re.sub(r"[\t\r\n]+", " ", str(value))


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV or TSV file as dictionaries of stripped strings; InputError if it is no table."""
    return list(each_row(path))


def each_row(path: Path) -> Iterator[dict[str, str]]:
    """`read_table` row by row, for tables too large for memory."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            for row in csv.DictReader(handle, delimiter=delimiter):
                yield _stripped(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable {path.suffix} table ({error}).") from None


def _stripped(row: dict[str, Any]) -> dict[str, str]:
    """A row of text alone: cells beyond the last column, which csv gives as a list, go."""
    cells = {k: v for k, v in row.items() if isinstance(v, (str, type(None)))}
    return {(k or "").strip(): (v or "").strip() for k, v in cells.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; InputError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error}).") from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN becomes null, numpy numbers become numbers."""
    write_atomic(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def write_rows(path: Path, content: dict[str, Any]) -> None:
    """`write_json` with a line per top-level key, and one per entry of a list of entries."""
    lines = []
    for key, value in plain(content).items():
        if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            text = "[\n" + ",\n".join("  " + json.dumps(v, allow_nan=False) for v in value) + "\n ]"
        else:
            text = json.dumps(value, allow_nan=False)
        lines.append(f" {json.dumps(key)}: {text}")
    write_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")


def plain(value: Any) -> Any:
    """Only what JSON knows: dictionaries, lists, strings, finite numbers, null.

    A pydantic model becomes its JSON, a number that is not finite null, anything else its text.
    """
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json", serialize_as_any=True))
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    # arrays and numbers of numpy, which commands that import this file need not load
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(*parts: Any) -> str:
    """SHA-256 of values, as hexadecimal: that of the canonical JSON of their list.

    Keys are sorted and nothing is spaced; what is no JSON becomes `plain` first.
    """
    text = json.dumps(plain(parts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as "; did you mean 'vae_cr'?" or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""
