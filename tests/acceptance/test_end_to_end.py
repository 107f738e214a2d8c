"""A study that real senders push becomes a results folder, and a result goes back by C-STORE."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from pydicom import Dataset, dcmread
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from tests.harness import (
    LOOPBACK,
    Gate,
    Node,
    Popen,
    data_folder,
    data_set_of,
    end,
    free_port,
    philips_chest,
    run_tool,
    send_as_is,
    series_of,
    siemens_chest,
    small_series,
    sop_and_digest,
    start_storescu,
    storescp,
    storescu,
    tool,
    wait_until,
)

pytestmark = pytest.mark.acceptance

RESULTS = {
    "ct.json", "ct.nii.gz", "ct_iso.nii.gz", "preview.png", "mpr.png", "lungs.nii.gz", "lungs_iso.nii.gz", "lungs.png",
    "histogram.png", "surface.png", "measurements.json", "histogram.json", "histogram.csv", "seg.dcm", "sr.dcm",
    "report.dcm",
}  # fmt: skip
# Called by this title, a series waits longer: for senders that are several programs one after the other.
PATIENT = "PATIENT"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for all tests that bring series of their own and ask for no special configuration."""
    tool("storescu")
    place = tmp_path_factory.mktemp("node")
    with Node(place, completion={"quiet_s": 0.5, "called_ae_quiet_s": {PATIENT: 3.0}}, worker={"processes": 2}) as node:
        yield node
        assert node.terminate() == 0


@pytest.fixture
def chest(tmp_path: Path, request: pytest.FixtureRequest) -> list[Path]:
    """A whole chest with UIDs of its own, so that each test has its own series."""
    place = tmp_path / "chest"
    place.mkdir()
    files = []
    uids: dict[str, str] = {}
    for file in siemens_chest():
        image = dcmread(file)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
            old = str(image[keyword].value)
            image[keyword].value = uids.setdefault(old, generate_uid(entropy_srcs=[request.node.name, old]))
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(place / file.name)
        files.append(place / file.name)
    return files


def sent_to_storescp(place: Path, files: Sequence[Path]) -> dict[str, str]:
    """Return what this very sender puts on the wire, as DCMTK's own bit-preserving receiver keeps it.

    storescu sends in the syntax of the file where it may, which is what the node offers it.
    """
    is_implicit = dcmread(files[0], stop_before_pixels=True).file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    with storescp(place, "--implicit" if is_implicit else "--prefer-little") as port:
        assert storescu(port, files).returncode == 0
    return dict(sop_and_digest(file) for file in place.iterdir())


def check_results(node: Node, uid: str, files: Sequence[Path], *, revision: int = 1) -> dict[str, Any]:
    """Check a results folder against an independent reading of the files that were sent; return its side-car."""
    folder = node.results(uid, revision)
    names = {path.name for path in folder.iterdir()}
    assert names >= RESULTS, f"missing: {RESULTS - names}"
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")], "left from publishing"
    sidecar = json.loads((folder / "ct.json").read_text())
    check_volume(folder / "ct.nii.gz", files)
    lungs, ct = nibabel.load(folder / "lungs.nii.gz"), nibabel.load(folder / "ct.nii.gz")
    np.testing.assert_array_equal(lungs.affine, ct.affine)
    assert set(np.unique(np.asarray(lungs.dataobj))) <= {0, 1, 2, 3}
    image = dcmread(files[0], stop_before_pixels=True)
    report = dcmread(folder / "report.dcm")
    assert report.StudyInstanceUID == image.StudyInstanceUID
    assert report.SeriesInstanceUID != image.SeriesInstanceUID
    assert report.PatientID == image.PatientID
    return sidecar


def check_volume(nifti: Path, files: Sequence[Path]) -> None:
    """Both readers see the geometry and the HU that GDCM and ITK read out of the original files."""
    reader = SimpleITK.ImageSeriesReader()
    place = {str(file.parent) for file in files}
    assert len(place) == 1
    ordered = reader.GetGDCMSeriesFileNames(place.pop(), series_of(files[0]))
    wanted = {str(file) for file in files}
    reader.SetFileNames([name for name in ordered if name in wanted])
    original = reader.Execute()

    ours = SimpleITK.ReadImage(str(nifti))
    assert ours.GetSize() == original.GetSize()
    placed = SimpleITK.Resample(ours, original, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, -32768.0)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(placed), SimpleITK.GetArrayFromImage(original))

    volume = nibabel.load(nifti)
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.reshape(ours.GetDirection(), (3, 3)) * ours.GetSpacing()
    affine_lps[:3, 3] = ours.GetOrigin()
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ volume.affine, affine_lps, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(volume.dataobj).T, SimpleITK.GetArrayFromImage(ours))


