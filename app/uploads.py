"""Uploads: a form's files go to the disk as they come in, and no further than a limit."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import HTTPException, Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

MOST_PARTS = 500
LONGEST_FIELD = 65536  # bytes of a field that is no file


def described(
    fields: dict[str, Any], required: Sequence[str] = (), needed: bool = True
) -> dict[str, Any]:
    """What OpenAPI is told of a form that `sent_form` reads; `needed`: no request goes without."""
    schema: dict[str, Any] = {"type": "object", "properties": fields}
    if required:
        schema["required"] = list(required)
    body: dict[str, Any] = {"content": {"multipart/form-data": {"schema": schema}}}
    if needed:
        body["required"] = True
    return {"requestBody": body}


@dataclass
class Form:
    """What a form held: fields by name, and its files as they were called by their sender."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, Path]] = field(default_factory=list)

    def remove(self) -> None:
        """Remove the files that nobody moved away."""
        for _, path in self.files:
            path.unlink(missing_ok=True)


class _Reader:
    """Takes the parts of a form from the parser: files to the disk, fields to memory."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder = folder
        self.most = most
        self.form = Form()
        self.ended = False
        self.header: list[bytes] = [b"", b""]
        self.headers: dict[str, bytes] = {}
        self.target: BinaryIO | None = None
        self.content = bytearray()
        self.name = ""
        self.size = 0
        self.parts = 0

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self.begin,
            "on_header_field": lambda data, a, b: self.more_header(0, data[a:b]),
            "on_header_value": lambda data, a, b: self.more_header(1, data[a:b]),
            "on_header_end": self.end_header,
            "on_headers_finished": self.open_part,
            "on_part_data": lambda data, a, b: self.more(data[a:b]),
            "on_part_end": self.end_part,
            "on_end": self.end,
        }

    def begin(self) -> None:
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise HTTPException(413, f"A form has at most {MOST_PARTS} parts; send fewer at once.")
        self.headers = {}
        self.header = [b"", b""]

    def more_header(self, place: int, data: bytes) -> None:
        self.header[place] += data
        if len(self.header[place]) > LONGEST_FIELD:
            raise HTTPException(400, "The form is damaged (a header without an end).")

    def end_header(self) -> None:
        self.headers[self.header[0].decode("latin-1").lower()] = self.header[1]
        self.header = [b"", b""]

    def open_part(self) -> None:
        _, options = parse_options_header(self.headers.get("content-disposition", b""))
        self.name = options.get(b"name", b"").decode(errors="replace")
        self.size = 0
        self.content = bytearray()
        self.target = None
        if b"filename" in options:
            shown = options[b"filename"].decode(errors="replace").replace("\\", "/")
            path = self.folder / f"{uuid.uuid4().hex}.part"
            # what the sender calls the file is shown to the sender, and never a path here
            self.form.files.append((_printable(shown.rpartition("/")[2]), path))
            self.target = open(path, "xb")  # noqa: SIM115 (closed at the end of the part)

    def more(self, data: bytes) -> None:
        self.size += len(data)
        if self.target:
            if self.size > self.most:
                raise HTTPException(
                    413, f"A file has at most {self.most / 1e6:.0f} MB; this one is larger."
                )
            self.target.write(data)
            return
        if self.size > LONGEST_FIELD:
            raise HTTPException(413, f"The field '{_printable(self.name)}' is too long.")
        self.content += data

    def end_part(self) -> None:
        if self.target:
            self.close()  # not brought to the disk: what is kept of it is written anew
        else:
            self.form.fields[self.name] = self.content.decode(errors="replace")

    def end(self) -> None:
        self.ended = True

    def close(self) -> None:
        if self.target:
            self.target.close()
            self.target = None


@asynccontextmanager
async def sent_form(request: Request) -> AsyncIterator[Form]:
    """The form of a request; the files that nobody moved away are gone at the end."""
    settings = request.app.state.settings
    form = await read_form(request, settings.data / "incoming", settings.max_upload)
    try:
        yield form
    finally:
        form.remove()


async def read_form(request: Request, folder: Path, most: int) -> Form:
    """The form of a request; its files lie in `folder` until `Form.remove`.

    413 where a file has more than `most` bytes, 400 for a damaged form, 415 for no form.
    """
    kind, options = parse_options_header(request.headers.get("Content-Type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise HTTPException(415, "Send a form (multipart/form-data).")
    reader = _Reader(folder, most)
    try:
        parser = MultipartParser(options[b"boundary"], reader.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
        parser.finalize()
        if not reader.ended:
            raise HTTPException(400, "The form is damaged: it has no end.")
    except (FormParserError, ValueError) as error:
        reader.close()
        reader.form.remove()
        raise HTTPException(400, f"The form is damaged ({error}).") from None
    except BaseException:  # the sender went away, say: nothing of it stays
        reader.close()
        reader.form.remove()
        raise
    return reader.form


def _printable(name: str) -> str:
    """A name for a message: short, on one line."""
    return "".join(c if c.isprintable() else "?" for c in name)[:100] or "the file"
