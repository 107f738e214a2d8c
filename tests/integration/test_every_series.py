"""Our DICOM objects of the headers of every real series, judged and read by programs that no one here wrote.

What a scanner wrote into its headers is copied into ours, so each source can break them in its own way. Every volume
gets a mask of three boxes, so that even a single slice has a segmentation and a report. A run takes some of the
series by chance, ``.ci/long`` all of them.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image as Picture

from ctnode.ct.grid import Volume
from ctnode.ct.lungs import Lungs
from ctnode.ct.measure import measure
from ctnode.ct.select import choose
from ctnode.ct.source import read_frames
from ctnode.ct.volume import build
from ctnode.results.objects import Origin
from ctnode.results.report import write_report
from ctnode.results.seg import sources_of, write_seg
from ctnode.results.sr import write_sr
from ctnode.words import LungStatus, Refusal
from tests.phantom_series import test_data

pytestmark = pytest.mark.integration

SEED = int(os.environ.get("CTNODE_TEST_SEED", str(random.SystemRandom().randrange(1 << 32))))
COUNT = int(os.environ.get("CTNODE_TEST_SERIES", "6"))
MADE_AT = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
ORIGIN = Origin("1.2.3", "1.2.3.1", 1, MADE_AT, "d")
MADE = ("seg.dcm", "labelmap.dcm", "sr.dcm", "report.dcm")


@dataclass(frozen=True)
class Made:
    """The objects of one series: what they are of, and one file of the series."""

    source: Path
    volume: Volume
    lungs: Lungs
    folder: Path


def real_series() -> list[list[Path]]:
    """Return the files of each series in the folder of real data."""
    groups: defaultdict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in sorted(test_data().rglob("*")):
        if path.is_file():
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=["SeriesInstanceUID"])
            except Exception:
                continue
            groups[path.parent, str(header.get("SeriesInstanceUID") or "")].append(path)
    return list(groups.values())


def volume_of(paths: list[Path]) -> tuple[Volume, Path] | None:
    """Return the main volume of a series and the file of its header, None where it is refused."""
    try:
        frames, faults = read_frames(paths)
        issues = list(faults)
        if not frames:
            return None
        chosen = choose(frames, issues)
        volume = build(chosen, issues, [frame.digest for frame in frames])
    except Refusal:
        return None
    named = str(volume.header.get("SOPInstanceUID", ""))
    return volume, next(frame.path for frame in chosen if frame.sop_uid == named)


def boxes(shape: tuple[int, int, int]) -> np.ndarray:
    """Return a mask of three boxes, none of them over all slices of a longer stack."""
    labels = np.zeros(shape, np.uint8)
    slices, rows, columns = shape
    for number in (1, 2, 3):
        first = min(number - 1, slices - 1)
        labels[first : max(slices - 4 + number, first + 1), rows // 4 : rows // 2, number * columns // 5 :][
            ..., : columns // 6
        ] = number
    return labels


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """The objects of each series that has a volume."""
    place = tmp_path_factory.mktemp("objects")
    found = []
    series = real_series()
    random.Random(SEED).shuffle(series)
    for number, paths in enumerate(series):
        got = volume_of(paths) if len(found) < COUNT else None
        if got is None:
            continue
        # Numbers are of HU alone; what the header holds is judged here.
        volume, source = replace(got[0], unit="HU"), got[1]
        folder = place / str(number)
        folder.mkdir()
        labels = boxes(volume.grid.shape)
        lungs = Lungs(labels, LungStatus.SUSPECT, ("three boxes, drawn by a test",), {}, -500.0)
        numbers = measure(volume, lungs)
        write_seg(folder / "seg.dcm", volume, lungs, ORIGIN)
        write_seg(folder / "labelmap.dcm", volume, lungs, ORIGIN, labelmap=True)
        write_sr(folder / "sr.dcm", volume, numbers, ORIGIN)
        write_report(
            folder / "report.dcm", volume, lungs, numbers, study=ORIGIN.study, series=ORIGIN.series,
            revision=1, made_at=MADE_AT, settings_digest="d",
        )  # fmt: skip
        found.append(Made(source, volume, lungs, folder))
    assert found
    print(f"CTNODE_TEST_SEED={SEED}: objects of {len(found)} series, all with a volume, of {len(series)} at most")
    return found


def program(name: str) -> str:
    """Return the path of a program, or skip and say which is not there."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, errors="replace", check=False)


