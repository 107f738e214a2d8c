"""DCMTK's programs as senders: what they send in each transfer syntax is there, as it was sent."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from tests.wire_peers import CT, data_set_of, uid
from tests.wire_roles import ReceiveRole, dcmtk, receive_role, run_tool, wait_until

pytestmark = pytest.mark.acceptance

# storescu's options, and the transfer syntax that each proposes first.
PROPOSALS = {
    "--propose-little": "1.2.840.10008.1.2.1",
    "--propose-implicit": "1.2.840.10008.1.2",
    "--propose-big": "1.2.840.10008.1.2.2",
    "--propose-lossless": "1.2.840.10008.1.2.4.70",
    "--propose-jpeg8": "1.2.840.10008.1.2.4.50",
    "--propose-jpeg12": "1.2.840.10008.1.2.4.51",
    "--propose-j2k-lossless": "1.2.840.10008.1.2.4.90",
    "--propose-j2k-lossy": "1.2.840.10008.1.2.4.91",
    "--propose-jls-lossless": "1.2.840.10008.1.2.4.80",
    "--propose-jls-lossy": "1.2.840.10008.1.2.4.81",
    "--propose-rle": "1.2.840.10008.1.2.5",
}


@pytest.fixture
def role(tmp_path: Path) -> Iterator[ReceiveRole]:
    with receive_role(tmp_path) as running:
        running.wait_ready()
        yield running


def write_slice(path: Path, number: int, syntax: str) -> None:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = UID(syntax)
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CT
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = uid(20, number)
    image.StudyInstanceUID, image.SeriesInstanceUID, image.InstanceNumber = uid(2), uid(2, 1), number
    image.Modality, image.Rows, image.Columns, image.SamplesPerPixel = "CT", 64, 64, 1
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PhotometricInterpretation = "MONOCHROME2"
    pixels = bytes((number + place) % 251 for place in range(64 * 64 * 2))
    if UID(syntax).is_compressed:
        image.PixelData = encapsulate([pixels])
        image["PixelData"].is_undefined_length = True
        image["PixelData"].VR = "OB"
    else:
        image.PixelData = pixels
        image["PixelData"].VR = "OW"
    image.save_as(path, enforce_file_format=True)


def stored(role: ReceiveRole) -> list[Path]:
    return sorted((role.root / "incoming").glob("*/*.dcm"))


def test_echoscu(role: ReceiveRole) -> None:
    result = run_tool(dcmtk("echoscu"), "-v", "127.0.0.1", role.wait_ready())
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("option", PROPOSALS)
def test_storescu_with_each_proposal(role: ReceiveRole, tmp_path: Path, option: str) -> None:
    source = tmp_path / "slice.dcm"
    write_slice(source, 1, PROPOSALS[option])
    result = run_tool(dcmtk("storescu"), option, "127.0.0.1", role.wait_ready(), source)
    assert result.returncode == 0, result.stderr
    (file,) = stored(role)
    kept, sent = pydicom.dcmread(file), pydicom.dcmread(source)
    assert kept.file_meta.TransferSyntaxUID == PROPOSALS[option]
    assert kept.PixelData == sent.PixelData
    assert kept.SOPInstanceUID == kept.file_meta.MediaStorageSOPInstanceUID == sent.SOPInstanceUID


def test_dcmsend_in_several_syntaxes_over_one_association(role: ReceiveRole, tmp_path: Path) -> None:
    syntaxes = [syntax for syntax in PROPOSALS.values() if syntax != "1.2.840.10008.1.2.2"]
    sources = [tmp_path / f"{number}.dcm" for number in range(len(syntaxes))]
    for number, (source, syntax) in enumerate(zip(sources, syntaxes, strict=True)):
        write_slice(source, number, syntax)
    result = run_tool(dcmtk("dcmsend"), "--decompress-never", "127.0.0.1", role.wait_ready(), *sources)
    assert result.returncode == 0, result.stderr
    kept = {str(pydicom.dcmread(file).SOPInstanceUID): file for file in stored(role)}
    assert len(kept) == len(sources)
    for number, source in enumerate(sources):
        assert pydicom.dcmread(kept[uid(20, number)]).PixelData == pydicom.dcmread(source).PixelData


def test_dcmdump_reads_what_is_kept(role: ReceiveRole, tmp_path: Path) -> None:
    write_slice(tmp_path / "slice.dcm", 1, "1.2.840.10008.1.2.1")
    run_tool(
        dcmtk("storescu"), "-aet", "SCANNER", "-aec", "NODE", "127.0.0.1", role.wait_ready(), tmp_path / "slice.dcm"
    )
    result = run_tool(dcmtk("dcmdump"), "--quote-nonascii", *stored(role))
    assert result.returncode == 0, result.stderr
    for line in ("(0002,0016) AE [SCANNER]", "(0002,0018) AE [NODE]", "(0002,0026) UR [127.0.0.1:", uid(20, 1)):
        assert line in result.stdout


def test_the_bytes_are_those_that_storescp_gets(role: ReceiveRole, tmp_path: Path) -> None:
    """``storescp --bit-preserving`` writes what is on the wire; so do we."""
    write_slice(tmp_path / "slice.dcm", 1, "1.2.840.10008.1.2.4.80")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        [dcmtk("storescp"), "--bit-preserving", "--accept-all", "-od", theirs, str(port)]
    ) as storescp:
        try:
            sender = dcmtk("storescu")
            arguments = ("--propose-jls-lossless", "127.0.0.1")
            wait_until(lambda: run_tool(sender, *arguments, port, tmp_path / "slice.dcm").returncode == 0, "storescp")
            assert run_tool(sender, *arguments, role.wait_ready(), tmp_path / "slice.dcm").returncode == 0
        finally:
            storescp.terminate()
    (one,) = theirs.iterdir()
    (other,) = stored(role)
    assert data_set_of(other) == data_set_of(one)


def test_a_sender_that_is_killed_leaves_only_what_was_acknowledged(role: ReceiveRole, tmp_path: Path) -> None:
    for number in range(2):
        write_slice(tmp_path / f"{number}.dcm", number, "1.2.840.10008.1.2.1")
    port = role.wait_ready()
    sender = subprocess.Popen(
        [dcmtk("storescu"), "--repeat", "10000", "127.0.0.1", str(port), tmp_path / "0.dcm", tmp_path / "1.dcm"]
    )
    wait_until(lambda: len(stored(role)) > 20, "some instances")
    sender.kill()
    sender.wait()
    wait_until(lambda: role.counters()["ended"], "the end")
    names = {path.suffix for path in (role.root / "incoming").glob("*/*") if path.name != "association.jsonl"}
    assert names == {".dcm"}
    for file in stored(role):
        assert pydicom.dcmread(file).PixelData
