"""A form with files (multipart/form-data, RFC 7578), as browsers send it without a script: streamed into a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

FILES_LIMIT: Final = 1000
FIELD_BYTES: Final = 1024
NOT_OURS: Final = "this form is not of your session; go back, reload the page and try again"


class FormFiles:
    """Writes the files of one form down as its bytes come; names that the sender gave are dropped.

    Parameters
    ----------
    content_type
        The header, with the boundary.
    folder
        Where the files go, as ``upload-1``, ``upload-2``.
    field
        Name of the field that has to come before the first file.
    accepts
        Returns whether the value of that field lets the files in.

    Raises
    ------
    HTTPException
        If it cannot be read (400), or is no such form or the field is missing, late or wrong (403).
    """

    def __init__(self, content_type: str, folder: Path, field: str, accepts: Callable[[str], bool]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            # It cannot bring what proves whose it is.
            raise HTTPException(403, "this is no form with files")
        self.paths: list[Path] = []
        self._folder, self._field, self._accepts = folder, field.encode(), accepts
        self._is_accepted = False
        self._header = self._value = b""
        self._disposition = b""
        self._name = b""
        self._text = b""
        self._file: IO[bytes] | None = None
        self._is_whole = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin, "on_header_field": self._take_header, "on_header_value": self._take_value,
                "on_header_end": self._end_header, "on_headers_finished": self._open, "on_part_data": self._take,
                "on_part_end": self._end, "on_end": self._finish,
            },
        )  # fmt: skip

    def feed(self, piece: bytes) -> None:
        """Take some bytes of the body.

        Raises
        ------
        HTTPException
            As above.
        OSError
            If the disk takes nothing.
        """
        try:
            self._parser.write(piece)
        except FormParserError:
            raise HTTPException(400, "the form cannot be read") from None

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def require_whole(self) -> None:
        """Refuse a form that was cut off (400), or that the field has not let in (403).

        Raises
        ------
        HTTPException
            If its end or the field has not come.
        """
        if not self._is_accepted:
            raise HTTPException(403, NOT_OURS)
        if not self._is_whole:
            raise HTTPException(400, "the upload was broken off; nothing of it was taken")

    def _begin(self) -> None:
        self._disposition = self._header = self._value = self._text = self._name = b""

    def _take_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"")
        if b"filename" not in options:
            return
        if not self._is_accepted:
            raise HTTPException(403, NOT_OURS)
        if len(self.paths) >= FILES_LIMIT:
            raise HTTPException(413, f"more than {FILES_LIMIT} files are not taken at once; zip them")
        self.paths.append(self._folder / f"upload-{len(self.paths) + 1}")
        self._file = self.paths[-1].open("wb")

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
        elif len(self._text) + end - start <= FIELD_BYTES:
            self._text += data[start:end]
        else:
            raise HTTPException(400, "a field of the form is too long")

    def _end(self) -> None:
        if self._file is not None:
            self.close()
            if not self.paths[-1].stat().st_size:
                # A browser sends an empty file where none was chosen.
                self.paths.pop().unlink()
        elif self._name == self._field:
            self._is_accepted = self._accepts(self._text.decode("utf-8", "replace"))

    def _finish(self) -> None:
        self._is_whole = True
