"""Read the images of a request: one as the body, or several in a form; in memory, within limits."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ..text import as_line

_FORM = "multipart/form-data"
_FIELDS = 16  # of a form, beside files
_FIELD = 4096  # bytes of one
_SHOWN = 200  # signs of a file's name in an answer

_HOW = "send one image as the body with its type, such as Content-Type: image/jpeg, or several in a form"


class Refusal(Exception):  # noqa: N818
    """Say why a request is not done, with its status; `retry` is in seconds."""

    def __init__(self, status: int, sentence: str, retry: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = {} if retry is None else {"retry-after": str(retry)}


class Held:
    """Count the bytes of all requests that are in memory, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.bytes = 0

    def take(self, size: int) -> None:
        if self.bytes + size > self._limit:
            raise Refusal(429, "the service holds as many bytes as it takes: try again", 1)
        self.bytes += size

    def give(self, size: int) -> None:
        self.bytes -= size


@dataclass
class Upload:
    """What a request brought.

    Attributes:
        files: (name, or None for a body without one; bytes).
        fields: the other fields of a form.
        size: bytes that are counted as held.
    """

    files: list[tuple[str | None, bytes]] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)
    size: int = 0


class _InMemory(MultiPartParser):
    """Starlette's parser, which would write files of more than 1 MB to the disk."""

    spool_max_size = sys.maxsize


def require_pictures(headers: Mapping[str, str], largest: int) -> str:
    """Check what the headers of a request say of its body, and return its media type.

    Raises:
        Refusal: it is too large (413), or not of a type that images have (415).
    """
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > largest:
        raise too_large(largest)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "a compressed body is not taken: send the image's file as it is")
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "image/svg+xml":
        raise Refusal(415, "drawings in SVG are not read: send pixels, such as a PNG")
    if media != _FORM and not media.startswith("image/") and media != "application/octet-stream":
        raise Refusal(415, f"{as_line(media[:60])} is no image: {_HOW}" if media else f"no Content-Type: {_HOW}")
    return media


def too_large(largest: int) -> Refusal:
    """Make the refusal of a body that is too large."""
    return Refusal(413, f"the request is larger than the {largest / 2**20:g} MB that are taken")


async def read_pictures(
    request: Request, media: str, upload: Upload, *, largest: int, most_files: int, held: Held
) -> None:
    """Fill an upload from a request's body.

    Raises:
        Refusal: it is too large (413), empty or malformed (400), has too many files (413), or memory is short (429).
        ClientDisconnect: the client has left.
    """

    async def chunks() -> AsyncGenerator[bytes, None]:
        async for chunk in request.stream():
            if upload.size + len(chunk) > largest:
                raise too_large(largest)
            held.take(len(chunk))
            upload.size += len(chunk)
            yield chunk

    if media == _FORM:
        await _read_form(request, chunks(), upload, most_files)
    else:
        data = bytearray()
        async for chunk in chunks():
            data += chunk
        if not data:
            raise Refusal(400, f"the body is empty: {_HOW}")
        upload.files.append((None, bytes(data)))


async def _read_form(request: Request, chunks: AsyncGenerator[bytes, None], upload: Upload, most_files: int) -> None:
    _, options = parse_options_header(request.headers["content-type"])
    if not options.get(b"boundary"):
        raise Refusal(400, "the form has no boundary in its Content-Type: leave that header to your HTTP library")
    parser = _InMemory(request.headers, chunks, max_files=most_files, max_fields=_FIELDS, max_part_size=_FIELD)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "many files" in error.message:
            raise Refusal(413, f"more than {most_files} files in one request") from error
        raise Refusal(400, f"the form cannot be read: {error.message}") from error
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                upload.files.append((as_line((value.filename or "")[:_SHOWN]) or None, await value.read()))
            else:
                upload.fields[name] = value
    finally:
        await form.close()
    if not upload.files:
        raise Refusal(400, "the form has no file: send each image as a field with a file name")
