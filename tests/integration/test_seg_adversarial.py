"""Masks of series that readers get wrong: each frame of ``seg.dcm`` lies where the image that it names lies.

The images are read again from their files, so that nothing that the pipeline believes of them is believed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pydicom
import pytest

from ctnode.ct.lungs import Lungs
from ctnode.results.objects import Origin
from ctnode.results.seg import SAMPLED_BACK, write_seg
from ctnode.words import LungStatus
from tests.adversarial import CASES
from tests.phantom_series import SERIES, STUDY, read

pytestmark = pytest.mark.integration

# Those whose images lie, or are named, in a way of their own; how pixels are coded does not matter to a mask.
NAMES = (
    "instance_numbers_shuffled", "spacing_between_slices_lies", "rounded_positions", "coronal", "sagittal",
    "feet_first", "rotated_in_plane", "oblique", "long_pixels", "tilt_15", "tilt_minus_20", "tilt_both_ways",
    "tilt_of_coronal_slices", "tilt_with_unequal_spacing", "tilt_with_a_gap", "one_slice_missing",
    "too_many_slices_missing", "unequal_spacing", "spacing_that_changes_once",
    "a_hole_of_no_whole_number_of_slices", "one_slice", "two_slices", "a_slice_twice", "two_acquisitions",
    "a_localizer", "a_second_version_with_another_header", "enhanced", "enhanced_all_shared", "enhanced_tilted",
    "enhanced_with_two_stacks", "concatenation", "legacy_converted",
)  # fmt: skip
ORIGIN = Origin(STUDY, SERIES, 1, datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC), "d")


@dataclass(frozen=True)
class Plane:
    """Where one image lies, by its own header."""

    position: np.ndarray
    row: np.ndarray
    column: np.ndarray
    size: tuple[int, int]

    def places(self) -> np.ndarray:
        j, i = np.mgrid[: self.size[0], : self.size[1]]
        return self.position + i[..., None] * self.row + j[..., None] * self.column


def attribute(layers, group, keyword):
    """Return a value of the functional groups of a frame, of the shared ones, or of the image itself."""
    for layer in layers:
        if group in layer:
            return layer[group][0][keyword].value
    return layers[-1][keyword].value


def planes_of(files):
    """Return the plane of each image by its SOP Instance UID and its number in a multi-frame image."""
    found = {}
    for file in files:
        image = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        shared = image.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
        frames = image.get("PerFrameFunctionalGroupsSequence") or [None]
        for number, frame in enumerate(frames, start=1):
            layers = (shared[0], image) if frame is None else (frame, shared[0], image)
            try:
                position = attribute(layers, "PlanePositionSequence", "ImagePositionPatient")
                cosines = attribute(layers, "PlaneOrientationSequence", "ImageOrientationPatient")
                down, right = attribute(layers, "PixelMeasuresSequence", "PixelSpacing")
            except (KeyError, TypeError):
                continue
            row, column = np.reshape(np.array(cosines, float), (2, 3))
            plane = Plane(np.array(position, float), row * float(right), column * float(down),
                          (image.Rows, image.Columns))  # fmt: skip
            found.setdefault((image.SOPInstanceUID, 0 if frame is None else number), plane)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_each_frame_lies_on_the_image_that_it_names(tmp_path, name):
    (tmp_path / "in").mkdir()
    CASES[name](tmp_path / "in")
    files = [path for path in (tmp_path / "in").rglob("*") if path.is_file()]
    volume = read(files)
    # Every voxel has a label of its own chance, so that a frame at a wrong place cannot agree.
    labels = np.random.default_rng(1).integers(0, 4, volume.grid.shape).astype(np.uint8)
    planes = planes_of(files)
    for labelmap in (False, True):
        lungs = Lungs(labels, LungStatus.OK, (), {}, -500.0)
        write_seg(tmp_path / "seg.dcm", volume, lungs, ORIGIN, labelmap=labelmap)
        check(pydicom.dcmread(tmp_path / "seg.dcm"), planes, volume, labels, labelmap=labelmap)


def check(made, planes, volume, labels, *, labelmap):
    orientation = made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    spacing = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    named, marked = set(), 0
    frames = made.pixel_array.reshape(-1, made.Rows, made.Columns)
    for frame, groups in zip(frames, made.PerFrameFunctionalGroupsSequence, strict=True):
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        key = source.ReferencedSOPInstanceUID, int(source.get("ReferencedFrameNumber", 0))
        plane = planes[key]
        assert plane.size == frame.shape
        assert np.allclose(groups.PlanePositionSequence[0].ImagePositionPatient, plane.position, atol=1e-3)
        assert np.allclose(np.multiply(orientation[:3], spacing[1]), plane.row, atol=1e-3)
        assert np.allclose(np.multiply(orientation[3:], spacing[0]), plane.column, atol=1e-3)
        ijk = (plane.places() - volume.grid.affine[:3, 3]) @ np.linalg.inv(volume.grid.affine[:3, :3]).T
        # A place near the middle between two voxels is as near to one as to the other.
        clear = (np.abs(ijk - np.floor(ijk) - 0.5) > 1e-2).all(axis=-1)
        x, y, z = np.moveaxis(np.rint(ijk).astype(int), -1, 0)
        inside = (x >= 0) & (y >= 0) & (z >= 0)
        inside &= (x < labels.shape[2]) & (y < labels.shape[1]) & (z < labels.shape[0])
        there = np.zeros(frame.shape, np.uint8)
        there[inside] = labels[z[inside], y[inside], x[inside]]
        if not labelmap:
            there = there == groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert np.array_equal(frame[clear], there[clear]), key
        marked += int(clear.sum())
        named.add(key)
    # One frame for each image and segment, and no image that the volume is made of is left out.
    assert len(frames) == len(named) * (1 if labelmap else 3)
    assert named == {(image.sop_uid, image.frame) for image in volume.sources}
    assert marked > 0.5 * frames.size
    listed = [item.ReferencedSOPInstanceUID for item in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
    assert sorted(listed) == sorted({uid for uid, _ in named})
    repaired = {issue.code for issue in volume.issues} & {"TILT", "MISSING_SLICES", "UNEQUAL_SPACING"}
    assert made.ContentDescription == (SAMPLED_BACK if repaired else "")
