"""What [lungs] changes in a results folder, and that every number and picture of doubtful lungs says so."""

import csv
import json
from datetime import UTC, datetime

import nibabel
import numpy as np
import pytest
from PIL import Image

from ctnode.config import LungMask, Outputs, Pipeline, load
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.flow.job import Job
from ctnode.flow.pipeline import process_series
from ctnode.results.canvas import WARNING
from ctnode.words import LungStatus
from tests.phantom_series import SERIES, STUDY

pytestmark = pytest.mark.integration

MADE_AT = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    voxels, _, on = chest((40, 96, 96), (8.0, 4.0, 4.0))
    return write_series(tmp_path_factory.mktemp("chest"), voxels, on, study_uid=STUDY, series_uid=SERIES)


def run(files, out, **lungs):
    out.mkdir()
    (report,) = process_series(
        files, study=STUDY, series=SERIES, revision=1, made_at=MADE_AT, out=out, settings=Pipeline(),
        wanted=Outputs(iso=False, preview=False), lungs=LungMask(**lungs),
    )  # fmt: skip
    return report


def test_the_settings_are_recorded_with_a_digest_of_their_own(files, tmp_path):
    digests = set()
    for number, lungs in enumerate(({}, {"threshold": -320}, {"dilation_mm": 2.0}, {"fill_structures": False})):
        out = tmp_path / f"out{number}"
        run(files, out, **lungs)
        settings = json.loads((out / "ct.json").read_text())["ctnode"]["settings"]
        assert settings["lungs"] == LungMask(**lungs).model_dump()
        digests.add(settings["digest"])
    assert len(digests) == 4


def test_the_structures_are_written_when_they_are_asked_for(files, tmp_path):
    assert "lungs_structures.nii.gz" not in run(files, tmp_path / "without").outputs
    report = run(files, tmp_path / "with", structures=True)
    assert "lungs_structures.nii.gz" in report.outputs
    inside = nibabel.load(tmp_path / "with" / "lungs_structures.nii.gz")
    mask = nibabel.load(tmp_path / "with" / "lungs.nii.gz")
    hu = np.asanyarray(nibabel.load(tmp_path / "with" / "ct.nii.gz").dataobj)
    np.testing.assert_array_equal(inside.affine, mask.affine)
    labels, found = np.asanyarray(mask.dataobj), np.asanyarray(inside.dataobj)
    assert found.any()
    np.testing.assert_array_equal(found[found > 0], labels[found > 0])
    threshold = json.loads((tmp_path / "with" / "measurements.json").read_text())["quality"]["threshold_hu"]
    assert hu[found > 0].min() >= threshold - 1.0


def test_the_histogram_adds_up_to_the_volume(files, tmp_path):
    report = run(files, tmp_path / "out")
    assert {"histogram.json", "histogram.csv"} <= set(report.outputs)
    as_json = json.loads((tmp_path / "out" / "histogram.json").read_text())
    with (tmp_path / "out" / "histogram.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["both"]) for row in rows] == as_json["both"]
    numbers = json.loads((tmp_path / "out" / "measurements.json").read_text())
    voxels = sum(as_json["both"]) + as_json["below"] + as_json["above"]
    assert voxels * 8.0 * 4.0 * 4.0 / 1000.0 == pytest.approx(numbers["both"]["volume_ml"], abs=0.01)


def test_thick_slices_are_warned_of_beside_the_numbers(files, tmp_path):
    run(files, tmp_path / "out")
    (warning,) = json.loads((tmp_path / "out" / "measurements.json").read_text())["warnings"]
    assert warning.startswith("slices of 8.00 mm")


def test_truncated_lungs_say_so_in_every_file(files, tmp_path):
    out = tmp_path / "out"
    report = run(sorted(files)[14:], out)
    assert report.lungs is LungStatus.TRUNCATED
    numbers = json.loads((out / "measurements.json").read_text())
    assert {numbers["status"], *(numbers[part]["status"] for part in ("right", "left", "both"))} == {"TRUNCATED"}
    assert json.loads((out / "histogram.json").read_text())["status"] == "TRUNCATED"
    assert (out / "histogram.csv").read_text().splitlines()[500].endswith(",TRUNCATED")
    # Each picture of the mask has a foot with the status and its reasons.
    whole = tmp_path / "whole"
    assert run(files, whole).lungs is LungStatus.OK
    for name in ("lungs.png", "histogram.png", "surface.png"):
        marked, plain = (foot_colours(folder / name) for folder in (out, whole))
        assert WARNING in marked
        assert WARNING not in plain


def foot_colours(path):
    with Image.open(path) as picture:
        foot = picture.convert("RGB").crop((0, picture.height - 90, 200, picture.height))
        return {colour for _, colour in foot.getcolors(1 << 16)}


def test_without_lungs_nothing_is_quantified(files, tmp_path):
    out = tmp_path / "out"
    report = run(sorted(files)[:4], out)
    assert report.lungs is LungStatus.NO_LUNGS
    assert {"measurements.json", "report.dcm"} <= set(report.outputs)
    assert not {"lungs.nii.gz", "lungs.png", "histogram.json", "histogram.csv"} & set(report.outputs)
    numbers = json.loads((out / "measurements.json").read_text())
    assert [numbers[part] for part in ("right", "left", "both")] == [None, None, None]


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("-320", -320.0)])
def test_the_threshold_of_the_environment_is_a_word_or_a_number(tmp_path, text, value):
    (tmp_path / "config.toml").write_text("")
    loaded = load(tmp_path / "config.toml", environment={"CTNODE_LUNGS__THRESHOLD": text})
    assert loaded.config.lungs.threshold == value


def test_a_job_without_settings_has_the_defaults(tmp_path):
    assert Job(STUDY, SERIES, 1, MADE_AT, tmp_path, Pipeline()).lungs == LungMask()
