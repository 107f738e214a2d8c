"""Whatever the way out, an external destination gets nothing but what is de-identified; what cannot be, stays."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest

from ctnode.archive import outbox
from ctnode.archive.outbox import ORIGINAL, Parcel
from ctnode.ct.lungs import segment
from ctnode.ct.measure import measure
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.flow.carrier import named
from ctnode.flow.outgoing import outgoing, outgoing_names, scratch_of
from ctnode.results import deid
from ctnode.results.leaving import OWN_LISTED
from ctnode.results.objects import Origin
from ctnode.results.predecessors import name_predecessors
from ctnode.results.report import write_report
from ctnode.results.seg import write_seg
from ctnode.results.sr import write_sr
from tests.archive_root import stack
from tests.delivery_root import Archive, Clock, Office, office, target
from tests.integration.test_dicomweb import Reply, web
from tests.phantom_series import read

pytestmark = pytest.mark.integration

CANARY = "KANARIENVOGEL"
STUDY, SERIES = "1.2.826.0.1.3680043.8.498.70", "1.2.826.0.1.3680043.8.498.70.1"
BORN, TAKEN = "19010203", "20260131"
EXTERNAL = {"external": True, "deidentify": "trial"}
KINDS = ("dicom", "dicomweb", "folder", "sender")
NAMES = ("original", "report", "seg", "sr")

Arrived = Callable[[], list[bytes]]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return an image of a patient, and what the node makes of the series."""
    place = tmp_path_factory.mktemp("objects")
    voxels, _, grid = chest((48, 64, 64), (6.0, 6.0, 6.0), 1)
    (place / "series").mkdir()
    files = write_series(place / "series", voxels, grid, study_uid=STUDY, series_uid=SERIES)
    for file in files:
        image = pydicom.dcmread(file)
        image.PatientName, image.PatientID, image.PatientBirthDate = CANARY, CANARY, BORN
        image.StudyDate = image.SeriesDate = TAKEN
        image.StudyDescription = image.SeriesDescription = image.InstitutionName = image.AccessionNumber = CANARY
        image.private_block(0x0019, CANARY, create=True).add_new(1, "LO", CANARY)
        image.save_as(file)
    volume = read(files)
    lungs = segment(volume)
    numbers = measure(volume, lungs)
    made_at = datetime(2026, 1, 31, 3, 4, 5, tzinfo=UTC)
    origin = Origin(STUDY, SERIES, 1, made_at, "d")
    found = {name: place / f"{name}.dcm" for name in NAMES}
    shutil.copy(files[0], found["original"])
    write_seg(found["seg"], volume, lungs, origin)
    write_sr(found["sr"], volume, numbers, origin)
    write_report(
        found["report"], volume, lungs, numbers, study=STUDY, series=SERIES, revision=1, made_at=made_at,
        settings_digest="d",
    )  # fmt: skip
    assert all(CANARY.encode() in file.read_bytes() for file in found.values())
    return found


@contextmanager
def outside(kind: str, place: Path) -> Iterator[tuple[Office, Arrived]]:
    """Give an office with an external destination of a kind, and all bytes that came out there, names too."""
    key = place / "trial.key"
    key.write_bytes(b"k" * 32)
    profiles = [{"name": "trial", "project": "TRIAL", "key_file": str(key)}]
    with ExitStack() as stack_:
        got: list[bytes] = []
        sections: dict[str, object] = {"deidentification": profiles}
        if kind == "folder":
            shelf = place / "shelf"
            shelf.mkdir()
            there: dict[str, object] = {"name": "out", "kind": kind, "path": str(shelf)}

            def arrived() -> list[bytes]:
                files = sorted(file for file in shelf.rglob("*") if file.is_file())
                return [str(file.relative_to(shelf)).encode() + file.read_bytes() for file in files]
        elif kind == "dicomweb":
            service = stack_.enter_context(web(lambda *_: (200, {}, b"")))
            there = {"name": "out", "kind": kind, "url": f"http://127.0.0.1:{service.port}"}

            def arrived() -> list[bytes]:
                heads = [repr(one).encode() for one in service.got]
                parts = [part for body in service.bodies for part in body.split(b"\r\n--") if b"DICM" in part]
                return [part + b"".join(heads) for part in parts]
        else:
            archive = stack_.enter_context(Archive())

            def take(event: object, name: str) -> None:
                got.append(name.encode() + event.encoded_dataset())  # type: ignore[attr-defined]

            archive.on_store = take
            there = target("out", archive.port)
            if kind == "sender":
                there = {"name": "out", "kind": kind}
                sections["peers"] = [{"name": "ct1", "ae_title": "CT1", "host": "127.0.0.1", "port": archive.port}]

            def arrived() -> list[bytes]:
                return list(got)

        yield stack_.enter_context(office(place, {**there, **EXTERNAL}, **sections)), arrived


