"""The mask as DICOM Segmentation: what other programs read back is the mask, and it points at the images."""

import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime

import highdicom
import numpy as np
import pydicom
import pytest

from ctnode.ct.grid import SourceImage
from ctnode.ct.lungs import segment
from ctnode.ct.measure import measure
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.results.objects import Origin
from ctnode.results.seg import SAMPLED_BACK, write_seg
from ctnode.results.sr import write_sr
from tests.phantom_series import SERIES, STUDY, read

pytestmark = pytest.mark.integration

ORIGIN = Origin(STUDY, SERIES, 1, datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC), "d")


def labels_of(dataset):
    """Return the mask on the source slices as the standard says to read it, without highdicom."""
    order = [item.ReferencedSOPInstanceUID for item in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
    found = np.zeros((len(order), dataset.Rows, dataset.Columns), np.uint8)
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        place = order.index(source)
        if dataset.SegmentationType == "LABELMAP":
            found[place] = frame
        else:
            found[place][frame > 0] = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return found


@pytest.fixture(scope="module", params=[(72, 96, 96), (60, 97, 91)])
def example(request, tmp_path_factory):
    voxels, _, grid = chest(request.param, (4.0, 4.0, 4.0), 1)
    folder = tmp_path_factory.mktemp("series")
    volume = read(write_series(folder, voxels, grid, study_uid=STUDY, series_uid=SERIES))
    return volume, segment(volume)


@pytest.mark.parametrize("labelmap", [False, True])
def test_mask_comes_back_voxel_by_voxel_and_bytes_repeat(tmp_path, example, labelmap):
    volume, lungs = example
    for name in ("a.dcm", "b.dcm"):
        write_seg(tmp_path / name, volume, lungs, ORIGIN, labelmap=labelmap)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    made = pydicom.dcmread(tmp_path / "a.dcm")
    assert np.array_equal(labels_of(made), lungs.labels)
    assert made.FrameOfReferenceUID == volume.header.FrameOfReferenceUID
    assert made.StudyInstanceUID == STUDY
    assert made.SeriesInstanceUID != SERIES
    assert made.ContentDescription == ""
    read_back = highdicom.seg.segread(tmp_path / "a.dcm")
    assert [read_back.get_segment_description(number).segmented_property_type.value for number in (1, 2, 3)] == [
        "3341006", "44029006", "89187006",
    ]  # fmt: skip


def test_a_validator_finds_no_error(tmp_path, example):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    write_seg(tmp_path / "a.dcm", *example, ORIGIN)
    done = subprocess.run(["dciodvfy", str(tmp_path / "a.dcm")], capture_output=True, text=True, check=False)
    assert "Segmentation" in done.stderr
    assert "Error" not in done.stderr, done.stderr


def test_a_moved_grid_is_sampled_back_onto_the_source_slices_and_says_so(tmp_path, example):
    volume, lungs = example
    wider = np.pad(lungs.labels, ((0, 0), (2, 3), (4, 1)))
    affine = volume.grid.affine.copy()
    affine[:3, 3] -= 2 * affine[:3, 1] + 4 * affine[:3, 0]
    moved = replace(volume, grid=replace(volume.grid, shape=wider.shape, affine=affine))
    write_seg(tmp_path / "a.dcm", moved, replace(lungs, labels=wider), ORIGIN)
    made = pydicom.dcmread(tmp_path / "a.dcm")
    assert np.array_equal(labels_of(made), lungs.labels)
    assert made.ContentDescription == SAMPLED_BACK


def test_frames_of_a_multi_frame_source_are_named(tmp_path, example):
    volume, lungs = example
    sources = tuple(
        SourceImage("1.2.840.10008.5.1.4.1.1.2.1", "1.2.3.4", index + 1, image.rows, image.columns, image.position_mm)
        for index, image in enumerate(volume.sources)
    )
    many = replace(volume, sources=sources, sop_uids=("1.2.3.4",) * len(sources))
    write_seg(tmp_path / "a.dcm", many, lungs, ORIGIN)
    made = pydicom.dcmread(tmp_path / "a.dcm")
    assert len(made.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1
    numbers = [
        groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for groups in made.PerFrameFunctionalGroupsSequence
    ]
    assert {number - 1 for number in numbers} == set(np.flatnonzero(lungs.labels.any(axis=(1, 2))))


def test_a_source_without_frame_of_reference_gets_one_that_repeats(tmp_path, example):
    volume, lungs = example
    header = pydicom.Dataset({**volume.header})
    del header.FrameOfReferenceUID
    bare = replace(volume, header=header)
    uids = set()
    for name in ("a.dcm", "b.dcm"):
        write_seg(tmp_path / name, bare, lungs, ORIGIN)
        uids.add(pydicom.dcmread(tmp_path / name).FrameOfReferenceUID)
    assert len(uids) == 1
    with pytest.raises(ValueError, match="without any voxel"):
        write_seg(tmp_path / "c.dcm", bare, replace(lungs, labels=np.zeros_like(lungs.labels)), ORIGIN)


def test_numbers_come_back_from_the_structured_report(tmp_path, example):
    volume, lungs = example
    numbers = measure(volume, lungs)
    write_seg(tmp_path / "seg.dcm", volume, lungs, ORIGIN)
    for name in ("a.dcm", "b.dcm"):
        write_sr(tmp_path / name, volume, numbers, ORIGIN)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    groups = highdicom.sr.srread(tmp_path / "a.dcm").content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 2
    for group, side in zip(groups, (numbers.right, numbers.left), strict=True):
        values = [one.value for one in group.get_measurements()]
        assert values == [side.volume_ml, side.mean_hu, side.median_hu, side.sd_hu, side.perc15_hu, side.laa950_pct,
                          side.haa_pct, side.mass_g]  # fmt: skip
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    done = subprocess.run(["dciodvfy", str(tmp_path / "a.dcm")], capture_output=True, text=True, check=False)
    assert "Error" not in done.stderr, done.stderr
