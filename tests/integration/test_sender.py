"""Sending to a pynetdicom SCP that answers as it is told, and to our own receiver."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom import AE, evt
from pynetdicom.dsutils import decode
from pynetdicom.presentation import AllStoragePresentationContexts

from ctnode.wire.sender import Destination, Outcome, echo, outcome_of, send
from tests.wire_peers import CT, EXPLICIT, IMPLICIT, VERIFICATION, data_set, data_set_of, receiver, uid

pytestmark = pytest.mark.integration

JPEG_LS = "1.2.840.10008.1.2.4.80"
MR = "1.2.840.10008.5.1.4.1.1.4"


def write(path: Path, name: str, *, sop_class: str = CT, syntax: str = EXPLICIT, pixels: bytes = b"\1\2") -> bytes:
    content = data_set(name, sop_class=sop_class, pixels=pixels)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = sop_class, name, syntax
    image = Dataset()
    image.file_meta = meta
    image.save_as(path, enforce_file_format=True)
    with path.open("ab") as file:
        file.write(content)
    return content


@contextmanager
def scp(statuses: dict[str, Any] | None = None, **options: Any) -> Iterator[tuple[Destination, dict[str, bytes]]]:
    stored: dict[str, bytes] = {}

    def on_store(event: evt.Event) -> Any:
        name = str(event.request.AffectedSOPInstanceUID)
        stored[name] = event.request.DataSet.getvalue()
        answer = (statuses or {}).get(name, 0)
        if answer == "abort":
            event.assoc.abort()
        return 0 if answer == "abort" else answer

    entity = AE("THERE")
    for name, value in options.items():
        setattr(entity, name, value)
    if not entity.supported_contexts:
        entity.supported_contexts = AllStoragePresentationContexts
    entity.add_supported_context(VERIFICATION)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    try:
        yield Destination("there", "THERE", "127.0.0.1", server.server_address[1]), stored
    finally:
        server.shutdown()


def closed_port() -> Destination:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Destination("gone", "GONE", "127.0.0.1", probe.getsockname()[1])


def test_files_arrive_as_they_lie_on_disk(tmp_path: Path) -> None:
    files = {uid(number): tmp_path / f"{number}.dcm" for number in range(3)}
    contents = {name: write(path, name, pixels=bytes(100_001)) for name, path in files.items()}
    with scp() as (there, stored):
        results = list(send(there, "US", list(files.values()), 20))
    assert [(result.path, result.outcome, result.status) for result in results] == [
        (path, Outcome.SENT, 0) for path in files.values()
    ]
    assert stored == contents


def test_our_own_receiver_keeps_them_bit_for_bit(tmp_path: Path) -> None:
    content = write(tmp_path / "a.dcm", uid(5), pixels=bytes(1_000_000))
    with receiver(tmp_path / "root") as node:
        there = Destination("self", "CTNODE", "127.0.0.1", node.port)
        assert echo(there, "US", 20).ok
        (result,) = send(there, "US", [tmp_path / "a.dcm"], 20)
        assert result.outcome is Outcome.SENT
        (kept,) = node.layout.incoming.glob("*/*.dcm")
        assert data_set_of(kept) == content
        # What our own spool wrote can be sent on: the data set is the same again.
        (again,) = send(there, "US", [kept], 20)
        assert again.outcome is Outcome.SENT
        assert node.kept() == [content, content]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0x0000, Outcome.SENT),
        (0xB000, Outcome.SENT),
        (0xB007, Outcome.SENT),
        (0x0107, Outcome.SENT),
        (0x0111, Outcome.SENT),
        (0xA700, Outcome.RETRY),
        (0xA7FF, Outcome.RETRY),
        (0xA900, Outcome.DEAD),
        (0xC000, Outcome.DEAD),
        (0x0110, Outcome.RETRY),
        (0x0213, Outcome.RETRY),
        (0x0124, Outcome.DEAD),
        (0x0122, Outcome.DEAD),
    ],
)
def test_what_a_status_means(status: int, outcome: Outcome) -> None:
    assert outcome_of(status) is outcome


def test_one_refused_file_does_not_hold_up_the_others(tmp_path: Path) -> None:
    comment = Dataset()
    comment.Status, comment.ErrorComment = 0xA700, "the disk is full"
    names = [uid(number) for number in range(4)]
    for name in names:
        write(tmp_path / name, name)
    with scp({names[1]: comment, names[2]: 0xC001}) as (there, _):
        results = list(send(there, "US", [tmp_path / name for name in names], 20))
    assert [result.outcome for result in results] == [Outcome.SENT, Outcome.RETRY, Outcome.DEAD, Outcome.SENT]
    assert (results[1].status, results[1].comment) == (0xA700, "the disk is full")


def test_what_is_not_accepted_is_dead_and_nothing_is_transcoded(tmp_path: Path) -> None:
    write(tmp_path / "plain", uid(1))
    write(tmp_path / "packed", uid(2), syntax=JPEG_LS)
    write(tmp_path / "other", uid(3), sop_class=MR)
    entity = AE("X")
    entity.add_supported_context(CT, [IMPLICIT, EXPLICIT])
    with scp(supported_contexts=entity.supported_contexts) as (there, stored):
        results = list(send(there, "US", [tmp_path / "plain", tmp_path / "packed", tmp_path / "other"], 20))
    assert [result.outcome for result in results] == [Outcome.SENT, Outcome.DEAD, Outcome.DEAD]
    assert list(stored) == [uid(1)]


def test_an_association_that_ends_leaves_the_rest_to_try_again(tmp_path: Path) -> None:
    names = [uid(number) for number in range(3)]
    for name in names:
        write(tmp_path / name, name)
    with scp({names[1]: "abort"}) as (there, _):
        results = list(send(there, "US", [tmp_path / name for name in names], 20))
    assert [result.outcome for result in results] == [Outcome.SENT, Outcome.RETRY, Outcome.UNTRIED]
    assert [result.may_have_arrived for result in results] == [False, True, False]


def test_nobody_there_and_rejected_are_tried_again(tmp_path: Path) -> None:
    write(tmp_path / "a", uid(1))
    for there, why in (
        (closed_port(), "no connection: connection refused"),
        (Destination("nowhere", "X", "host.invalid", 104), "the host is not known"),
    ):
        (result,) = send(there, "US", [tmp_path / "a"], 20)
        assert (result.outcome, result.status, result.comment) == (Outcome.UNTRIED, None, why)
        assert not echo(there, "US", 20).ok
    with scp(require_calling_aet=["SOMEBODY"]) as (there, _):
        (result,) = send(there, "US", [tmp_path / "a"], 20)
        assert result.outcome is Outcome.UNTRIED
        assert "rejected" in result.comment
        answer = echo(there, "US", 20)
        assert not answer.ok
        assert "rejected" in answer.detail


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("no DICOM at all" * 100)
    write(tmp_path / "good", uid(1))
    with scp() as (there, _):
        files = [tmp_path / name for name in ("empty", "text", "absent", "good")]
        outcomes = {result.path.name: result.outcome for result in send(there, "US", files, 20)}
    assert outcomes == {
        "empty": Outcome.DEAD, "text": Outcome.DEAD, "absent": Outcome.RETRY, "good": Outcome.SENT
    }  # fmt: skip


def test_more_classes_than_one_association_can_name(tmp_path: Path) -> None:
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts][:130]
    for number, sop_class in enumerate(classes):
        write(tmp_path / f"{number:03d}", uid(number), sop_class=sop_class)
    with scp() as (there, stored):
        results = list(send(there, "US", sorted(tmp_path.iterdir()), 20))
    assert {result.outcome for result in results} == {Outcome.SENT}
    assert len(results) == len(stored) == len(classes)


def test_a_closed_iterator_releases_the_association(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / str(number), uid(number))
    with receiver(tmp_path / "root") as node:
        files = [tmp_path / str(number) for number in range(3)]
        results = send(Destination("self", "CTNODE", "127.0.0.1", node.port), "US", files, 20)
        next(results)
        results.close()  # type: ignore[attr-defined]
        node.wait_ended(1)
        assert '"released"' in node.journals()[0]
        assert len(node.files()) == 1


def compressed(path: Path) -> tuple[str, Any]:
    """Write an image in JPEG-LS; return its UID and its pixels."""
    import numpy as np
    from pydicom.uid import JPEGLSLossless

    pixels = np.random.default_rng(7).integers(0, 4000, (32, 32), dtype=np.uint16)
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = EXPLICIT
    image.SOPClassUID, image.SOPInstanceUID = CT, uid(3, 1)
    image.file_meta.MediaStorageSOPClassUID, image.file_meta.MediaStorageSOPInstanceUID = CT, uid(3, 1)
    image.StudyInstanceUID, image.SeriesInstanceUID = uid(1), uid(1, 1)
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    image.PixelData = pixels.tobytes()
    image.compress(JPEGLSLossless, generate_instance_uid=False)
    image.save_as(path, enforce_file_format=True)
    return uid(3, 1), pixels


def only(*syntaxes: str) -> list[Any]:
    entity = AE("X")
    entity.add_supported_context(CT, list(syntaxes))
    return entity.supported_contexts


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_a_compressed_object_is_decoded_only_where_that_is_wanted_and_needed(tmp_path: Path, syntax: str) -> None:
    name, pixels = compressed(tmp_path / "packed")
    with scp(supported_contexts=only(syntax)) as (there, stored):
        (result,) = send(there, "US", [tmp_path / "packed"], 20)
        assert (result.outcome, result.comment) == (Outcome.DEAD, "transfer syntax not accepted")
        (result,) = send(replace(there, transcode=True), "US", [tmp_path / "packed"], 20)
        assert (result.path, result.outcome) == (tmp_path / "packed", Outcome.SENT)
    arrived = decode(BytesIO(stored[name]), syntax == IMPLICIT, True)
    assert arrived.SOPInstanceUID == name
    assert arrived.PixelData == pixels.tobytes()
    # Whoever takes it as it is gets it as it is.
    with scp(supported_contexts=only(JPEG_LS, syntax)) as (there, stored):
        (result,) = send(replace(there, transcode=True), "US", [tmp_path / "packed"], 20)
        assert result.outcome is Outcome.SENT
    assert (tmp_path / "packed").read_bytes().endswith(stored[name])


def test_a_full_disk_while_decoding_is_no_fault_of_the_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _ = compressed(tmp_path / "packed")
    gone = tmp_path / "no folder"
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: str(gone))
    with scp(supported_contexts=only(EXPLICIT)) as (there, stored):
        (result,) = send(replace(there, transcode=True), "US", [tmp_path / "packed"], 20)
        assert result.outcome is Outcome.RETRY
        assert result.comment == "cannot read the file: No such file or directory, for its decoded form"
        gone.mkdir()
        (result,) = send(replace(there, transcode=True), "US", [tmp_path / "packed"], 20)
        assert (result.outcome, list(stored)) == (Outcome.SENT, [name])


def test_an_uncompressed_object_goes_to_whoever_knows_only_implicit(tmp_path: Path) -> None:
    write(tmp_path / "plain", uid(1), pixels=bytes(range(200)))
    with scp(supported_contexts=only(IMPLICIT)) as (there, stored):
        (result,) = send(there, "US", [tmp_path / "plain"], 20)
    assert result.outcome is Outcome.SENT
    assert decode(BytesIO(stored[uid(1)]), True, True).PixelData == bytes(range(200))


def test_what_cannot_be_decoded_is_dead_and_the_others_go(tmp_path: Path) -> None:
    compressed(tmp_path / "a-packed")
    write(tmp_path / "b-broken", uid(2), syntax=JPEG_LS, pixels=b"no JPEG at all..")
    write(tmp_path / "c-plain", uid(3))
    with scp(supported_contexts=only(EXPLICIT)) as (there, stored):
        results = list(send(replace(there, transcode=True), "US", sorted(tmp_path.iterdir()), 20))
    assert [result.outcome for result in results] == [Outcome.SENT, Outcome.DEAD, Outcome.SENT]
    assert results[1].comment.startswith("cannot be transcoded")
    assert len(stored) == 2