def revision_of(node: Office) -> int:
    node.root.hold(*stack(2, series="1.2.3.70"), calling="CT1")
    return node.root.complete(1).id


def owe(node: Office, revision: int, objects: dict[str, Path], names: Sequence[str] = NAMES) -> None:
    """Owe objects from where they lie in a node: below folders named after the series."""
    parcels = []
    for name in names:
        kind, base = (ORIGINAL, "store") if name == "original" else (name, "results")
        relative = f"{STUDY}/{SERIES}/r1/{name}.dcm"
        file = getattr(node.root.layout, base) / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(objects[name], file)
        parcels.append(Parcel("out", kind, relative, name))
    with node.root.database.immediate():
        outbox.post(node.root.database, revision, parcels)


def secrets_of(objects: dict[str, Path]) -> list[str]:
    own = [one for file in objects.values() if (one := named(file)) is not None]
    return [CANARY, BORN, TAKEN, STUDY, SERIES, *(one.sop_instance for one in own), *(one.series for one in own)]


def scratch(node: Office) -> list[Path]:
    return list(node.root.layout.run.glob("outgoing-*"))


@pytest.mark.parametrize("kind", KINDS)
def test_only_deidentified_bytes_come_out(tmp_path: Path, objects: dict[str, Path], kind: str) -> None:
    with outside(kind, tmp_path) as (node, arrived):
        owe(node, revision_of(node), objects)
        node.work()
        assert [(one.state, one.comment) for one in node.deliveries()] == [("SENT", "")] * 4
        came = arrived()
        assert len(came) == 4
        for content in came:
            assert [word for word in secrets_of(objects) if word.encode() in content] == []
            assert b"TRIAL-" in content
            assert b"113100" in content
        assert scratch(node) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_deidentified_stays_here_and_says_why(
    tmp_path: Path, objects: dict[str, Path], kind: str
) -> None:
    burned = pydicom.dcmread(objects["original"])
    burned.BurnedInAnnotation = "YES"
    burned.save_as(tmp_path / "burned.dcm")
    (tmp_path / "broken.dcm").write_bytes(b"no image" * 50)
    mixed = {**objects, "original": tmp_path / "burned.dcm", "seg": tmp_path / "broken.dcm"}
    with outside(kind, tmp_path) as (node, arrived):
        owe(node, revision_of(node), mixed)
        node.work()
        first, second, third, fourth = node.deliveries()
        assert [str(one.state) for one in (first, second, third, fourth)] == ["DEAD", "SENT", "DEAD", "SENT"]
        assert "burned-in annotation" in first.comment
        assert "cannot be de-identified" in third.comment
        assert len(arrived()) == 2
        assert scratch(node) == []


def test_a_key_that_is_gone_lets_nothing_out(tmp_path: Path, objects: dict[str, Path]) -> None:
    with outside("folder", tmp_path) as (node, arrived):
        owe(node, revision_of(node), objects)
        (tmp_path / "trial.key").unlink()
        node.work()
        assert set(node.states()) == {"DEAD"}
        assert "the key of the profile trial cannot be read" in node.deliveries()[0].comment
        assert arrived() == []