@pytest.mark.parametrize("files_of", [siemens_chest, philips_chest])
def test_whole_chest_becomes_results(node: Node, tmp_path: Path, files_of: Any) -> None:
    files = files_of()
    uid = series_of(files[0])
    oracle = sent_to_storescp(tmp_path / "oracle", files)

    assert storescu(node.port, files).returncode == 0

    series = node.wait_series(uid, instances=len(files))
    assert (series.verdict, series.revision, series.instances) == ("LIKELY", 1, len(files))
    assert check_results(node, uid, files)["ctnode"]["status"] == "EXACT"
    node.wait_settled()
    node.check_promises(oracle)
    shown = node.json("series", "show", uid)
    assert shown["state"] == "DONE"
    assert [link["calling_ae"] for link in shown["associations"]] == ["STORESCU"]
    assert [job["state"] for job in shown["jobs"]] == ["DONE"]
    (revision,) = node.json("series", "why", uid)["revisions"]
    sidecar = json.loads((Path(revision["results"]) / "ct.json").read_text())["ctnode"]
    assert [(volume["status"], volume["issues"]) for volume in revision["volumes"]] == [("EXACT", sidecar["issues"])]


def test_two_senders_interleave_one_series(node: Node, chest: list[Path], tmp_path: Path) -> None:
    uid = series_of(chest[0])
    oracle = sent_to_storescp(tmp_path / "oracle", chest)
    senders = [start_storescu(node.port, chest[half::2], "-aec", PATIENT, calling=f"SENDER{half}") for half in (0, 1)]
    try:
        assert [sender.wait(60) for sender in senders] == [0, 0]
    finally:
        for sender in senders:
            end(sender)

    series = node.wait_series(uid)
    assert (series.revision, series.instances, series.verdict) == (1, len(chest), "LIKELY")
    assert check_results(node, uid, chest)["ctnode"]["status"] == "EXACT"
    node.wait_settled()
    node.check_promises(oracle)
    callers = {link["calling_ae"] for link in node.json("series", "show", uid)["associations"]}
    assert callers == {"SENDER0", "SENDER1"}


def test_one_association_per_image(node: Node, chest: list[Path]) -> None:
    uid = series_of(chest[0])
    for file in chest:
        assert storescu(node.port, [file], "-aec", PATIENT).returncode == 0
    series = node.wait_series(uid)
    assert (series.revision, series.instances, series.verdict) == (1, len(chest), "LIKELY")
    assert check_results(node, uid, chest)["ctnode"]["status"] == "EXACT"


def test_sender_that_aborts_makes_the_series_suspect(node: Node, chest: list[Path]) -> None:
    uid = series_of(chest[0])
    storescu(node.port, chest, "--abort")
    series = node.wait_series(uid)
    assert (series.instances, series.verdict) == (len(chest), "SUSPECT")
    assert "aborted" in series.evidence
    assert check_results(node, uid, chest)["ctnode"]["status"] == "EXACT"


def test_sender_killed_in_the_middle_loses_nothing_that_was_acknowledged(node: Node, chest: list[Path]) -> None:
    uid = series_of(chest[0])
    bytes_of_some = sum(file.stat().st_size for file in chest[:12])
    with Gate(node.port, bytes_of_some) as gate:
        sender = start_storescu(gate.port, chest)
        try:
            node.wait_for(gate.is_shut.is_set, "the sender stands still in the middle")
            node.wait_for(lambda: (now := node.series(uid)) and now.instances >= 10, "what was sent is settled")
            sender.kill()
            said, _ = sender.communicate()
        finally:
            end(sender)
    acknowledged = said.count(b"Received Store Response (Success)")
    assert 10 <= acknowledged < len(chest)

    series = node.wait_series(uid)
    assert acknowledged <= series.instances < len(chest)
    assert series.verdict == "SUSPECT"
    check_results(node, uid, chest[: series.instances])
    node.wait_settled()
    assert not list(node.layout.incoming.rglob("*.part"))

    assert storescu(node.port, chest).returncode == 0
    resent = node.wait_series(uid, revision=2)
    assert (resent.revision, resent.instances, resent.duplicates) == (2, len(chest), series.instances)
    assert check_results(node, uid, chest, revision=2)["ctnode"]["status"] == "EXACT"


