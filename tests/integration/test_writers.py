"""Adding an output is adding a file; a key of its name switches it."""

from __future__ import annotations

import sys
import textwrap
from datetime import UTC, datetime

import pytest

from ctnode.config import Outputs, Pipeline
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.flow.pipeline import process_series
from ctnode.results import writers
from ctnode.results.case import Stage, numbered
from tests.acceptance.test_end_to_end import RESULTS
from tests.harness import REPOSITORY
from tests.phantom_series import SERIES, STUDY

pytestmark = pytest.mark.integration

OFF = Outputs(iso=False, lungs=False, preview=False, mpr=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    voxels, _, on = chest((40, 48, 48), (8.0, 8.0, 8.0))
    return write_series(tmp_path_factory.mktemp("chest"), voxels, on, study_uid=STUDY, series_uid=SERIES)


def run(files, out, wanted=OFF):
    out.mkdir()
    (report,) = process_series(
        files, study=STUDY, series=SERIES, revision=1, made_at=datetime(2020, 1, 1, tzinfo=UTC), out=out,
        settings=Pipeline(), wanted=wanted,
    )  # fmt: skip
    return report


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Add a module to the package, as somebody would who adds an output."""

    def add(name, content):
        (tmp_path / "more").mkdir(exist_ok=True)
        (tmp_path / "more" / f"{name}.py").write_text(textwrap.dedent(content))
        monkeypatch.setattr(writers, "__path__", [str(tmp_path / "more"), *writers.__path__])
        monkeypatch.delitem(sys.modules, f"ctnode.results.writers.{name}", raising=False)
        monkeypatch.delattr(writers, name, raising=False)

    yield add
    for name in [name for name in sys.modules if name.startswith("ctnode.results.writers.added")]:
        del sys.modules[name]


SIZE = """
    from ctnode.results.case import Case, Stage

    AFTER = Stage.{stage}

    def available(case):
        return case.{needs} is not None

    def write(case):
        path = case.path("size.txt")
        path.write_text(str(case.{needs}.voxels.shape if "{needs}" == "volume" else case.{needs}.status))
        return (path,)
"""


def test_a_file_in_the_package_is_an_output(files, tmp_path, added):
    added("added_size", SIZE.format(stage="VOLUME", needs="volume"))
    report = run(files, tmp_path / "out")
    assert set(report.outputs) == {"ct.json", "ct.nii.gz", "size.txt"}
    assert (tmp_path / "out" / "size.txt").read_text() == "(40, 48, 48)"


def test_a_writer_that_is_not_available_writes_nothing(files, tmp_path, added):
    added("added_status", SIZE.format(stage="LUNGS", needs="lungs"))
    assert "size.txt" not in run(files, tmp_path / "without").outputs
    assert "size.txt" in run(files, tmp_path / "with", Outputs(iso=False, preview=False)).outputs


def test_an_error_of_a_writer_is_not_swallowed(files, tmp_path, added):
    added(
        "added_fault", SIZE.format(stage="VOLUME", needs="volume").replace("return (path,)", "raise OSError(28, 'x')")
    )
    with pytest.raises(OSError, match="x"):
        run(files, tmp_path / "out")


def test_a_key_that_is_off_keeps_its_module_from_being_imported(added):
    added("preview", "raise AssertionError('imported')")
    assert "preview" in writers.names()
    assert not any(writer.__name__.endswith(".preview") for writer in writers.wanted_writers(OFF))
    with pytest.raises(AssertionError, match="imported"):
        writers.wanted_writers(OFF.model_copy(update={"preview": True}))


def test_every_writer_has_the_three_names():
    every = writers.wanted_writers(Outputs(png16=True, array="float32", derived=True, document=True))
    assert len(every) == len(writers.names())
    for writer in every:
        assert isinstance(writer.AFTER, Stage)
        assert callable(writer.available)
        assert callable(writer.write)


def test_documents_name_each_writer_each_switch_and_each_file():
    tables = (REPOSITORY / "docs" / "results.md").read_text()
    readme = (REPOSITORY / "README.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables.splitlines() if line[:1] == "|"]
    documented = [row for row in rows if len(row) == 4 and row[0] and row[1].startswith("`")]
    assert {row[1].strip("`") for row in documented} == set(writers.names())
    switches = " ".join(row[3] for row in documented)
    assert all(f"`{name}` (" in switches for name in set(writers.names()) & Outputs.model_fields.keys())
    files = {file for row in rows for file in row[0].replace("`", "").split(", ")}
    assert files >= RESULTS
    assert all(file in readme for file in RESULTS)


def test_files_of_further_volumes_carry_their_number():
    assert numbered("ct_iso.nii.gz", 1) == "ct_iso.nii.gz"
    assert numbered("ct_iso.nii.gz", 2) == "ct_iso_2.nii.gz"
