"""The DICOM objects of real series, judged and read by programs that no one here wrote."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom import seg as highdicom_seg

from tests.acceptance.test_end_to_end import RESULTS, orthanc, rest
from tests.harness import REPOSITORY, data_folder, run_tool, storescu, wait_until

pytestmark = pytest.mark.acceptance

OBJECTS = ("seg.dcm", "sr.dcm", "report.dcm")
_ERROR = re.compile(r"^Error - (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Result:
    """A results folder, and one file of the series that it is of."""

    folder: Path
    source: Path


def processed(place: Path, *parts: str, settings: Sequence[str] = (), **environment: str) -> list[Result]:
    """Process folders of real data and return what has a volume."""
    folders = [data_folder(part) for part in parts]
    command = [sys.executable, "-m", "ctnode", "process", *map(str, folders), "--out", str(place), "--json"]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode in {0, 1}, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    by_series: dict[str, Path] = {}
    for folder in folders:
        for file in folder.rglob("*"):
            if file.is_file():
                header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=["SeriesInstanceUID"])
                by_series.setdefault(str(header.get("SeriesInstanceUID", "")), file)
    return [
        Result(Path(line["dir"]), by_series[line["series"]])
        for line in lines
        if line["volume"] == 1 and line["status"] != "REFUSED" and line["series"] in by_series
    ]


def errors_of(file: Path) -> set[str]:
    """Return what dciodvfy calls an error in a file."""
    return set(_ERROR.findall(run_tool("dciodvfy", file).stdout))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Real series of every kind that has a volume: whole chests, a slab, a head, tilted and with gaps."""
    place = tmp_path_factory.mktemp("results")
    return processed(place, "chest", "nolung", "mask/cip_64", "awkward/dicom2nifti_failing_ct")


def test_the_validator_finds_only_what_the_source_has_itself(results: list[Result]) -> None:
    found = {result.folder / name for result in results for name in OBJECTS if (result.folder / name).exists()}
    assert {path.name for path in found} == set(OBJECTS)
    for result in results:
        own = errors_of(result.source)
        for name in OBJECTS:
            if (result.folder / name).exists():
                assert errors_of(result.folder / name) <= own, result.folder / name


def test_readers_agree_on_the_masks(results: list[Result]) -> None:
    whole = [result for result in results if (result.folder / "seg.dcm").exists()]
    assert whole
    for result in whole:
        for name in OBJECTS:
            assert run_tool("dcmdump", "-q", result.folder / name).returncode == 0
        seg = highdicom_seg.segread(result.folder / "seg.dcm")
        pixels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(result.folder / "seg.dcm")))
        assert np.array_equal(pixels.astype(bool), seg.pixel_array.astype(bool))
        mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(result.folder / "lungs.nii.gz")))
        for number in seg.segment_numbers:
            frames = [
                frame
                for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True)
                if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
            ]
            assert sum(int(frame.sum()) for frame in frames) == int((mask == number).sum()), (result.folder, number)


def test_an_archive_shows_them_in_the_study_of_the_images(results: list[Result], tmp_path: Path) -> None:
    result = next(result for result in results if (result.folder / "seg.dcm").exists())
    files = [result.folder / name for name in OBJECTS]
    with orthanc(tmp_path / "orthanc") as (port, http):
        assert storescu(port, [result.source, *files], "-R").returncode == 0
        wait_until(lambda: len(rest(http, "/instances")) == 4, "the archive has indexed them")
        (study,) = rest(http, "/tools/find", {"Level": "Study", "Query": {}, "Expand": True})
        series = {
            one["MainDicomTags"]["Modality"]: one["MainDicomTags"]
            for one in (rest(http, f"/series/{identifier}") for identifier in study["Series"])
        }
        assert set(series) == {"CT", "SEG", "SR", "OT"}
        for file in files:
            made = pydicom.dcmread(file, stop_before_pixels=True)
            assert study["MainDicomTags"]["StudyInstanceUID"] == made.StudyInstanceUID
            assert series[made.Modality]["SeriesInstanceUID"] == made.SeriesInstanceUID


EVERYTHING = (
    "outputs.png16=true", "outputs.derived=true", "outputs.array=float16", "outputs.descriptions=true",
    "lungs.structures=true", "outputs.document=true",
    "pipeline.labels=one-hot", "pipeline.interpolation=cubic", "pipeline.spacing_mm=2.5",
)  # fmt: skip


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("chest/lung_dx_a0002_siemens_8mm", ("pipeline.spacing_mm=2",)),
        ("mask/cip_64", (*EVERYTHING, "outputs.seg=labelmap")),
    ],
    ids=["as it is by default", "every output, label map"],
)
def test_another_run_writes_the_same_bytes(tmp_path: Path, part: str, settings: tuple[str, ...]) -> None:
    # Another process at another time, in another zone, with another order of everything that Python hashes, and (under
    # glibc) with other bytes in all memory that nobody has written yet.
    (first,) = processed(tmp_path / "first", part, settings=settings, PYTHONHASHSEED="1", TZ="UTC")
    other = {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "MALLOC_PERTURB_": "170"}
    (second,) = processed(tmp_path / "second", part, settings=settings, **other)
    names = {file.name for file in first.folder.iterdir()}
    assert names == RESULTS if "outputs.seg=labelmap" not in settings else names > RESULTS
    if "outputs.seg=labelmap" in settings:
        assert names >= {
            "slices.zip",
            "derived.zip",
            "document.dcm",
            "ct_norm.npy",
            "ct_norm.json",
            "lungs_structures.nii.gz",
        }
        assert pydicom.dcmread(first.folder / "seg.dcm", stop_before_pixels=True).SegmentationType == "LABELMAP"
    assert names == {file.name for file in second.folder.iterdir()}
    for name in names - {"ct.json"}:
        # By digest: to explain how megabytes differ takes pytest many minutes.
        first_sum, second_sum = (sha256((run.folder / name).read_bytes()).hexdigest() for run in (first, second))
        assert first_sum == second_sum, name
    # Times and memory stand in the side-car alone, and are all of it that differs.
    told = [(result.folder / "ct.json").read_text("utf-8") for result in (first, second)]
    loaded = [json.loads(text) for text in told]
    for one in loaded:
        assert one["ctnode"].pop("seconds")
        assert one["ctnode"].pop("peak_rss_bytes")
    assert json.dumps(loaded[0]) == json.dumps(loaded[1])
    assert set(loaded[0]["ctnode"]["sha256"]) == names - {"ct.json"}
