"""Files: atomic writing, tables, JSON, digests, spelling hints."""

from __future__ import annotations

import csv
import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from preprocessing.scans import InputError


def write_table(
    path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write dictionaries as a tab-separated table, atomically; None becomes an empty cell. `columns` by default those of the first row."""
    rows = iter(rows)
    if columns is None:
        first = next(rows, {})
        columns, rows = list(first), itertools.chain([first] if first else [], rows)
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(
            handle, delimiter="\t", lineterminator="\n"
        )  # quotes a cell that holds a quotation mark
        writer.writerow(columns)
        writer.writerows(
            ["" if r.get(c) is None else re.sub(r"[\t\r\n]+", " ", str(r[c])) for c in columns]
            for r in rows
        )


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV or TSV file as dictionaries of stripped strings."""
    return list(each_row(path))


def each_row(path: Path) -> Iterator[dict[str, str]]:
    """`read_table` row by row, for tables that are larger than memory should bear."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            for row in csv.DictReader(handle, delimiter=delimiter):
                yield {
                    (k or "").strip(): (v or "").strip()
                    for k, v in row.items()
                    if isinstance(v, (str, type(None)))
                }
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable {path.suffix} table ({error}).") from None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` at the end; on an error it goes, and an OSError names `path`."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = (
            str(path),
            None,
        )  # a full disk names no file, or one that the user never heard of
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it; nothing half-written stays behind."""
    with atomic(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(*parts: Any) -> str:
    """SHA-256 of values, as hexadecimal: of the canonical JSON of their list.

    Keys are sorted, nothing is spaced, NaN is null. A pydantic model counts as its JSON, a path as its text.
    """
    text = json.dumps(plain(parts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as "; did you mean 'vae_cr'?" or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""


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
    """`write_json` for results: what a top-level key holds stands on one line, and each entry of a list on one of its own."""
    lines = []
    for key, value in plain(content).items():
        if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            text = "[\n" + ",\n".join("  " + json.dumps(v, allow_nan=False) for v in value) + "\n ]"
        else:
            text = json.dumps(value, allow_nan=False)
        lines.append(f" {json.dumps(key)}: {text}")
    write_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")


def plain(value: Any) -> Any:
    """Only what JSON knows: dictionaries, lists, strings, finite numbers, null."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value if value is None or isinstance(value, str) else str(value)
