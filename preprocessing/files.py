"""Files: atomic writing, tables, JSON, digests, spelling hints."""

from __future__ import annotations

import codecs
import csv
import difflib
import errno
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

FORMULA = ("=", "+", "-", "@")  # what a spreadsheet takes for the start of a formula


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
        if isinstance(content, str):
            content = content.encode("utf-8", "backslashreplace")
        temporary.write_bytes(content)


def write_table(
    path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write dictionaries as a tab-separated table, atomically; None becomes an empty cell.

    `columns` are by default those of the first row. Bytes of a file name that are no UTF-8 are
    written as \\udcff, and `read_table` gives them back.
    """
    rows = iter(rows)
    if columns is None:
        first = next(rows, {})
        columns = list(first)
        rows = itertools.chain([first] if first else [], rows)

    with (
        atomic(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as handle,
    ):
        # the writer quotes a cell that holds a quotation mark
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row.get(name)) for name in columns])


def _cell(value: Any) -> str:
    """A value on one line, without tabs; text that a spreadsheet would run is quoted."""
    text = "" if value is None else re.sub(r"[\t\r\n]+", " ", str(value))
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV or TSV file as dictionaries of stripped strings; InputError if it is no table.

    Commas, semicolons or tabs, UTF-8 or UTF-16; rows without any text are skipped.
    """
    return list(each_row(path))


def each_row(path: Path) -> Iterator[dict[str, str]]:
    """`read_table` row by row, for tables too large for memory."""
    for _, row in _raw_rows(path):
        yield _stripped(row)


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """`each_row` with the line of each row, for a table that a person wrote.

    InputError where a row has more cells than there are columns.
    """
    for line, row in _raw_rows(path):
        beyond = [cell for cell in row.get(None) or () if cell.strip()]
        if beyond:
            raise InputError(
                f"{path}, line {line}: {len(row) - 1 + len(beyond)} cells for {len(row) - 1} "
                "columns; a cell that holds the separator, such as 1,5, must stand in quotes."
            )
        yield line, _stripped(row)


def _raw_rows(path: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The rows of a table that hold any text, as csv gives them, with their lines."""
    try:
        with open(path, newline="", encoding=_encoding(path)) as handle:
            lines = _text_lines(handle, path)
            skipped, header, mark = _header(lines, path)
            # strict: a quotation mark that is never closed would swallow all rows below it
            rows = csv.DictReader(itertools.chain([header], lines), delimiter=mark, strict=True)
            _check_columns([name.strip() for name in rows.fieldnames or ()], path)
            for row in rows:
                if any(_texts(row)):
                    yield rows.line_num + skipped, row
    except (UnicodeError, csv.Error) as error:
        raise InputError(
            f"{path}: not a readable {path.suffix} table ({error}); save it as UTF-8 text."
        ) from None


def _encoding(path: Path) -> str:
    """UTF-8 or UTF-16, by the first bytes; spreadsheets write both."""
    with open(path, "rb") as handle:
        first = handle.read(2)
    if first in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    if len(first) == 2 and 0 in first and any(first):
        return "utf-16-le" if first[1] == 0 else "utf-16-be"
    return "utf-8-sig"


def _text_lines(handle: Iterable[str], path: Path) -> Iterator[str]:
    """The lines of a table; InputError for a byte that no text has."""
    for number, line in enumerate(handle, start=1):
        if "\0" in line:
            raise InputError(
                f"{path}, line {number}: holds a NUL byte, which no table has; "
                "the file is damaged, export it again."
            )
        yield line


def _header(lines: Iterator[str], path: Path) -> tuple[int, str, str]:
    """The number of lines above the names of the columns, the line of these, and the separator."""
    for skipped, line in enumerate(lines):
        told = re.fullmatch(r'"?sep=(.)"?\s*', line)  # a line that Excel reads and writes
        if told:
            return skipped + 1, next(lines, ""), told[1]
        if line.strip():
            return skipped, line, _separator(line, path)
    return 0, "", ","


def _separator(header: str, path: Path) -> str:
    """Tab, semicolon or comma: what is between the names of the columns."""
    bare = re.sub(r'"[^"]*"', "", header)
    if "\t" in bare or not re.search("[;,]", bare):
        return "\t" if "\t" in bare or path.suffix.lower() == ".tsv" else ","
    return ";" if bare.count(";") > bare.count(",") else ","


def _check_columns(names: Sequence[str], path: Path) -> None:
    """Refuse two columns of one name: only one of them would be read."""
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice:
        raise InputError(f"{path}: two columns are named '{twice}'; name each column once.")


def _texts(row: dict[Any, Any]) -> Iterator[str]:
    """The text in the cells of a row, those beyond the last column included."""
    for cell in row.values():
        yield "".join(cell).strip() if isinstance(cell, list) else (cell or "").strip()


def _stripped(row: dict[Any, Any]) -> dict[str, str]:
    """A row of text alone: cells beyond the last column, which csv gives as a list, go."""
    cells = {k: v for k, v in row.items() if isinstance(v, (str, type(None)))}
    return {_restored((k or "").strip()): _restored((v or "").strip()) for k, v in cells.items()}


def _restored(cell: str) -> str:
    """A cell as it was before `write_table`: no quote before a formula, odd bytes of a name."""
    if cell.startswith("'") and cell[1:].startswith(FORMULA):
        cell = cell[1:]
    if "\\udc" not in cell:
        return cell
    return re.sub(r"\\udc[89a-f][0-9a-f]", lambda found: chr(int(found[0][2:], 16)), cell)


def walk(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Every file below `folder`, sorted, and what was passed over, by the reason.

    Linked folders are read too, each folder once. Hidden files and folders are passed over.
    """
    files: list[Path] = []
    passed: dict[str, list[Path]] = {}
    seen: set[str] = set()
    roots = [folder]
    while roots:
        root = roots.pop(0)
        real = os.path.realpath(root)
        if real in seen or _is_above(real, folder):
            passed.setdefault("links to a folder that is read already", []).append(root)
            continue
        roots += _walk_real(root, seen, files, passed)
    return sorted(files), passed


def _is_above(real: str, folder: Path) -> bool:
    """Whether a link leads to a folder that holds the one that is read."""
    home = os.path.realpath(folder)
    return real != home and os.path.commonpath([real, home]) == real


def _walk_real(
    root: Path, seen: set[str], files: list[Path], passed: dict[str, list[Path]]
) -> list[Path]:
    """Add the files below `root` to `files`; the linked folders there."""

    def refused(error: OSError) -> None:
        passed.setdefault("folders that may not be read", []).append(Path(error.filename))

    links: list[Path] = []
    for place, folders, names in os.walk(root, onerror=refused):
        seen.add(os.path.realpath(place))
        here = Path(place)
        hidden = [here / name for name in (*folders, *names) if name.startswith(".")]
        if hidden:
            passed.setdefault("hidden", []).extend(hidden)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links += [here / name for name in folders if (here / name).is_symlink()]
        for name in names:
            file = here / name
            if name.startswith("."):
                continue
            if file.is_symlink() and _leads_to_itself(file):
                passed.setdefault("links to themselves", []).append(file)
            else:
                files.append(file)
    return links


def _leads_to_itself(link: Path) -> bool:
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


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
    """`write_json` with a line per key, and one per entry of a list of entries.

    A dictionary within it has a line of its own, unless such a list lies in it.
    """
    write_atomic(path, _rows_text(plain(content), "") + "\n")


def _rows_text(value: Any, indent: str) -> str:
    deeper = indent + " "
    if isinstance(value, dict) and (not indent or _holds_entries(value)):
        lines = [f"{json.dumps(key)}: {_rows_text(held, deeper)}" for key, held in value.items()]
    elif _is_entries(value):
        lines = [json.dumps(entry, allow_nan=False) for entry in value]
    else:
        return json.dumps(value, allow_nan=False)
    opened, closed = ("{", "}") if isinstance(value, dict) else ("[", "]")
    body = f",\n{deeper}".join(lines)
    return f"{opened}\n{deeper}{body}\n{indent}{closed}"


def _is_entries(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict | list)


def _holds_entries(value: dict[str, Any]) -> bool:
    return any(
        _is_entries(held) or (isinstance(held, dict) and _holds_entries(held))
        for held in value.values()
    )


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
