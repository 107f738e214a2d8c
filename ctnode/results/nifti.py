"""NIfTI-1 files that every reader places alike.

This is the only module that knows RAS. The voxels keep their order: a C-contiguous ``(z, y, x)`` array has the same
bytes as NIfTI's Fortran-ordered ``(x, y, z)``, so nothing is transposed or flipped and the affine alone says what is
where.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import numpy.typing as npt

from ctnode.ct.grid import Grid
from ctnode.ops.durable import replacing
from ctnode.results.indexed_gzip import MOST_CHUNKS, write_indexed

_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_SCANNER: Final = 1
_DTYPES: Final = (np.dtype(np.int16), np.dtype(np.float32), np.dtype(np.uint8))
_DESCRIPTION_BYTES: Final = 79
# A viewer unpacks a chunk for a single slice: small ones stand together, for each costs some bytes.
_CHUNK_BYTES: Final = 1 << 18


def write_nifti(
    path: Path,
    voxels: npt.NDArray[np.int16] | npt.NDArray[np.float32] | npt.NDArray[np.uint8],
    grid: Grid,
    *,
    description: str,
) -> None:
    """Write ``voxels`` to ``path`` in one step, fsynced; gzipped with an index of slices if it ends in ``.gz``.

    ``qform`` and ``sform`` hold the same affine with code 1 (scanner), because readers differ in which they prefer.
    The same input gives the same bytes.

    Parameters
    ----------
    path
        ``*.nii`` or ``*.nii.gz``.
    voxels
        ``(z, y, x)`` int16, float32 or uint8.
    grid
        Where they lie; its affine must have no shear (a quaternion cannot hold one, and ITK refuses it).
    description
        Up to 79 ASCII characters for ``descrip``; never anything about a patient.

    Raises
    ------
    ValueError
        For another dtype, a shape that is not the grid's, a sheared affine, or a long description.
    """
    if voxels.dtype not in _DTYPES:
        raise ValueError(f"no NIfTI type is agreed for {voxels.dtype}")
    if voxels.shape != grid.shape:
        raise ValueError(f"the voxels {voxels.shape} are not on the grid {grid.shape}")
    header = _header(voxels.dtype, grid, description)
    with replacing(path, mode=0o644) as file:
        if path.name.endswith(".gz"):
            slice_bytes = voxels.itemsize * math.prod(voxels.shape[1:])
            slices = max(1, math.ceil(_CHUNK_BYTES / slice_bytes), math.ceil(len(voxels) / (MOST_CHUNKS - 1)))
            count = math.ceil(len(voxels) / slices)
            write_indexed(file, header, _blocks(voxels, slices), count=count, chunk_bytes=slices * slice_bytes)
        else:
            file.write(header)
            file.writelines(_blocks(voxels, 1))


def _header(dtype: np.dtype[np.generic], grid: Grid, description: str) -> bytes:
    """Return the 348 bytes of the header and the 4 that say that no extension follows."""
    text = description.encode("ascii")
    if len(text) > _DESCRIPTION_BYTES:
        raise ValueError(f"the description has {len(text)} bytes, NIfTI holds {_DESCRIPTION_BYTES}")
    directions = grid.directions
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
        raise ValueError("the affine is sheared; NIfTI's quaternion cannot hold it")
    affine = _LPS_TO_RAS @ grid.affine
    make: Any = nibabel.Nifti1Header  # nibabel's headers carry no types
    header = make(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(grid.shape[::-1])
    header.set_qform(affine, code=_SCANNER)
    header.set_sform(affine, code=_SCANNER)
    header.set_xyzt_units(xyz="mm")
    header["descrip"] = text
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header["vox_offset"], header["magic"] = 352, b"n+1"
    block: bytes = header.binaryblock
    return block + b"\x00\x00\x00\x00"


def _blocks(voxels: npt.NDArray[np.generic], slices: int) -> Iterator[bytes]:
    """Yield the voxels little endian, some slices at a time."""
    little = voxels.dtype.newbyteorder("<")
    for at in range(0, len(voxels), slices):
        yield np.ascontiguousarray(voxels[at : at + slices], dtype=little).tobytes()
