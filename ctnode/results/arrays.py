"""Arrays for programs: the network-ready ``.npy`` with its affine, and the slices as 16-bit PNG without loss."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt

from ctnode.ct import normalise
from ctnode.ct.grid import Grid
from ctnode.ops.durable import fsync_directory
from ctnode.results.sidecar import write_json

_Voxels = npt.NDArray[np.int16] | npt.NDArray[np.float32]
# Air becomes 0 with the first, as in most CT files; the second takes every int16.
_OFFSETS_HU: Final = (1024, 32768)
# A zip cannot do without a time; this is the first it knows.
_NO_TIME: Final = (1980, 1, 1, 0, 0, 0)


def write_normalised(
    path: Path, voxels: _Voxels, grid: Grid, *, dtype: str, clip_hu: tuple[float, float], mean: float
) -> None:
    """Write ``ct.normalise(voxels)`` to ``path`` as ``(z, y, x)`` ``.npy`` and where it lies to its ``.json``, fsynced.

    Parameters
    ----------
    path
        ``*.npy``; the JSON file has the same stem.
    voxels, grid
        ``(z, y, x)`` HU and where they lie, LPS.
    dtype
        ``float16`` or ``float32``, written little endian.
    clip_hu, mean
        As in ``ctnode.ct.normalise``; both stand in the JSON file.
    """
    little = np.dtype(dtype).newbyteorder("<")
    with _created(path) as file:
        header = {"descr": np.lib.format.dtype_to_descr(little), "fortran_order": False, "shape": voxels.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for plane in voxels:
            file.write(normalise(plane, clip_hu=clip_hu, mean=mean, dtype=dtype).astype(little, copy=False).tobytes())
        file.flush()
        os.fsync(file.fileno())
    mapping = {
        "file": path.name,
        "dtype": dtype,
        "axes": "z, y, x",
        "shape_zyx": list(grid.shape),
        "spacing_zyx_mm": list(grid.spacing_mm),
        "affine_lps_mm": grid.affine.tolist(),
        "clip_hu": list(clip_hu),
        "mean": mean,
        "formula": "(clip(HU, clip_hu[0], clip_hu[1]) - clip_hu[0]) / (clip_hu[1] - clip_hu[0]) - mean",
    }
    write_json(path.with_suffix(".json"), mapping)


def png_offset_hu(voxels: _Voxels) -> int | None:
    """Return what has to be added to ``voxels`` to make them 16-bit grey values without loss, None if nothing does."""
    if voxels.dtype != np.int16 and not all(bool((plane == np.rint(plane)).all()) for plane in voxels):
        return None
    lowest, highest = float(voxels.min()), float(voxels.max())
    return next((offset for offset in _OFFSETS_HU if lowest + offset >= 0 and highest + offset <= 65535), None)


def write_png_slices(path: Path, voxels: _Voxels, offset_hu: int, *, threads: int = 2) -> None:
    """Write each slice of ``voxels`` as 16-bit grey PNG of HU + ``offset_hu`` into the zip ``path``, fsynced.

    Names are ``0001.png`` and so on in the order of z; rows and columns as in the volume. The same input gives the
    same bytes.
    """

    def picture(plane: _Voxels) -> bytes:
        from PIL import Image

        content = io.BytesIO()
        shifted = (plane.astype(np.int32) + offset_hu).astype(np.uint16)
        Image.fromarray(shifted).save(content, format="PNG", compress_level=1)
        return content.getvalue()

    def pictures() -> Iterator[bytes]:
        # A few at a time, so that only they are held.
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(voxels), 4 * threads):
                yield from pool.map(picture, voxels[start : start + 4 * threads])

    with _created(path) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for number, content in enumerate(pictures(), start=1):
                archive.writestr(zipfile.ZipInfo(f"{number:04d}.png", _NO_TIME), content)
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(path.parent)


def _created(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644), "wb")