def test_resend_of_everything_changes_nothing(node: Node, chest: list[Path]) -> None:
    uid = series_of(chest[0])
    assert storescu(node.port, chest).returncode == 0
    node.wait_series(uid)
    node.wait_settled()
    before = node.stored()
    finished = (node.results(uid) / "ct.json").stat().st_mtime_ns

    assert storescu(node.port, chest, calling="ANOTHER").returncode == 0
    node.wait_settled()

    series = node.series(uid)
    assert series is not None
    assert (series.state, series.revision, series.instances, series.duplicates) == ("DONE", 1, len(chest), len(chest))
    assert node.stored() == before
    assert (node.results(uid) / "ct.json").stat().st_mtime_ns == finished
    node.check_promises()


def test_late_slices_open_the_next_revision(node: Node, chest: list[Path]) -> None:
    uid = series_of(chest[0])
    assert storescu(node.port, chest[:20]).returncode == 0
    node.wait_series(uid)
    check_results(node, uid, chest[:20])

    assert storescu(node.port, chest[20:]).returncode == 0
    series = node.wait_series(uid, revision=2)

    assert (series.revision, series.instances) == (2, len(chest))
    states = node.query("SELECT n, state FROM revisions WHERE series_id = ? ORDER BY n", series.id)
    assert states == [(1, "SUPERSEDED"), (2, "DONE")]
    assert check_results(node, uid, chest, revision=2)["ctnode"]["status"] == "EXACT"
    check_results(node, uid, chest[:20], revision=1)  # a published folder is never edited


@pytest.mark.parametrize("what", ["header", "pixels"])
def test_same_uid_with_other_bytes_keeps_both(node: Node, tmp_path: Path, what: str) -> None:
    uid, files = small_series(tmp_path, 10 if what == "header" else 11)
    assert storescu(node.port, files).returncode == 0
    node.wait_series(uid)
    image = dcmread(files[3])
    if what == "header":
        image.ProtocolName = "CHANGED AT THE CONSOLE"
    else:
        pixels = image.pixel_array.copy()
        pixels[20:30, 20:30] += 500
        image.PixelData = pixels.tobytes()
    changed = tmp_path / "changed.dcm"
    image.save_as(changed)

    assert storescu(node.port, [changed]).returncode == 0
    series = node.wait_series(uid, revision=2)
    node.wait_settled()

    assert series.instances == len(files) + 1
    assert "CONFLICT" in series.flags
    digests = set(node.stored().values())
    assert {sop_and_digest(files[3])[1], sop_and_digest(changed)[1]} <= digests
    sidecar = json.loads((node.results(uid, 2) / "ct.json").read_text())
    codes = {issue["code"] for issue in sidecar["ctnode"]["issues"]}
    if what == "header":
        assert sidecar["ctnode"]["status"] != "REFUSED"
    else:
        assert (sidecar["ctnode"]["status"], "AMBIGUOUS" in codes) == ("REFUSED", True)
    node.check_promises()


def test_dcmsend_delivers_a_folder(node: Node, chest: list[Path]) -> None:
    uid = series_of(chest[0])
    done = run_tool("dcmsend", "-aec", "CTNODE", "+sd", LOOPBACK, node.port, chest[0].parent)
    assert done.returncode == 0, done.stdout
    series = node.wait_series(uid)
    assert (series.instances, series.verdict) == (len(chest), "LIKELY")
    check_results(node, uid, chest)


