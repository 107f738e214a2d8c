"""The schemas in the package hold for what is really written, and for nothing else."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from importlib import resources

import jsonschema
import numpy as np
import pytest

from ctnode.config import Outputs, Pipeline
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.flow.pipeline import process_series
from tests.phantom_series import CORONAL, SERIES, STUDY, grid, write_ramp

pytestmark = pytest.mark.integration

FEW = Outputs(iso=False, preview=False, mpr=False, histogram=False, surface=False)


def validator(name):
    schema = json.loads(resources.files("ctnode.results").joinpath(f"schemas/{name}.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def schemas():
    return {name: validator(name) for name in ("ct", "measurements")}


def run(files, out, *, wanted=FEW, **pipeline):
    out.mkdir()
    return process_series(
        files, study=STUDY, series=SERIES, revision=1, made_at=datetime(2020, 1, 1, tzinfo=UTC), out=out,
        settings=Pipeline(**pipeline), wanted=wanted,
    )  # fmt: skip


def drop(keyword):
    return lambda _, dataset: dataset.pop(keyword)


def odd(_index, dataset):
    """Values of kinds that nobody expects under these names."""
    dataset.KVP = [120, 80]
    dataset.ConvolutionKernel = ["B40f", "2"]
    dataset.ScanOptions = ["A", "B"]
    dataset.add_new("SeriesNumber", "LO", "three")
    dataset.add_new("ExposureTime", "LO", "nan")
    dataset.add_new("BodyPartExamined", "US", 7)
    dataset.SeriesDescription = "words"


def second(_index, dataset):
    dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID}.2"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders with results of every kind, by name."""
    base = tmp_path_factory.mktemp("schemas")
    voxels, _, on = chest((40, 48, 48), (8.0, 8.0, 8.0))
    (base / "chest").mkdir()
    whole = write_series(base / "chest", voxels, on, study_uid=STUDY, series_uid=SERIES)
    water = grid((12, 64, 64), (5.0, 4.0, 4.0))
    (base / "water").mkdir()
    still = write_series(
        base / "water", np.zeros(water.shape, np.int16), water, study_uid=STUDY, series_uid=SERIES, edit=odd
    )
    ramp = write_ramp(base / "ramp", grid())
    two = ramp + write_ramp(base / "other", grid((6, 12, 10), axes=CORONAL), edit=second)
    runs = {
        "exact": run(whole, base / "exact"),
        "truncated": run(whole[14:], base / "truncated"),
        "no lungs": run(still, base / "no lungs", wanted=Outputs(png16=True, array="float16", descriptions=True)),
        "repaired": run(ramp[:3] + ramp[4:], base / "repaired"),
        "refused": run(write_ramp(base / "bare", grid(), edit=drop("RescaleSlope")), base / "refused"),
        "empty": run([], base / "empty"),
        "two": run(two, base / "two", volumes="all", size=(8, 8, 8)),
        "main of two": run(two, base / "main of two", spacing_mm="keep"),
    }
    found = {name: [(str(report.status), str(report.lungs)) for report in reports] for name, reports in runs.items()}
    assert found == {
        "exact": [("EXACT", found["exact"][0][1])],
        "truncated": [("EXACT", "TRUNCATED")],
        "no lungs": [("EXACT", "NO_LUNGS")],
        "repaired": [("REPAIRED", "NOT_RUN")],
        "refused": [("REFUSED", "NOT_RUN")],
        "empty": [("REFUSED", "NOT_RUN")],
        "two": [("EXACT", "NO_LUNGS"), ("EXACT", "NOT_RUN")],
        "main of two": [("EXACT", "NO_LUNGS")],
    }
    return {name: base / name for name in runs}


def written(places, name):
    """Return what all files of this name hold, those of further volumes included."""
    paths = [path for folder in places.values() for path in sorted(folder.glob(f"{name}*.json"))]
    return [json.loads(path.read_text("utf-8")) for path in paths if path.name != "ct_norm.json"]


def test_what_is_written_is_what_the_schemas_say(places, schemas):
    seen = dict.fromkeys(schemas, 0)
    for name, schema in schemas.items():
        for told in written(places, name):
            schema.validate(told)
            seen[name] += 1
    assert seen == {"ct": 9, "measurements": 5}


@pytest.mark.parametrize("name", ["ct", "measurements"])
def test_every_key_that_a_schema_knows_is_written_by_something(places, schemas, name):
    """A key that no result has, or that a result has and no schema knows, makes one of the two untrue."""
    keys = {key for told in written(places, name) for key in told.get("ctnode", told)}
    known = schemas[name].schema
    known = known["$defs"]["ctnode"] if name == "ct" else known
    assert keys == set(known["properties"])


def broken(change):
    def apply(told):
        told = copy.deepcopy(told)
        change(told)
        return told

    return apply


@pytest.mark.parametrize(
    ("place", "name", "change"),
    [
        ("exact", "ct", lambda told: told["ctnode"].update(more=1)),
        ("exact", "ct", lambda told: told.update(PatientName="Doe")),
        ("exact", "ct", lambda told: told["ctnode"].pop("geometry")),
        ("exact", "ct", lambda told: told["ctnode"]["geometry"]["native"]["spacing_zyx_mm"].append(1.0)),
        ("exact", "ct", lambda told: told["ctnode"]["sha256"].update({"ct.nii.gz": "00"})),
        ("exact", "ct", lambda told: told["ctnode"].update(status="FINE")),
        ("exact", "ct", lambda told: told["ctnode"].update(volume=0)),
        ("refused", "ct", lambda told: told["ctnode"]["issues"].clear()),
        ("refused", "ct", lambda told: told["ctnode"].update(unit="HU")),
        ("repaired", "ct", lambda told: told["ctnode"]["issues"][0].update(code="lower case")),
        ("exact", "measurements", lambda told: told["both"].pop("volume_ml")),
        ("exact", "measurements", lambda told: told["right"].update(laa950_pct=101.0)),
        ("exact", "measurements", lambda told: told.update(status="NOT_RUN")),
        ("no lungs", "measurements", lambda told: told["reasons"].clear()),
    ],
)
def test_what_is_not_so_is_found(places, schemas, place, name, change):
    told = json.loads((places[place] / f"{name}.json").read_text("utf-8"))
    schemas[name].validate(told)
    assert not schemas[name].is_valid(broken(change)(told))


def test_no_lungs_with_numbers_are_no_answer(places, schemas):
    none, some = (
        json.loads((places[place] / "measurements.json").read_text("utf-8")) for place in ("no lungs", "exact")
    )
    assert not schemas["measurements"].is_valid({**none, "both": some["both"]})
