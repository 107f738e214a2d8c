"""A bit that fell over in the store is found, and reading keeps to its rate."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ctnode.archive import outbox
from ctnode.archive.outbox import Parcel
from ctnode.archive.scrub import Pace, scrub
from ctnode.archive.scrub_results import scrub_results
from ctnode.cli import cli
from tests.archive_root import SERIES, STUDY, Root, stack

pytestmark = pytest.mark.integration


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    root = Root(tmp_path / "node")
    root.hold(*stack(4))
    yield root
    root.close()


def faults(root: Root) -> dict[str, str]:
    return {one.path: one.fault for one in scrub(root.database, root.layout, Pace(0)) if one.fault}


def test_what_is_as_it_came_has_no_fault(root: Root) -> None:
    assert len(list(scrub(root.database, root.layout, Pace(0)))) == 4
    assert faults(root) == {}


def test_a_changed_a_cut_and_a_foreign_file_are_found(root: Root) -> None:
    flipped, cut, foreign, _ = sorted(root.layout.store.rglob("*.dcm"))
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-2])
    foreign.write_bytes(b"something else")
    found = faults(root)
    assert set(found) == {f"store/{file.relative_to(root.layout.store)}" for file in (flipped, cut, foreign)}


def test_a_row_whose_file_still_waits_in_the_journal_is_no_fault(root: Root) -> None:
    min(root.layout.store.rglob("*.dcm")).unlink()
    assert faults(root) == {}


def test_the_rate_is_kept(root: Root) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    pace = Pace(100.0, clock=lambda: now, sleep=sleep)
    size = sum(one.bytes for one in scrub(root.database, root.layout, pace))
    assert now == pytest.approx(size / 100.0)


@pytest.fixture
def folder(root: Root) -> Path:
    """Publish results of the series, and owe one of them."""
    revision = root.complete()
    folder = root.layout.result_directory(STUDY, SERIES, 1, 1)
    folder.mkdir(parents=True)
    digests = {}
    for name in ("ct.nii.gz", "report.dcm"):
        (folder / name).write_bytes(name.encode() * 100)
        digests[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "ct.json").write_text(json.dumps({"ctnode": {"sha256": digests}}))
    with root.database.immediate():
        root.database.execute("UPDATE revisions SET state = 'DONE'")
        root.database.execute("INSERT INTO volumes VALUES (?, 1, 'EXACT', 'OK', '[]')", (revision.id,))
        outbox.post(root.database, revision.id,
                    [Parcel("pacs", "report", f"{STUDY}/{SERIES}/r1/report.dcm", digests["report.dcm"])])  # fmt: skip
    return folder


def result_faults(root: Root) -> dict[str, str]:
    found = scrub_results(root.database, root.layout, Pace(0))
    return {one.path.rpartition("/")[2]: one.fault for one in found if one.fault}


def test_results_as_they_were_published_have_no_fault(root: Root, folder: Path) -> None:
    assert len(list(scrub_results(root.database, root.layout, Pace(0)))) == 3
    assert result_faults(root) == {}


def test_a_changed_a_missing_and_an_unowed_result_are_found(root: Root, folder: Path) -> None:
    content = bytearray((folder / "ct.nii.gz").read_bytes())
    content[5] ^= 1
    (folder / "ct.nii.gz").write_bytes(content)
    (folder / "report.dcm").unlink()
    assert result_faults(root) == {
        "ct.nii.gz": "it is not what was published",
        "report.dcm": "cannot be read: No such file or directory",
    }


def test_an_object_that_is_owed_has_to_be_the_one_that_was_owed(root: Root, folder: Path) -> None:
    with root.database.immediate():
        root.database.execute("UPDATE deliveries SET digest = 'another'")
    assert result_faults(root) == {"report.dcm": "it is not what is owed to a destination"}
    with root.database.immediate():
        root.database.execute("UPDATE deliveries SET state = 'SENT'")
    assert result_faults(root) == {}


def test_a_side_car_that_cannot_be_read_and_a_folder_that_is_gone_are_found(root: Root, folder: Path) -> None:
    (folder / "ct.json").write_text("{")
    assert result_faults(root) == {"ct.json": "the side-car cannot be read"}
    (folder / "ct.json").unlink()
    assert result_faults(root) == {"ct.json": "the side-car is gone"}
    shutil.rmtree(folder)
    assert result_faults(root) == {"r1": "the folder is gone"}


def test_what_a_rule_deleted_is_no_fault(root: Root, folder: Path) -> None:
    shutil.rmtree(folder)
    with root.database.immediate():
        root.database.execute("INSERT INTO removals (series_id, revision_id, rule, began_at) VALUES (1, 1, 'x', 0)")
    assert result_faults(root) == {}


def test_doctor_tells_what_the_last_one_found(root: Root, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[storage]\nroot = "{root.layout.root}"\n')

    def verification(kind: str = "results") -> dict[str, object]:
        told = json.loads(CliRunner().invoke(cli, ["--config", str(file), "doctor", "--json"]).output)
        return next(one for one in told if one["what"] == f"verification of {kind}")

    assert verification()["is_good"]
    (folder / "report.dcm").write_bytes(b"other")
    told = CliRunner().invoke(cli, ["--config", str(file), "verify", "--only", "results"])
    assert told.exit_code == 1
    assert "3 files" in told.output
    assert not verification()["is_good"]
    assert "report.dcm: it is not what was published" in str(verification()["found"])
    assert CliRunner().invoke(cli, ["--config", str(file), "verify", "--only", "originals"]).exit_code == 0
    assert "4 files read, 0 differ" in str(verification("originals")["found"])
    assert not verification()["is_good"]


def test_the_command_says_what_differs_and_exits_with_1(root: Root, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[storage]\nroot = "{root.layout.root}"\n')
    run = CliRunner().invoke
    assert run(cli, ["--config", str(file), "verify"]).exit_code == 0
    damaged = min(root.layout.store.rglob("*.dcm"))
    damaged.write_bytes(damaged.read_bytes()[:-2])
    told = run(cli, ["--config", str(file), "verify", "--json", "--rate", "0"])
    assert told.exit_code == 1
    assert json.loads(told.output)["files"] == 4
    assert len(json.loads(told.output)["faults"]) == 1