def test_series_without_lungs_is_an_answer(node: Node, tmp_path: Path) -> None:
    uid, files = small_series(tmp_path, 20)
    assert storescu(node.port, files).returncode == 0
    node.wait_series(uid)
    folder = node.results(uid)
    assert json.loads((folder / "measurements.json").read_text())["status"] == "NO_LUNGS"
    assert {path.name for path in folder.iterdir()} >= {"ct.json", "ct.nii.gz", "ct_iso.nii.gz", "report.dcm"}
    assert not list(folder.glob("lungs*"))
    check_volume(folder / "ct.nii.gz", files)


def test_echo(node: Node) -> None:
    assert run_tool("echoscu", "-aec", "ANYTHING", LOOPBACK, node.port).returncode == 0


def test_other_modality_is_kept_and_not_processed(node: Node, tmp_path: Path) -> None:
    def as_mr(_index: int, image: Dataset) -> None:
        image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        image.Modality = "MR"

    uid, files = small_series(tmp_path, 30, edit=as_mr)
    assert storescu(node.port, files).returncode == 0
    series = node.wait_series(uid, "KEPT")
    assert "not CT" in series.reason
    assert node.json("series", "show", uid)["jobs"] == []


def test_own_result_that_comes_back_is_kept_and_never_processed(node: Node, tmp_path: Path) -> None:
    uid, files = small_series(tmp_path, 31)
    assert storescu(node.port, files).returncode == 0
    node.wait_series(uid)
    report = node.results(uid) / "report.dcm"
    assert storescu(node.port, [report]).returncode == 0
    series = node.wait_series(series_of(report), "KEPT")
    assert "own result" in series.reason
    assert node.json("series", "show", series.name)["jobs"] == []
    assert node.wait_series(uid).revision == 1


SYNTAXES = ("1", "2", "4.50", "4.51", "4.57", "4.70", "4.80", "4.81", "4.90", "4.91", "5")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_transfer_syntaxes_are_kept_bit_for_bit(node: Node, syntax: str) -> None:
    uid = f"1.2.840.10008.1.2.{syntax}"
    (file,) = data_folder("awkward/transfer_syntaxes").glob(f"CTImage.dcm_*_{uid}.dcm")
    assert [answer.status for answer in send_as_is(node.port, [file])] == [0]
    node.wait_settled()

    rows = node.query(
        "SELECT path FROM instances WHERE digest = ? AND transfer_syntax = ?", sop_and_digest(file)[1], uid
    )
    assert len(rows) == 1
    kept = node.layout.store / rows[0][0]
    assert data_set_of(kept) == data_set_of(file)
    assert dcmread(kept, stop_before_pixels=True).file_meta.TransferSyntaxUID == uid


def test_report_reaches_a_storescp(tmp_path: Path) -> None:
    uid, files = small_series(tmp_path, 40)
    with storescp(tmp_path / "pacs", title="PACS") as port:
        target = {"name": "pacs", "ae_title": "PACS", "host": LOOPBACK, "port": port}
        with Node(tmp_path / "node", targets=[target]) as node:
            assert storescu(node.port, files).returncode == 0
            node.wait_series(uid)
            node.wait_for(lambda: [row[1] for row in node.deliveries(uid)] == ["SENT"], "the report is sent")
            (arrived,) = (tmp_path / "pacs").iterdir()
            assert data_set_of(arrived) == data_set_of(node.results(uid) / "report.dcm")
            (delivery,) = node.json("series", "show", uid)["deliveries"]
            assert (delivery["target"], delivery["status"]) == ("pacs", 0)
            assert node.terminate() == 0


def test_destination_that_is_down_at_first_gets_the_report_later(tmp_path: Path) -> None:
    uid, files = small_series(tmp_path, 41)
    tool("storescp")
    port = free_port()
    target = {"name": "late", "ae_title": "LATE", "host": LOOPBACK, "port": port}
    patience = {"first_retry_s": 0.2, "max_retry_s": 1.0}
    with Node(tmp_path / "node", targets=[target], delivery=patience) as node:
        assert storescu(node.port, files).returncode == 0
        node.wait_series(uid)
        node.wait_for(lambda: node.deliveries(uid) and node.deliveries(uid)[0][1] == "RETRY", "the first try failed")
        with storescp(tmp_path / "pacs", port=port, title="LATE"):
            node.wait_for(lambda: node.deliveries(uid)[0][1] == "SENT", "the report is sent")
        assert node.deliveries(uid)[0][3] > 1
        assert len(list((tmp_path / "pacs").iterdir())) == 1


DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@contextmanager
def orthanc(place: Path, *, dicomweb: bool = False) -> Iterator[tuple[int, int]]:
    """Run Orthanc with its own storage, on loopback; yield the ports of DICOM and of its REST API."""
    import subprocess

    program = tool("Orthanc")
    if dicomweb and not DICOMWEB.exists():
        pytest.skip("the DICOMweb plug-in of Orthanc is not installed (Debian package orthanc-dicomweb)")
    place.mkdir()
    dicom_port, http_port = free_port(), free_port()
    (place / "orthanc.json").write_text(
        json.dumps(
            {
                "StorageDirectory": str(place / "storage"),
                "IndexDirectory": str(place / "storage"),
                "DicomPort": dicom_port,
                "HttpPort": http_port,
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
                "DicomAlwaysAllowStore": True,
                "DicomAlwaysAllowFind": True,
                "Plugins": [str(DICOMWEB)] if dicomweb else [],
            }
        )
    )
    process: Popen = subprocess.Popen(
        [program, str(place / "orthanc.json")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _rest_answers(http_port), "Orthanc answers")
        yield dicom_port, http_port
    finally:
        end(process)


def rest(port: int, path: str, body: Mapping[str, object] | None = None, *, method: str | None = None) -> Any:
    """Ask the REST API of Orthanc."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{LOOPBACK}:{port}{path}", data=data, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def _rest_answers(port: int) -> bool:
    try:
        rest(port, "/system")
    except OSError:
        return False
    return True


def test_orthanc_has_the_report_once_in_the_study_of_the_images(tmp_path: Path) -> None:
    """Two archives, one with DICOMweb, which gets the report both ways; each proves in another way that it has it."""
    uid, files = small_series(tmp_path, 42)
    with (
        orthanc(tmp_path / "plain") as (plain_port, plain_http),
        orthanc(tmp_path / "web", dicomweb=True) as (port, http_port),
    ):
        assert storescu(port, files).returncode == 0
        there = {"ae_title": "ORTHANC", "host": LOOPBACK}
        # It reports on storage commitment by calling us.
        peers = [{"name": "plain", "services": ["commitment"], **there}]
        targets = [
            {"name": "plain", "port": plain_port, "proof": "commitment", **there},
            {"name": "store", "port": port, "proof": "query", **there},
            {"name": "web", "kind": "dicomweb", "url": f"http://{LOOPBACK}:{http_port}/dicom-web", "proof": "query"},
        ]
        sections = {"delivery": {"proof_wait_s": 1.0}, "node": {"accept_unknown": True}}
        with Node(tmp_path / "node", targets=targets, peers=peers, **sections) as node:
            rest(plain_http, "/modalities/us", {"AET": "CTNODE", "Host": LOOPBACK, "Port": node.port}, method="PUT")
            assert node.command("echo", "--all").stdout.count("answers") == 3
            assert storescu(node.port, files).returncode == 0
            node.wait_series(uid)
            node.wait_for(lambda: [row[1] for row in node.deliveries(uid)] == ["CONFIRMED"] * 3, "three proofs")
            assert {row[3] for row in node.deliveries(uid)} == {1}
            # Sent again by hand, by both ways: it stands there once.
            for name in ("store", "web"):
                assert "SENT" in node.command("send", uid, "--to", name).stdout
            report = dcmread(node.results(uid) / "report.dcm")
        (study,) = rest(http_port, "/tools/find", {"Level": "Study", "Query": {}, "Expand": True})
        assert study["MainDicomTags"]["StudyInstanceUID"] == str(report.StudyInstanceUID)
        series = [rest(http_port, f"/series/{identifier}") for identifier in study["Series"]]
        found = {one["MainDicomTags"]["SeriesInstanceUID"]: one for one in series}
        assert set(found) == {uid, str(report.SeriesInstanceUID)}
        (instance,) = found[str(report.SeriesInstanceUID)]["Instances"]
        tags = rest(http_port, f"/instances/{instance}/simplified-tags")
        assert tags["SOPInstanceUID"] == str(report.SOPInstanceUID)
        assert len(rest(http_port, "/instances")) == len(files) + 1
