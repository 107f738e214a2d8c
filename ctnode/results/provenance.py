"""What ``ct.json`` says of how results came to be: the versions of what made them, the digests of what was written."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

# What can change a voxel, a number or a byte of a result.
_PACKAGES: Final = (
    "ctnode", "numpy", "scipy", "scikit-image", "connected-components-3d", "fill-voids", "edt", "pydicom",
    "python-gdcm", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "highdicom", "Pillow", "isal",
)  # fmt: skip


@cache
def versions() -> dict[str, str]:
    """Return the version of Python and of each package that shapes results, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def digests(files: Iterable[Path], *, threads: int = 2) -> dict[str, str]:
    """Return the SHA-256 of each file, hex, by its name in alphabetical order."""
    ordered = sorted(files, key=lambda file: file.name)
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip((file.name for file in ordered), pool.map(_digest, ordered), strict=True))


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
