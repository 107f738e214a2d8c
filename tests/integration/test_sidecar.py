"""``ct.json``: the names of dcm2niix, and all that is needed to say how the files beside it came to be."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from ctnode import __version__
from ctnode.config import Outputs, Pipeline
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.flow.pipeline import process_series
from tests.phantom_series import SERIES, STUDY, grid, write_ramp

pytestmark = pytest.mark.integration

# Made of what the scan, not the file, is: dcm2niix guesses these, or names itself in them.
GUESSED = {"BidsGuess", "ConversionSoftware", "ConversionSoftwareVersion"}
# Text about the study, places, days: never in ct.json, or only by outputs.descriptions.
PRIVATE = {
    "InstitutionalDepartmentName", "InstitutionName", "AcquisitionTime", "AcquisitionDateTime", "StudyDescription",
    "SeriesDescription", "ProtocolName", "ImageComments", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "StationName",
}  # fmt: skip


def run(files, out, *, wanted=None, pipeline=None):
    out.mkdir()
    return process_series(
        files, study=STUDY, series=SERIES, revision=1, made_at=datetime(2020, 1, 1, tzinfo=UTC), out=out,
        settings=pipeline or Pipeline(), wanted=wanted or Outputs(surface=False, mpr=False, histogram=False),
    )  # fmt: skip


def told(out, name="ct.json"):
    return json.loads((out / name).read_text("utf-8"))


def words(_index, dataset):
    dataset.SeriesDescription = "Thorax of Ms Doe"
    dataset.ProtocolName = "1 Doe"
    dataset.BodyPartExamined = "CHEST"
    dataset.SoftwareVersions = "syngo CT 2006G"
    dataset.ScanOptions = "HELIX"
    dataset.ConvolutionKernel = "B40f"
    dataset.ExposureTime = "500"
    dataset.XRayTubeCurrent = "184"
    dataset.Exposure = "73"
    dataset.SeriesNumber = "3"
    dataset.AcquisitionNumber = "2"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    voxels, _, on = chest((40, 48, 48), (8.0, 8.0, 8.0))
    return write_series(tmp_path_factory.mktemp("in"), voxels, on, study_uid=STUDY, series_uid=SERIES, edit=words)


@pytest.fixture(scope="module")
def results(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "out"
    run(files, out)
    return out


def test_every_file_of_the_folder_has_its_digest(results):
    digests = told(results)["ctnode"]["sha256"]
    assert set(digests) == {path.name for path in results.iterdir()} - {"ct.json"}
    for name, digest in digests.items():
        assert digest == hashlib.sha256((results / name).read_bytes()).hexdigest(), name


def test_each_of_two_volumes_lists_its_own_files(tmp_path):
    paths = write_ramp(tmp_path / "a", grid())
    paths += write_ramp(
        tmp_path / "b", grid((6, 12, 10), axes=((1, 0, 0), (0, 0, -1))),
        edit=lambda _, dataset: setattr(dataset, "SOPInstanceUID", f"{dataset.SOPInstanceUID}.2"),
    )  # fmt: skip
    run(paths, tmp_path / "out", pipeline=Pipeline(volumes="all"))
    first, second = (told(tmp_path / "out", name)["ctnode"]["sha256"] for name in ("ct.json", "ct_2.json"))
    assert not set(first) & set(second)
    assert set(first) | set(second) | {"ct.json", "ct_2.json"} == {path.name for path in (tmp_path / "out").iterdir()}


def test_the_input_digest_names_the_data_sets_and_not_the_files(files, results, tmp_path):
    renamed = [Path(shutil.copy(path, tmp_path / f"x{number:03}")) for number, path in enumerate(files[::-1])]
    run(renamed, tmp_path / "again", wanted=Outputs(lungs=False, iso=False, preview=False))
    run(renamed[1:], tmp_path / "less", wanted=Outputs(lungs=False, iso=False, preview=False))
    digest = told(results)["ctnode"]["input_digest"]
    assert told(tmp_path / "again")["ctnode"]["input_digest"] == digest
    assert told(tmp_path / "less")["ctnode"]["input_digest"] != digest
    refused = tmp_path / "refused"
    run([], refused)
    assert told(refused)["ctnode"]["input_digest"] == hashlib.sha256(b"").hexdigest()
    assert told(refused)["ctnode"]["sha256"] == {}


def test_versions_settings_time_and_memory_are_recorded(results):
    own = told(results)["ctnode"]
    assert own["versions"]["ctnode"] == __version__
    for name in ("numpy", "pydicom", "scipy", "Pillow", "isal"):
        assert own["versions"][name] == metadata.version(name)
    assert own["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    settings = own["settings"]
    assert settings["pipeline"]["spacing_mm"] == 1.0
    assert settings["outputs"]["preview"] is True
    assert own["seconds"].keys() >= {"select", "decode", "write"}
    assert own["peak_rss_bytes"] > 1 << 20
    assert (own["padding_value"], own["padding_voxels"]) == (-1024, 0)


def test_descriptions_stand_there_only_when_they_are_asked_for(files, results, tmp_path):
    assert "Doe" not in (results / "ct.json").read_text("utf-8")
    run(files, tmp_path / "out", wanted=Outputs(lungs=False, iso=False, preview=False, descriptions=True))
    asked = told(tmp_path / "out")
    assert (asked["SeriesDescription"], asked["ProtocolName"]) == ("Thorax of Ms Doe", "1 Doe")
    assert {name: value for name, value in asked.items() if name not in PRIVATE | {"ctnode"}} == {
        name: value for name, value in told(results).items() if name != "ctnode"
    }


def test_names_and_values_are_those_of_dcm2niix(files, results, tmp_path):
    program = shutil.which("dcm2niix") or shutil.which("dcm2niix", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("dcm2niix (extra test) is not installed")
    subprocess.run([program, "-b", "o", "-o", tmp_path, files[0].parent], capture_output=True, check=True)
    (path,) = tmp_path.glob("*.json")
    peer, ours = json.loads(path.read_text("utf-8")), told(results)
    named = {name: value for name, value in peer.items() if name not in GUESSED | PRIVATE}
    assert {"BodyPart", "ExposureTime", "XRayExposure", "ConvolutionKernel", "ImageType"} <= named.keys()
    assert named.keys() - ours.keys() == set()
    for name, value in named.items():
        if isinstance(value, list) and all(isinstance(part, (int, float)) for part in value):
            np.testing.assert_allclose(ours[name], value, atol=1e-5, err_msg=name)
        else:
            assert ours[name] == value, name
