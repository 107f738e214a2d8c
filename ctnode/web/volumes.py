"""Planes out of published NIfTI files: alone where they lie as they are shown, else out of the whole, unpacked once.

Our files have an index, so a plane as it is stored takes milliseconds. One across them needs everything, which takes
most of a second for a hundred megabytes; it is unpacked in the background, and what came from elsewhere or from before
there was an index gives each plane as soon as its bytes are there. What is unpacked lies in unlinked files below
``run/``: nothing of it survives the role, and the page cache may drop it.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import shutil
import struct
import tempfile
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from ctnode.results.indexed_gzip import Damaged, Index, read_chunk, read_index

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: Final[tuple[Plane, ...]] = ("axial", "coronal", "sagittal")

_HEADER_BYTES: Final = 352
_MAGIC: Final = b"n+1\0"
# The types that results/nifti.py writes.
_DTYPES: Final[dict[int, np.dtype[Any]]] = {2: np.dtype("u1"), 4: np.dtype("<i2"), 16: np.dtype("<f4")}
_CHUNK_BYTES: Final = 1 << 20
_LARGEST_BYTES: Final = 4 << 30
_GZIP: Final = 31
_BadGzip: Any = isal_zlib.error
_PATIENCE_S: Final = 60.0
# Columns run to the patient's left, rows to the back, planes to the head: in LPS all of them grow.
_LPS: Final = np.diag([-1.0, -1.0, 1.0])


class NoVolume(Exception):
    """There is no such volume or plane, or it cannot be shown; the text says why."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the voxels of a file lie.

    Parameters
    ----------
    shape
        Voxels along columns (to the patient's left), rows (to the back) and planes (to the head).
    matrix
        Three rows of four: from such indices to the centre of a voxel in LPS millimetres.
    order, flips
        For each of these axes the axis of the ``(z, y, x)`` array and whether it runs the other way.
    stored
        Shape of the array, ``(z, y, x)``.
    """

    shape: tuple[int, int, int]
    matrix: tuple[tuple[float, ...], ...]
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    stored: tuple[int, int, int]
    dtype: np.dtype[Any]
    start: int

    @property
    def size_bytes(self) -> int:
        """Return how long the file is when it is unpacked."""
        return self.start + math.prod(self.stored) * self.dtype.itemsize

    @property
    def plane_bytes(self) -> int:
        """Return the bytes of a plane as it is stored."""
        return self.stored[1] * self.stored[2] * self.dtype.itemsize

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Return the distances of neighbouring voxels along columns, rows and planes."""
        return tuple(math.dist((0, 0, 0), [row[axis] for row in self.matrix]) for axis in range(3))

    @property
    def tilt_deg(self) -> float:
        """Return the largest angle between an axis of the voxels and the axis of the patient that it stands for."""
        steps = zip(self.spacing_mm, range(3), strict=True)
        return max(math.degrees(math.acos(min(1.0, abs(self.matrix[axis][axis]) / step))) for step, axis in steps)


def read_geometry(header: bytes) -> Geometry:
    """Return the geometry of a NIfTI-1 header of ours.

    Raises
    ------
    NoVolume
        If it is none.
    """
    if len(header) < _HEADER_BYTES or header[344:348] != _MAGIC:
        raise NoVolume("the file is no NIfTI of this node")
    dimensions = struct.unpack_from("<8h", header, 40)
    dtype = _DTYPES.get(struct.unpack_from("<h", header, 70)[0])
    start = int(struct.unpack_from("<f", header, 108)[0])
    rows = np.array(struct.unpack_from("<12f", header, 280), dtype=np.float64).reshape(3, 4)
    nx, ny, nz = dimensions[1:4]
    if dimensions[0] != 3 or min(nx, ny, nz) < 1 or dtype is None or start != _HEADER_BYTES:
        raise NoVolume("the file is no NIfTI of this node")
    lps = _LPS @ rows
    lengths = np.linalg.norm(lps[:, :3], axis=0)
    if not (np.isfinite(lps).all() and (lengths > 0).all()):
        raise NoVolume("the file does not say where its voxels lie")
    cosines = lps[:, :3] / lengths
    # Which voxel axis runs most nearly along each axis of the patient.
    chosen = max(itertools.permutations(range(3)), key=lambda axes: sum(abs(cosines[at, axes[at]]) for at in range(3)))
    flips = [bool(cosines[at, chosen[at]] < 0) for at in range(3)]
    counts = (nx, ny, nz)
    origin = lps[:, 3].copy()
    steps = np.empty((3, 3))
    for at in range(3):
        step = lps[:, chosen[at]]
        steps[:, at] = -step if flips[at] else step
        origin += step * (counts[chosen[at]] - 1) if flips[at] else 0.0
    matrix = np.column_stack([steps, origin])
    return Geometry(
        shape=(counts[chosen[0]], counts[chosen[1]], counts[chosen[2]]),
        matrix=tuple(tuple(map(float, row)) for row in matrix),
        order=(2 - chosen[0], 2 - chosen[1], 2 - chosen[2]),
        flips=(flips[0], flips[1], flips[2]),
        stored=(nz, ny, nx),
        dtype=dtype,
        start=start,
    )


class Unpacked:
    """One file while it is unpacked and afterwards."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self._source = path.open("rb")
        self._inflater = isal_zlib.decompressobj(_GZIP)
        self._news = threading.Condition()
        self._fault = ""
        self._began = False
        try:
            first = self._inflate(1 << 16)
            self.geometry = read_geometry(first)
            if self.geometry.size_bytes > _LARGEST_BYTES:
                raise NoVolume("the volume is too large to be shown")
            target = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - it lives as long as the volume
        except BaseException:
            self._source.close()
            raise
        weakref.finalize(self, _close, self._source, target)
        target.truncate(self.geometry.size_bytes)
        self._ready = os.pwrite(target.fileno(), first, 0)
        self._target = target.fileno()
        self._map = mmap.mmap(self._target, self.geometry.size_bytes, access=mmap.ACCESS_READ)
        voxels = np.frombuffer(self._map, self.geometry.dtype, math.prod(self.geometry.stored), self.geometry.start)
        self._voxels = self._turned(voxels.reshape(self.geometry.stored))
        self._index = self._usable_index()
        if self._index is None:
            self._begin()

    def _turned(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a part of the ``(z, y, x)`` array along the axes of the patient."""
        flips = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.geometry.flips)
        return stored.transpose(self.geometry.order)[flips]

    def _usable_index(self) -> Index | None:
        """Return the index of the file if its chunks are whole stored planes."""
        index, geometry = read_index(self._source.fileno()), self.geometry
        if index is None or index.head_bytes != geometry.start or index.chunk_bytes % geometry.plane_bytes:
            return None
        count = math.ceil(geometry.stored[0] * geometry.plane_bytes / index.chunk_bytes)
        return index if count == len(index.starts) - 2 else None

    def plane(self, plane: Plane, index: int) -> npt.NDArray[Any]:
        """Return one plane as it is looked at: right on the left, front or head up; waits until it is there.

        Raises
        ------
        NoVolume
            If there is no such plane, or the file is damaged.
        """
        across = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
        if not 0 <= index < self.geometry.shape[across]:
            raise NoVolume(f"there are {self.geometry.shape[across]} {plane} planes")
        voxels, at = self._voxels, index
        if self._index is not None and self.geometry.order[across] == 0 and self._ready < self._needed(across, index):
            voxels, at = self._alone(self._index, self._stored_place(across, index)), 0
        else:
            self._wait_for(self._needed(across, index))
        if plane == "axial":
            shown = voxels[:, :, at].T
        elif plane == "coronal":
            shown = voxels[:, at, ::-1].T
        else:
            shown = voxels[at, :, ::-1].T
        return np.ascontiguousarray(shown)

    def _alone(self, index: Index, place: int) -> npt.NDArray[Any]:
        """Return one stored plane out of its chunk, along the axes of the patient."""
        chunk, offset = divmod(place * self.geometry.plane_bytes, index.chunk_bytes)
        try:
            made = read_chunk(self._source.fileno(), index, 1 + chunk)
        except Damaged as error:
            raise NoVolume(str(error)) from None
        if len(made) < offset + self.geometry.plane_bytes:
            raise NoVolume("the file is damaged")
        count = math.prod(self.geometry.stored[1:])
        return self._turned(
            np.frombuffer(made, self.geometry.dtype, count, offset).reshape(1, *self.geometry.stored[1:])
        )

    def _stored_place(self, across: int, index: int) -> int:
        """Return where in the file a plane stands that is one as it is stored."""
        return self.geometry.stored[0] - 1 - index if self.geometry.flips[across] else index

    def _needed(self, across: int, index: int) -> int:
        """Return how many bytes have to be there for a plane: all but where it is one as it is stored."""
        geometry = self.geometry
        if geometry.order[across] != 0:
            return geometry.size_bytes
        return geometry.start + (self._stored_place(across, index) + 1) * geometry.plane_bytes

    def _begin(self) -> None:
        """Begin to unpack everything, once."""
        with self._news:
            if self._began:
                return
            self._began = True
        threading.Thread(target=self._unpack, name="unpack", daemon=True).start()

    def _wait_for(self, count: int) -> None:
        self._begin()
        with self._news:
            self._news.wait_for(lambda: self._ready >= count or self._fault, _PATIENCE_S)
            if self._ready < count:
                raise NoVolume(self._fault or "the volume takes too long to unpack")

    def _inflate(self, most: int) -> bytes:
        """Return the next bytes, at most ``most``; empty at the end."""
        while not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._source.read(_CHUNK_BYTES // 4)
            made = self._inflater.decompress(packed, most)
            if made or not packed:
                return bytes(made)
        return b""

    def _unpack(self) -> None:
        size = self.geometry.size_bytes
        fault = "the file is damaged"
        try:
            while self._ready < size and (block := self._inflate(min(_CHUNK_BYTES, size - self._ready))):
                os.pwrite(self._target, block, self._ready)
                with self._news:
                    self._ready += len(block)
                    self._news.notify_all()
        except OSError as error:
            fault = f"the volume cannot be unpacked: {error.strerror}"
        except _BadGzip:
            fault = "the file is damaged"
        finally:
            with self._news:
                self._fault = fault if self._ready < size else ""
                self._news.notify_all()


def _close(*files: IO[bytes]) -> None:
    for file in files:
        file.close()


class Volumes:
    """The volumes that were looked at last, as many as the given bytes hold."""

    def __init__(self, scratch: Path, *, most_bytes: int = 2 << 30, reserve_bytes: int = 0) -> None:
        self._scratch = scratch
        self._most_bytes = most_bytes
        self._reserve_bytes = reserve_bytes
        self._kept: OrderedDict[tuple[Path, int, int], Unpacked] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: Path) -> Unpacked:
        """Return a file, unpacked or about to be.

        Raises
        ------
        NoVolume
            If there is none, it is not one of ours, or the disk has no room for it.
        """
        try:
            status = path.stat()
        except OSError:
            raise NoVolume("there is no such volume") from None
        key = path, status.st_ino, status.st_mtime_ns
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
            # Packed CT is about half as long as unpacked; a mask much less, but that is small anyway.
            if shutil.disk_usage(self._scratch).free < self._reserve_bytes + 4 * status.st_size:
                raise NoVolume("there is no room to unpack the volume")
            try:
                found = Unpacked(path, self._scratch)
            except (OSError, _BadGzip):
                raise NoVolume("the volume cannot be read") from None
            self._kept[key] = found
            while (
                len(self._kept) > 1 and sum(one.geometry.size_bytes for one in self._kept.values()) > self._most_bytes
            ):
                # Who still draws from it holds it; its room comes back with the last of them.
                self._kept.popitem(last=False)
            return found
