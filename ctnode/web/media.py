"""Content negotiation of DICOMweb and multipart/related bodies that are made while they are sent (PS3.18 8.6, 8.7)."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MEDIA: Final = re.compile(r"[\w*+.-]+/[\w*+.-]+")
_CHUNK_BYTES: Final = 1 << 18
_HEADER_LIMIT: Final = 2048


@dataclass(frozen=True, slots=True)
class Media:
    """One media range that a client accepts, its parameters by lower-case name."""

    name: str
    parameters: dict[str, str]

    @property
    def inner(self) -> str:
        """Return the type of the parts of a multipart range, else the range itself; ``*/*`` where it is left open."""
        return self.parameters.get("type", "*/*").lower() if self.name == "multipart/related" else self.name

    @property
    def transfer_syntax(self) -> str:
        """Return the transfer syntax that is asked for, '' for none, ``*`` for any."""
        return self.parameters.get("transfer-syntax", "")


def accepted(header: str) -> list[Media]:
    """Return what an Accept header names, best first; what cannot be read is left out, nothing means anything."""
    found = []
    for piece in _split(header[:_HEADER_LIMIT], ","):
        name, *settings = (part.strip() for part in _split(piece, ";"))
        pairs = (setting.partition("=") for setting in settings)
        parameters = {key.strip().lower(): value.strip().strip('"') for key, _, value in pairs}
        try:
            weight = float(parameters.pop("q", "1"))
        except ValueError:
            weight = 1.0
        if weight > 0 and _MEDIA.fullmatch(name):
            found.append((weight, Media(name.lower(), parameters)))
    # Sorting keeps the order of equals.
    return [media for _, media in sorted(found, key=lambda one: -one[0])] or ([] if header.strip() else [ANYTHING])


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside quotes, in one pass: the header is a stranger's."""
    parts, quoted, begin = [], False, 0
    for at, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif letter == separator and not quoted:
            parts.append(text[begin:at])
            begin = at + 1
    return [*parts, text[begin:]]


ANYTHING: Final = Media("*/*", {})


def covers(media: Media, wanted: str) -> bool:
    """Return whether a range (its parts, for multipart) covers a media type."""
    inner = media.inner
    return inner in ("*/*", wanted) or (inner.endswith("/*") and wanted.startswith(inner[:-1]))


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a body: its type, and a file (whole, or ``length`` bytes from ``offset``) or bytes."""

    content_type: str
    path: Path | None = None
    offset: int = 0
    length: int = -1
    content: bytes = b""
    location: str = ""

    def size(self) -> int:
        """Return its length in bytes."""
        if self.path is None:
            return len(self.content)
        return self.path.stat().st_size if self.length < 0 else self.length

    def blocks(self) -> Iterator[bytes]:
        """Yield its bytes, never more than a few hundred kilobytes of a file at once."""
        if self.path is None:
            yield self.content
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = os.fstat(file.fileno()).st_size if self.length < 0 else self.length
            while left > 0 and (block := file.read(min(left, _CHUNK_BYTES))):
                left -= len(block)
                yield block
        if left > 0:
            # Better an answer that visibly breaks off than one that looks whole.
            raise OSError("a file ended before its part did")


class Multipart:
    """A multipart/related body (RFC 2387) out of parts that come one after the other."""

    def __init__(self, parts: Iterable[Part], inner: str) -> None:
        self._boundary = secrets.token_hex(16)
        self._parts = parts
        self.content_type = f'multipart/related; type="{inner}"; boundary={self._boundary}'

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body."""
        for part in self._parts:
            lines = [f"--{self._boundary}", f"Content-Type: {part.content_type}", f"Content-Length: {part.size()}"]
            if part.location:
                lines.append(f"Content-Location: {part.location}")
            yield ("\r\n".join(lines) + "\r\n\r\n").encode()
            yield from part.blocks()
            yield b"\r\n"
        yield f"--{self._boundary}--\r\n".encode()
