"""A folder as a destination: each file appears whole under its name and survives a power cut, or does not appear."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ctnode.ops.durable import fsync_directory, make_directories, sync
from ctnode.wire.sender import Outcome, SendResult


def put(folder: Path, files: Sequence[tuple[Path, str]]) -> Iterator[SendResult]:
    """Copy files below ``folder``, each under its relative name.

    The folder itself is never made: an empty mount point is not the share that is meant.

    Yields
    ------
    SendResult
        One for each file; an error of the storage is ``RETRY`` for the first and ``UNTRIED`` for the others.
    """
    fault = "" if folder.is_dir() else "the folder is not there"
    for source, name in files:
        if fault:
            yield SendResult(source, Outcome.UNTRIED, None, fault, is_fault=True)
            continue
        try:
            is_new = _put(folder, source, name)
        except FileNotFoundError:
            yield SendResult(source, Outcome.DEAD, None, "the file is gone")
        except OSError as error:
            fault = f"the folder takes no files: {(error.strerror or type(error).__name__).lower()}"
            yield SendResult(source, Outcome.RETRY, None, fault, is_fault=True)
        else:
            yield SendResult(source, Outcome.SENT, 0, "" if is_new else "these very bytes were there")


def _put(folder: Path, source: Path, name: str) -> bool:
    final = folder / name
    with source.open("rb") as reading:
        if final.is_file() and filecmp.cmp(source, final, shallow=False):
            # It may be there since a crash that came before the sync.
            _sync(final)
            return False
        make_directories(final.parent, below=folder)
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as writing:
                shutil.copyfileobj(reading, writing, 1 << 20)
                writing.flush()
                sync(writing.fileno())
            temporary.replace(final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    fsync_directory(final.parent)
    return True


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        sync(opened.fileno())
    fsync_directory(file.parent)
