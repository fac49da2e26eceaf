"""A file from an address: resumed where it was broken off, refused unless its digest is right.

pooch checks digests too, but begins a broken download anew (1.9.0).
"""

from __future__ import annotations

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from preprocessing.scans import InputError

DIGESTS = {"sha256": 64, "md5": 32}  # hexadecimal digits of each
CHUNK = 1 << 18
TIMEOUT = 30  # seconds without a byte
TRIES = 5  # in a row that bring no byte
PAUSE = 1.0  # seconds before the second of them; twice as many before each further one
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that a later try may better
NOTHING_LEFT = 416
LINE_FAULTS = (OSError, http.client.HTTPException)


def download(address: str, digest: str, path: Path, pause: float = PAUSE) -> None:
    """Bring the file at an http(s) `address` to `path`.

    `digest` is "sha256:<64 digits>" or "md5:<32 digits>"; 64 digits alone are a SHA-256. "" says
    that nobody knows one: then a file that is there counts as whole, and what came before a line
    broke is gone on with only where the server says that its file is still the same (ETag).

    What came before a line broke stays beside `path`, and the next call goes on there. InputError
    for an address that gives no file, a line that breaks again and again, and a file with another
    digest, which is removed.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise InputError(f"{address}: expected an address that begins with https:// or http://.")
    kind, wanted = split_digest(digest)
    if path.is_file() and (not wanted or digest_of_kind(path, kind) == wanted):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{wanted[:8] or 'unchecked'}.part")
    _until_whole(address, part, pause, checked=bool(wanted))
    found = digest_of_kind(part, kind) if wanted else ""
    if found != wanted:
        part.unlink()
        raise InputError(
            f"{address}: not the file that was asked for; its {kind} is {found}, expected "
            f"{wanted}. It was removed. Ask for the right digest where the address is from."
        )
    part.replace(path)
    _etag_of(part).unlink(missing_ok=True)


def split_digest(digest: str) -> tuple[str, str]:
    """The kind of a digest and its digits; InputError for what is none."""
    kind, _, digits = digest.rpartition(":")
    kind = kind or "sha256"
    known = kind in DIGESTS and re.fullmatch(f"[0-9a-f]{{{DIGESTS[kind]}}}", digits)
    if digest and not known:
        raise InputError(
            f"digest '{digest}': expected a SHA-256, 64 digits from 0 to f, or md5: and 32 digits."
        )
    return kind, digits


def digest_of_kind(path: Path, kind: str) -> str:
    """The digest of a file's bytes as hexadecimal; `kind` is one of `DIGESTS`."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, kind).hexdigest()


def _until_whole(address: str, part: Path, pause: float, checked: bool) -> None:
    """Receive until nothing is left; InputError after TRIES in a row without a byte."""
    failed = 0
    while True:
        before = _size(part)
        fault = _receive(address, part, checked)
        if not fault:
            return
        failed = 0 if _size(part) > before else failed + 1
        if failed == TRIES:
            raise InputError(
                f"{address}: {fault}, {TRIES} times in a row; {_size(part)} bytes came and are "
                "kept: run the same command again to go on."
            )
        if failed:
            time.sleep(pause * 2 ** (failed - 1))


def _receive(address: str, part: Path, checked: bool) -> str:
    """Add to `part` what one answer brings; why it broke off, or "" where nothing is left.

    Where no digest will be `checked` the server is asked for the rest of the same file alone.
    """
    same = _etag_of(part)
    if not (checked or same.is_file()):
        part.unlink(missing_ok=True)  # two versions of a file might be joined, and nobody would see
    start = _size(part)
    wanted = {"Range": f"bytes={start}-"} if start else {}
    if start and not checked:
        wanted["If-Range"] = same.read_text()
    request = urllib.request.Request(address, headers={"User-Agent": "norma"} | wanted)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if start and error.code == NOTHING_LEFT:
            return ""
        if error.code in PASSING:
            return f"the server answered {error.code}"
        raise InputError(
            f"{address}: the server answered {error.code} ({error.reason}); is the address right?"
        ) from None
    except LINE_FAULTS as error:
        return f"it cannot be reached ({error})"

    with answer:
        sent = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if answer.status == http.client.PARTIAL_CONTENT and not (sent and int(sent[1]) == start):
            part.unlink(missing_ok=True)
            return "the server sent another part than was asked for"
        if answer.status != http.client.PARTIAL_CONTENT:
            start = 0  # a server without ranges begins anew
        etag = answer.headers.get("ETag", "")
        if etag.startswith('"') and not checked:  # W/ names a meaning, not bytes
            same.write_text(etag)
        length = answer.headers.get("Content-Length")
        return _write(answer, part, start, int(length) if length else None)


def _write(answer: http.client.HTTPResponse, part: Path, start: int, length: int | None) -> str:
    """`_receive` of an answer that is open: `length` bytes to lie from `start` on."""
    total = None if length is None else start + length
    bar = tqdm(initial=start, total=total, desc=part.name, unit="B", unit_scale=True)
    with bar, open(part, "ab" if start else "wb") as handle:
        while True:
            try:
                block = answer.read(CHUNK)
            except LINE_FAULTS as error:
                return f"the line broke ({error})"
            if not block:
                break
            handle.write(block)  # a full disk is no fault of the line
            bar.update(len(block))
    return "" if total in (None, _size(part)) else "the line broke"


def _etag_of(part: Path) -> Path:
    """Where the server's own name for the bytes of a part lies."""
    return part.with_name(f"{part.name}.etag")


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
