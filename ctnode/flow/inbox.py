"""The watched folder: watchdog is the doorbell, the directory scan is the truth.

A file is read once it has kept size and time for ``inbox.settle_s``; a child imports it through the front door and
removes it. What cannot be imported is moved to ``rejected/`` beside a text that says why, and never tried again.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final

import structlog
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from ctnode.config import Config
from ctnode.ops import log

REJECTED: Final = "rejected"
RETRY_S: Final = 5.0
BATCH: Final = 500
NAME_BYTES: Final = 200

_Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    answers: IO[bytes]
    paths: list[Path]


class _Bell(FileSystemEventHandler):
    def __init__(self, ring: Callable[[], None]) -> None:
        self.ring = ring

    def on_any_event(self, event: FileSystemEvent) -> None:
        del event
        self.ring()


class Inbox:
    """The watched folder of one node; does nothing when ``inbox.path`` is empty."""

    def __init__(self, config: Config, wake: Callable[[], None]) -> None:
        self.config = config
        self._wake = wake
        self._seen: dict[Path, tuple[_Stamp, float]] = {}
        self._child: _Child | None = None
        self._pause_until = 0.0
        self._observer: object | None = None
        self._log: structlog.typing.FilteringBoundLogger = log.get()

    def __enter__(self) -> Inbox:
        if not self.config.inbox.path:
            return self
        folder = Path(self.config.inbox.path)
        folder.mkdir(parents=True, exist_ok=True)
        observer = Observer()
        observer.schedule(_Bell(self._wake), str(folder), recursive=True)
        observer.start()
        self._observer = observer
        return self

    def __exit__(self, _kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        if self._observer is not None:
            self._observer.stop()  # type: ignore[attr-defined]
            self._observer.join()  # type: ignore[attr-defined]
        if self._child is not None:
            self._child.process.wait()
            self._collect()

    def look(self) -> None:
        """Start or collect the child that imports; called at least once a second."""
        if not self.config.inbox.path:
            return
        self._collect()
        if self._child is None and time.monotonic() >= self._pause_until:
            settled = self._settled()
            if settled:
                self._start(settled)

    def _settled(self) -> list[Path]:
        now = time.monotonic()
        present: dict[Path, tuple[_Stamp, float]] = {}
        for path in _files(Path(self.config.inbox.path)):
            try:
                status = path.stat()
            except OSError:
                # Gone meanwhile, a link that leads nowhere or to itself, or not ours to see.
                continue
            if not stat.S_ISREG(status.st_mode):
                continue
            stamp = (status.st_size, status.st_mtime_ns)
            known = self._seen.get(path)
            present[path] = known if known is not None and known[0] == stamp else (stamp, now)
        self._seen = present
        ripe = [path for path, (_, since) in present.items() if now - since >= self.config.inbox.settle_s]
        return sorted(ripe)[:BATCH]

    def _start(self, paths: list[Path]) -> None:
        command = [sys.executable, "-P", "-m", "ctnode.flow.importing", "--root", str(self.config.root)]
        answers = tempfile.TemporaryFile(dir=self.config.root / "run")  # noqa: SIM115 - read when the child has ended
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=answers, stderr=subprocess.DEVNULL)
        self._child = _Child(process, answers, paths)
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as pipe:
            # A child that died at once has no answers; that is how it is noticed.
            pipe.write(json.dumps([str(path) for path in paths]).encode())

    def _collect(self) -> None:
        if self._child is None or self._child.process.poll() is None:
            return
        child, self._child = self._child, None
        with child.answers as file:
            file.seek(0)
            answers = [_parse(line) for line in file.read().splitlines()]
        told = {str(answer.get("path")): answer for answer in answers}
        for answer in answers:
            if "retry" in answer:
                self._pause_until = time.monotonic() + RETRY_S
                self._log.warning("inbox waits for storage", reason=str(answer["retry"]))
                return
        unanswered = [path for path in child.paths if str(path) not in told]
        for path in child.paths:
            self._seen.pop(path, None)
            answer = told.get(str(path), {})
            if answer and path.exists():
                reasons = answer.get("reasons")
                self._reject(path, "\n".join(reasons) if isinstance(reasons, list) else "")
        if unanswered and unanswered[0].exists():
            self._reject(unanswered[0], f"the importer ended with {child.process.returncode} while it read this file")
        self._log.info("inbox imported", count=sum(int(str(answer.get("imported", 0))) for answer in answers))

    def _reject(self, path: Path, reason: str) -> None:
        folder = Path(self.config.inbox.path) / REJECTED
        folder.mkdir(exist_ok=True)
        # A name may have 255 bytes, of any value.
        name = os.fsdecode(os.fsencode(path.name)[:NAME_BYTES])
        target = folder / f"{time.time_ns()}-{name}"
        path.rename(target)
        note = target.with_name(f"{target.name}.reason.txt")
        note.write_text(reason + "\n", encoding="utf-8", errors="backslashreplace")
        self._log.warning("inbox file rejected", count=1)


def _files(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        if Path(place) == folder and REJECTED in folders:
            folders.remove(REJECTED)
        found += [Path(place) / name for name in names if not name.startswith(".")]
    return found


def _parse(line: bytes) -> dict[str, object]:
    try:
        answer = json.loads(line)
    except ValueError:
        # The child was killed before it could answer; the file is still there and says so.
        return {}
    return answer if isinstance(answer, dict) else {}
