"""A phantom whose every voxel says where it lies: HU = x - 2y + 3z in patient millimetres (LPS).

Whatever a reader gets wrong (order, spacing, affine, rescale, sign) shows as a difference between a voxel and the
formula at the place that the reader claims for it; no reference file is needed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from ctnode.ct.grid import Grid, Volume
from ctnode.ct.phantom_dicom import write_series
from ctnode.ct.select import choose
from ctnode.ct.source import DISCRIMINATORS, Frame, read_frames
from ctnode.ct.volume import build

STUDY = "1.2.826.0.1.3680043.8.498.1"
SERIES = "1.2.826.0.1.3680043.8.498.1.1"
GRADIENT = np.array([1.0, -2.0, 3.0])

AXIAL = ((1, 0, 0), (0, 1, 0))
CORONAL = ((1, 0, 0), (0, 0, -1))
FEET_FIRST = ((-1, 0, 0), (0, 1, 0))


def grid(shape=(8, 12, 10), spacing=(2.5, 0.8, 0.7), axes=AXIAL, origin=(-20.0, -15.0, 30.0)) -> Grid:
    row, column = (np.array(axis, dtype=float) for axis in axes)
    affine = np.eye(4)
    affine[:3, 0] = row * spacing[2]
    affine[:3, 1] = column * spacing[1]
    affine[:3, 2] = np.cross(row, column) * spacing[0]
    affine[:3, 3] = origin
    return Grid(shape, affine)


def world(on: Grid) -> np.ndarray:
    k, j, i = np.meshgrid(*(np.arange(side) for side in on.shape), indexing="ij")
    return on.to_lps_mm(np.stack([i, j, k], axis=-1))


def ramp(on: Grid) -> np.ndarray:
    return (world(on) @ GRADIENT).astype(np.float32)


def write_ramp(directory: Path, on: Grid, **options) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    options = {"study_uid": STUDY, "series_uid": SERIES, **options}
    return write_series(directory, ramp(on), on, **options)


def read(paths) -> Volume:
    frames, faults = read_frames(list(paths))
    issues = list(faults)
    chosen = choose(frames, issues)
    return build(chosen, issues, [frame.digest for frame in frames])


def worst_hu(volume: Volume) -> float:
    counted = np.ones(volume.grid.shape, bool) if volume.padding is None else ~volume.padding
    return float(np.abs(volume.voxels - world(volume.grid) @ GRADIENT)[counted].max())


def test_data() -> Path:
    place = Path(os.environ.get("CTNODE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not place.is_dir():
        pytest.skip(f"no real data at {place}; set CTNODE_TEST_DATA")
    return place


test_data.__test__ = False  # a helper, whatever its name says to pytest


def frame(**changes) -> Frame:
    """Return the record of an image that exists nowhere."""
    plain = {
        "path": Path("nowhere"), "digest": "", "sop_class": "1.2.840.10008.5.1.4.1.1.2", "sop_uid": "",
        "study_uid": STUDY, "series_uid": SERIES, "frame_of_reference": "1.2", "modality": "CT",
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "little_endian": True, "frames": 1, "index": 0, "rows": 4, "columns": 4, "samples": 1,
        "photometric": "MONOCHROME2",
        "bits_allocated": 16, "bits_stored": 16, "high_bit": 15, "signed": False, "orientation": (1, 0, 0, 0, 1, 0),
        "position_mm": (0.0, 0.0, 0.0), "pixel_spacing_mm": (1.0, 1.0), "slope": 1.0, "intercept": 0.0,
        "rescale_type": "HU", "has_lut": False, "padding": None, "padding_limit": None, "lossy": False,
        "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"), "discriminators": ("",) * len(DISCRIMINATORS),
        "thickness_mm": 1.0,
        "stack": "", "concatenation": None, "taken_at": "",
        "pixel_offset": 0, "pixel_length": 32,
    }  # fmt: skip
    plain.update(changes)
    plain["digest"] = plain["digest"] or hashlib.sha256(repr(sorted(plain.items(), key=str)).encode()).hexdigest()
    return Frame(**plain)