def errors(validator: str, file: Path) -> set[str]:
    told = run(validator, file).stderr
    assert told, file
    return set(re.findall(r"^Error - .*$", told, re.MULTILINE))


def test_a_validator_finds_no_error_that_the_source_has_not_itself(everything: list[Made]) -> None:
    validator = program("dciodvfy")
    ours = {}
    for made in everything:
        # It does not know LABELMAP; the tests below read that back.
        for name in ("seg.dcm", "sr.dcm", "report.dcm"):
            found = errors(validator, made.folder / name)
            if found and (new := found - errors(validator, made.source)):
                ours[made.source.parent.name, made.source.name, name] = new
    assert not ours


def test_dcmtk_reads_and_draws_all_of_them(everything: list[Made], tmp_path: Path) -> None:
    dump, draw = program("dcmdump"), shutil.which("dcm2img") or program("dcmj2pnm")
    told = run(dump, "-q", *(made.folder / name for made in everything for name in MADE))
    assert (told.returncode, told.stderr) == (0, "")
    for made in everything:
        # DCMTK draws no masks; the page has to be what was drawn, pixel by pixel.
        drawn = run(draw, "+on", made.folder / "report.dcm", tmp_path / "page.png")
        assert drawn.returncode == 0, (made.source, drawn.stderr)
        with Picture.open(tmp_path / "page.png") as page:
            assert np.array_equal(np.asarray(page), pydicom.dcmread(made.folder / "report.dcm").pixel_array), (
                made.source
            )


def frames_of(file: Path) -> np.ndarray:
    """Return the pixels as SimpleITK reads them, ``(frames, rows, columns)``."""
    image = SimpleITK.ReadImage(str(file))
    return SimpleITK.GetArrayFromImage(image).reshape(-1, image.GetHeight(), image.GetWidth())


def on_source(made: Made, image_number: int) -> np.ndarray:
    """Return the mask on a source image, by millimetres alone."""
    image, grid = sources_of(made.volume)[image_number], made.volume.grid
    row_mm, column_mm = grid.affine[:3, 1], grid.affine[:3, 0]
    j, i = np.mgrid[: image.rows, : image.columns]
    places = np.array(image.position_mm) + i[..., None] * column_mm + j[..., None] * row_mm
    x, y, z = np.moveaxis(np.rint((places - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T), -1, 0)
    inside = (x >= 0) & (y >= 0) & (z >= 0) & (x < grid.shape[2]) & (y < grid.shape[1]) & (z < grid.shape[0])
    found = np.zeros((image.rows, image.columns), np.uint8)
    index = tuple(axis[inside].astype(int) for axis in (z, y, x))
    found[inside] = made.lungs.labels[index]
    return found


def test_masks_come_back_by_three_readers(everything: list[Made]) -> None:
    for made in everything:
        # Places count from 1 over the source images; frames without any voxel are left out.
        wanted = [on_source(made, number) for number in range(len(sources_of(made.volume)))]
        for name in ("seg.dcm", "labelmap.dcm"):
            plain, read = pydicom.dcmread(made.folder / name), highdicom.seg.segread(made.folder / name)
            stack = plain.pixel_array.reshape(-1, plain.Rows, plain.Columns)
            # The GDCM in ITK knows no label maps yet, takes three masks of one slice for a stack without height, and
            # reads frames that do not end with a byte wrongly (those of dcmqi too).
            if name == "seg.dcm" and len(wanted) > 1 and plain.Rows * plain.Columns % 8 == 0:
                assert np.array_equal(frames_of(made.folder / name) > 0, stack > 0), made.source
            assert np.array_equal(read.pixel_array.reshape(stack.shape), stack), made.source
            found = [np.zeros_like(plane) for plane in wanted]
            for frame, groups in zip(stack, plain.PerFrameFunctionalGroupsSequence, strict=True):
                place = groups.FrameContentSequence[0].DimensionIndexValues
                if name == "labelmap.dcm":
                    found[place - 1 if isinstance(place, int) else place[-1] - 1] = frame
                else:
                    number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
                    found[place[-1] - 1][frame > 0] = number
            assert all(map(np.array_equal, found, wanted)), (made.source, name)
            assert sorted(read.segment_numbers) == [1, 2, 3]


def test_highdicom_reads_the_structured_reports(everything: list[Made]) -> None:
    for made in everything:
        read = highdicom.sr.srread(made.folder / "sr.dcm")
        groups = read.content.get_volumetric_roi_measurement_groups()
        assert len(groups) == 2, made.source
