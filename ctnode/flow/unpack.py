"""What a user points at, as plain files: folders walked, zips unpacked within bounds."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

_COPY_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """One file to look at.

    Parameters
    ----------
    path
        Where its bytes lie now.
    folder
        What it lay in before, also inside a zip; files without UIDs are grouped by it.
    """

    path: Path
    folder: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, or an entry of a zip, that was not taken, and why."""

    name: str
    reason: str


def find(paths: Sequence[Path], scratch: Path) -> Iterator[Found | Skipped]:
    """Yield every regular file under ``paths`` in a fixed order; zips are unpacked into ``scratch``.

    Links to folders are not followed, so a walk ends; a zip inside a zip is a file like any other.
    """
    for path in paths:
        if path.is_dir():
            for folder, names, files in os.walk(path):
                names.sort()
                for name in sorted(files):
                    yield from _one(Path(folder, name), scratch)
        elif path.exists():
            yield from _one(path, scratch)
        else:
            yield Skipped(str(path), "does not exist")


def _one(path: Path, scratch: Path) -> Iterator[Found | Skipped]:
    if not path.is_file():
        yield Skipped(str(path), "not a regular file")
    elif zipfile.is_zipfile(path) and not is_part10(path):
        yield from _unpack(path, scratch)
    else:
        yield Found(path, str(path.parent.resolve()))


def is_part10(path: Path) -> bool:
    """Return whether a file begins as DICOM; what does is DICOM, even if the end of a zip hangs on it."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _unpack(
    path: Path,
    scratch: Path,
    *,
    most_entries: int = 200_000,
    most_bytes: int = 64 << 30,
    most_ratio: int = 200,
    ratio_from_bytes: int = 10 << 20,
) -> Iterator[Found | Skipped]:
    """Unpack a zip under names of our own, so no entry chooses where it lands.

    Sizes are counted while they are written: what the directory of a zip declares is only a claim.
    """
    inside = scratch / f"zip{sum(1 for _ in scratch.iterdir())}"
    inside.mkdir()
    left_bytes = most_bytes
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > most_entries:
                yield Skipped(str(path), f"holds more than {most_entries} entries")
                return
            for number, entry in enumerate(entries):
                name = f"{path}!{entry.filename}"
                if entry.flag_bits & 1:
                    yield Skipped(name, "encrypted")
                    continue
                limit = min(left_bytes, max(ratio_from_bytes, entry.compress_size * most_ratio))
                target = inside / str(number)
                with archive.open(entry) as source:
                    count = _copy(source, target, limit)
                if count is None:
                    target.unlink()
                    yield Skipped(name, "larger than a zip entry may become")
                    continue
                left_bytes -= count
                yield Found(target, f"{path.resolve()}!{entry.filename.rpartition('/')[0]}")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as fault:
        yield Skipped(str(path), f"damaged zip: {type(fault).__name__}")


def _copy(source: IO[bytes], target: Path, limit: int) -> int | None:
    count = 0
    with target.open("wb") as file:
        while block := source.read(_COPY_BYTES):
            count += len(block)
            if count > limit:
                return None
            file.write(block)
    return count
