"""A results folder appears whole under its name, or not at all; what stood there before is moved aside first."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from ctnode.ops.durable import crash_point, fsync_directory, make_directories

TEMPORARY = ".tmp-"
ASIDE = ".old-"


def prepare(final: Path, *, below: Path, job: int, attempt: int) -> Path:
    """Return an empty folder beside ``final`` for one attempt, after cleaning up behind those that died.

    An attempt that died between moving the old folder aside and publishing left the old one under its other name: it
    is put back first.
    """
    make_directories(final.parent, below=below)
    for left in sorted(final.parent.glob(f"{TEMPORARY}*")):
        shutil.rmtree(left)
    for left in sorted(final.parent.glob(f"{ASIDE}{final.name}-*")):
        if final.exists():
            shutil.rmtree(left)
        else:
            left.rename(final)
    folder = final.parent / f"{TEMPORARY}{job}-{attempt}"
    folder.mkdir(mode=0o700)
    return folder


def publish(folder: Path, final: Path) -> Path | None:
    """Give ``folder`` its name; return where the folder that stood there is now, to be removed after the commit."""
    fsync_directory(folder)
    crash_point("worker.before-publish")
    aside = None
    if final.exists():
        aside = final.with_name(f"{ASIDE}{final.name}-{folder.name.removeprefix(TEMPORARY)}")
        final.rename(aside)
        crash_point("worker.between-renames")
    folder.rename(final)
    fsync_directory(final.parent)
    crash_point("worker.before-commit")
    return aside


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file, hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
