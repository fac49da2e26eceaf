"""A file from an address: resumed where it was broken off, refused unless its digest is right.

pooch checks digests too, but begins a broken download anew (1.9.0).
"""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from preprocessing.files import file_digest
from preprocessing.scans import InputError

CHUNK = 1 << 18
TIMEOUT = 30  # seconds without a byte
TRIES = 5  # in a row that bring no byte
PAUSE = 1.0  # seconds before the second of them; twice as many before each further one
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that a later try may better
NOTHING_LEFT = 416
LINE_FAULTS = (OSError, http.client.HTTPException)


def download(address: str, digest: str, path: Path, pause: float = PAUSE) -> None:
    """Bring the file at an http(s) `address` to `path`; `digest` is its SHA-256.

    What came before a line broke stays beside it, and the next call goes on there. InputError for
    an address that gives no file, a line that breaks again and again, and a file with another
    digest, which is removed.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise InputError(f"{address}: expected an address that begins with https:// or http://.")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise InputError(f"digest '{digest}': expected a SHA-256, 64 digits from 0 to f.")
    if path.is_file() and file_digest(path) == digest:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{digest[:8]}.part")
    _until_whole(address, part, pause)
    found = file_digest(part)
    if found != digest:
        part.unlink()
        raise InputError(
            f"{address}: not the file that was asked for; its SHA-256 is {found}, expected "
            f"{digest}. It was removed. Ask for the right digest where the address is from."
        )
    part.replace(path)


def _until_whole(address: str, part: Path, pause: float) -> None:
    """Receive until nothing is left; InputError after TRIES in a row without a byte."""
    failed = 0
    while True:
        before = _size(part)
        fault = _receive(address, part)
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


def _receive(address: str, part: Path) -> str:
    """Add to `part` what one answer brings; why it broke off, or "" where nothing is left."""
    start = _size(part)
    wanted = {"Range": f"bytes={start}-"} if start else {}
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


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