def test_a_full_disk_here_is_no_end_of_a_delivery(
    tmp_path: Path, objects: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with outside("folder", tmp_path) as (node, arrived):
        owe(node, revision_of(node), objects, ["original"])
        with monkeypatch.context() as broken:
            broken.setattr(deid, "write_durable", full)
            node.work()
        assert [(one.state, one.comment) for one in node.deliveries()] == [
            ("RETRY", "cannot be prepared: No space left on device")
        ]
        node.retry()
        node.work()
        assert node.states() == ["SENT"]
        assert len(arrived()) == 1


def test_the_proof_asks_for_the_names_that_were_sent(
    tmp_path: Path, objects: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    clock.install(monkeypatch)
    (tmp_path / "trial.key").write_bytes(b"k" * 32)
    asked: list[str] = []
    wanted: dict[str, str] = {}

    def reply(method: str, path: str, _uids: list[str]) -> Reply:
        if method == "POST":
            return 200, {}, b""
        asked.append(path)
        found = [{"00080018": {"vr": "UI", "Value": [name]}} for series, name in wanted.items() if series in path]
        return 200, {}, str(found).replace("'", '"').encode()

    profiles = [{"name": "trial", "project": "TRIAL", "key_file": str(tmp_path / "trial.key")}]
    with web(reply) as service:
        there = {"name": "out", "kind": "dicomweb", "url": f"http://127.0.0.1:{service.port}", "proof": "query"}
        with office(tmp_path, {**there, **EXTERNAL}, deidentification=profiles) as node:
            for name, file in objects.items():
                one = named(outgoing(node.config, node.config.targets[0], file, tmp_path))
                assert one is not None
                assert outgoing_names(node.config, node.config.targets[0], file) == one, name
                wanted[one.series] = one.sop_instance
            owe(node, revision_of(node), objects)
            node.work()
            clock.now += 5.1
            node.work()
            assert node.states() == ["CONFIRMED"] * 4
            assert [word for word in secrets_of(objects) if word in "".join(asked)] == []


def test_an_object_that_two_revisions_owe_is_sent_for_both(tmp_path: Path, objects: dict[str, Path]) -> None:
    with outside("dicom", tmp_path) as (node, arrived):
        for revision in (revision_of(node), *node.series()):
            owe(node, revision, objects, ["original"])
        node.work()
        assert node.states() == ["SENT", "SENT"]
        assert len(set(arrived())) == 1


def test_a_deliverer_that_starts_removes_what_a_killed_one_left(tmp_path: Path, objects: dict[str, Path]) -> None:
    class Stopped:
        stopping = True

        def ready(self) -> None: ...

        def draining(self) -> None: ...

    with outside("folder", tmp_path) as (node, _):
        left = scratch_of(node.root.layout)
        left.mkdir()
        shutil.copy(objects["original"], left)
        node.deliverer.role = Stopped()  # type: ignore[assignment]
        node.deliverer.run()
        assert scratch(node) == []


def _codes(dataset: pydicom.Dataset) -> list[tuple[str, str]]:
    """Return scheme and value of each code, but those of free text, which does not leave."""
    found: list[tuple[str, str]] = []
    if "CodeValue" in dataset:
        found.append((str(dataset.CodingSchemeDesignator), str(dataset.CodeValue)))
    for one in dataset:
        if one.VR == "SQ" and one.keyword in OWN_LISTED:
            found += [code for item in one.value if item.get("ValueType") != "TEXT" for code in _codes(item)]
    return found


@pytest.mark.parametrize("name", ["seg", "sr", "report"])
def test_what_ctnode_made_means_the_same_outside(tmp_path: Path, objects: dict[str, Path], name: str) -> None:
    deid.deidentify_file(objects[name], tmp_path / "made.dcm", deid.Profile("TRIAL", b"k" * 32))
    before, after = pydicom.dcmread(objects[name]), pydicom.dcmread(tmp_path / "made.dcm")
    assert _codes(after)[: -len(after.DeidentificationMethodCodeSequence)] or name == "report"
    methods = [("DCM", code.CodeValue) for code in after.DeidentificationMethodCodeSequence]
    assert sorted(_codes(after) + methods) == sorted(_codes(before) + methods)
    assert after.SeriesDescription == before.SeriesDescription
    if name == "seg":
        assert [one.SegmentLabel for one in after.SegmentSequence] == [
            one.SegmentLabel for one in before.SegmentSequence
        ]
        assert after.PixelData == before.PixelData
    if name == "sr":
        measured = [one.value for one in after.iterall() if one.keyword == "NumericValue"]
        assert measured == [one.value for one in before.iterall() if one.keyword == "NumericValue"]
        assert measured


def test_a_later_revision_names_its_predecessors_outside_too(tmp_path: Path, objects: dict[str, Path]) -> None:
    profile = deid.Profile("TRIAL", b"k" * 32)
    for name in ("report", "sr"):
        for revision in (1, 2):
            (tmp_path / f"r{revision}").mkdir(exist_ok=True)
            shutil.copy(objects[name], tmp_path / f"r{revision}" / f"{name}.dcm")
        name_predecessors(tmp_path / "r2", [f"{name}.dcm"], 2)
        deid.deidentify_file(tmp_path / "r2" / f"{name}.dcm", tmp_path / "made.dcm", profile)
        made, earlier = pydicom.dcmread(tmp_path / "made.dcm"), pydicom.dcmread(objects[name])
        assert made.SeriesDescription.endswith(", revision 2")
        (before,) = (
            made.RelatedSeriesSequence
            if name == "report"
            else (made.PredecessorDocumentsSequence[0].ReferencedSeriesSequence)
        )
        assert before.SeriesInstanceUID == profile.mapped_uid(earlier.SeriesInstanceUID)
