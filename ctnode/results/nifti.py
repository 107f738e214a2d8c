"""NIfTI-1 files that every reader places alike.

This is the only module that knows RAS. The voxels keep their order: a C-contiguous ``(z, y, x)`` array has the same
bytes as NIfTI's Fortran-ordered ``(x, y, z)``, so nothing is transposed or flipped and the affine alone says what is
where.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, Final

import nibabel
import numpy as np
import numpy.typing as npt
from isal import igzip

from ctnode.ct.grid import Grid
from ctnode.ops.durable import replacing

_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_SCANNER: Final = 1
_DTYPES: Final = (np.dtype(np.int16), np.dtype(np.float32), np.dtype(np.uint8))
_DESCRIPTION_BYTES: Final = 79
# Level 1 of ISA-L: about 300 MB/s; higher levels gain few per cent on CT.
_GZIP_LEVEL: Final = 1


def write_nifti(
    path: Path,
    voxels: npt.NDArray[np.int16] | npt.NDArray[np.float32] | npt.NDArray[np.uint8],
    grid: Grid,
    *,
    description: str,
) -> None:
    """Write ``voxels`` to ``path`` (gzipped where the name ends in ``.gz``), slice by slice, in one step, fsynced.

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
            # Neither the name nor the time of writing goes into the gzip header: a re-run is byte-identical.
            gzip: Any = igzip.IGzipFile
            with gzip(filename="", fileobj=file, mode="wb", compresslevel=_GZIP_LEVEL, mtime=0) as packed:
                _write(packed, header, voxels)
        else:
            _write(file, header, voxels)


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


def _write(file: IO[bytes], header: bytes, voxels: npt.NDArray[np.generic]) -> None:
    """Write header and voxels slice by slice, little endian."""
    file.write(header)
    little = voxels.dtype.newbyteorder("<")
    for plane in voxels:
        file.write(np.ascontiguousarray(plane, dtype=little).tobytes())
