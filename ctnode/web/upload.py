"""Files through the front door from a browser: streamed to a file of the root, imported by a child.

A foreign file is untrusted: this process writes its bytes down and reads none of them.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from ctnode.archive.layout import Layout
from ctnode.web.context import WebNode
from ctnode.web.forms import FormFiles
from ctnode.web.overview import disks
from ctnode.words import StorageError

UPLOAD_PATH: Final = "/api/v1/upload"
FORM_PATH: Final = "/upload"
DOOR: Final = "upload"
AT_ONCE: Final = 2
IMPORT_LIMIT_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What became of one upload: how many objects are in the journal now, and why others are not."""

    imported: int
    reasons: tuple[str, ...]


def sweep(layout: Layout) -> None:
    """Remove what an earlier process left of uploads that it did not finish."""
    for folder in layout.run.glob("upload-*"):
        shutil.rmtree(folder, ignore_errors=True)


class Uploads:
    """The uploads of one node, a few at a time."""

    def __init__(self, node: WebNode) -> None:
        self._node = node
        self._places = asyncio.Semaphore(AT_ONCE)

    async def take(self, request: Request) -> Uploaded:
        """Write the body down and import it; it is durable in the journal when this returns.

        Raises
        ------
        StorageError
            If the storage takes nothing.
        HTTPException
            If the sender left (400), or the body is larger than it may be (413).
        """
        async with self._places:
            self._require_room(request)
            with tempfile.TemporaryDirectory(prefix="upload-", dir=self._node.layout.run) as folder:
                path = Path(folder) / "upload"
                with path.open("wb") as file:
                    await self._write(request, file.write)
                if not path.stat().st_size:
                    raise HTTPException(400, "the upload is empty")
                return await self._import([path])

    async def take_form(self, request: Request, field: str, accepts: Callable[[str], bool]) -> Uploaded:
        """Take the files of a form, whose ``field`` has to come first and be accepted.

        Raises
        ------
        StorageError
            If the storage takes nothing.
        HTTPException
            If the sender left or it is no such form (400), the field is wrong (403), or it is too large (413).
        """
        async with self._places:
            self._require_room(request)
            with tempfile.TemporaryDirectory(prefix="upload-", dir=self._node.layout.run) as folder:
                form = FormFiles(request.headers.get("content-type", ""), Path(folder), field, accepts)
                with closing(form):
                    await self._write(request, form.feed)
                form.require_whole()
                if not form.paths:
                    raise HTTPException(400, "no file was chosen")
                return await self._import(form.paths)

    def _require_room(self, request: Request) -> None:
        """Refuse what would take the room that is kept for the receiver."""
        length = request.headers.get("content-length", "0")
        announced = int(length) if length.isdigit() else 0
        for disk in disks(self._node.config, self._node.layout)[:1]:
            # Once as it comes, once as it is kept.
            if disk.is_low or disk.free_bytes - 2 * announced <= disk.reserve_bytes:
                raise StorageError("there is not room enough for this upload", hint="free space, see `ctnode doctor`")

    async def _write(self, request: Request, write: Callable[[bytes], object]) -> None:
        limit = self._node.config.web.max_upload_mb << 20
        count = 0
        try:
            async for piece in request.stream():
                count += len(piece)
                if count > limit:
                    raise HTTPException(413, f"more than {limit >> 20} MB are not taken here")
                if piece:
                    await asyncio.to_thread(_take, write, piece)
        except ClientDisconnect:
            raise HTTPException(400, "the upload was broken off; nothing of it was taken") from None

    async def _import(self, paths: Sequence[Path]) -> Uploaded:
        layout = self._node.layout
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "ctnode.flow.importing", "--root", str(layout.root), "--door", DOOR,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            said, _ = await asyncio.wait_for(
                process.communicate(json.dumps([*map(str, paths)]).encode()), IMPORT_LIMIT_S
            )
        except (TimeoutError, asyncio.CancelledError):
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        answers = [_parse(line) for line in said.splitlines()]
        if any("retry" in answer for answer in answers):
            raise StorageError("the storage takes nothing at the moment", hint="see `ctnode doctor`")
        shown: list[str] = []
        for answer in answers:
            reasons = answer.get("reasons")
            if isinstance(reasons, list):
                # What stands below the folder is "upload", or in a form "upload-1" and so on.
                shown += [str(one).replace(f"{paths[0].parent}/", "") for one in reasons]
        if len(answers) < len(paths):
            shown.append(f"{paths[len(answers)].name} ended its reader; nothing of it and of what follows was taken")
        return Uploaded(sum(int(str(answer.get("imported", 0))) for answer in answers), tuple(shown))


def _take(write: Callable[[bytes], object], piece: bytes) -> None:
    try:
        write(piece)
    except OSError as error:
        raise StorageError(f"storage failed: {error.strerror}", hint="see `ctnode doctor`") from error


def _parse(line: bytes) -> dict[str, object]:
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
