"""The node's own DICOMweb, asked by dicomweb-client over a real socket and by hand."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from PIL import Image
from starlette.testclient import TestClient

from ctnode.ct.window import LUNG, apply
from ctnode.web.users import Role, token_line
from tests.archive_root import Image as Bare
from tests.archive_root import element, opened, put
from tests.published_root import SERIES, STUDY, PublishedRoot, recoded, write_chest

pytestmark = pytest.mark.integration

J2K = "1.2.840.10008.1.2.4.90"
RECODED = f"{SERIES}.7"
OTHER_PATIENT = "1.2.826.0.1.3680043.8.498.8"


class Archive:
    """What the tests of this module ask: one study with results, one of another patient, one hostile file."""

    def __init__(self, place: Path) -> None:
        self.root = PublishedRoot(place / "node")
        self.files, self.voxels, self.grid = write_chest(place / "sent", edit=named)
        self.root.bring(*self.files)
        self.results = self.root.process(1)
        self.root.bring(recoded(self.files[20], place / "j2k.dcm", J2K, series=RECODED))
        with self.root.spool.open_association(opened()) as journal:
            put(journal, Bare(f"{OTHER_PATIENT}.1.1", study=OTHER_PATIENT, series=f"{OTHER_PATIENT}.1", patient="P2"))
        self.root.settle()
        self.client = TestClient(self.root.app(), base_url="http://127.0.0.1")

    def get(self, path: str, media: str = "", /, **parameters: str):
        headers = {"accept": media} if media else {}
        return self.client.get(f"/dicom-web{path}", params=parameters, headers=headers)

    def found(self, path: str, **parameters: str) -> list[str]:
        """Return the UIDs that a search finds, at its own level."""
        answer = self.get(path, **parameters)
        assert answer.status_code == 200, answer.text
        tag = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}[path.rpartition("/")[2]]
        return [hit[tag]["Value"][0] for hit in answer.json()]


def named(_slice: int, image: pydicom.Dataset) -> None:
    image.SpecificCharacterSet = "ISO_IR 192"
    image.PatientName = "Müller^Jörg"
    image.PatientID = "P1"
    image.StudyDate = "20200131"
    image.StudyTime = "103000"
    image.AccessionNumber = "A[1]"
    image.WindowCenter, image.WindowWidth = -600, 1500


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    made = Archive(tmp_path_factory.mktemp("dicomweb"))
    yield made
    made.root.close()


def instance_of(archive: Archive, number: int) -> str:
    image = pydicom.dcmread(archive.files[number], stop_before_pixels=True)
    return f"/studies/{STUDY}/series/{SERIES}/instances/{image.SOPInstanceUID}"


def test_a_stock_client_browses_originals_and_results_and_fetches_them_unchanged(archive: Archive) -> None:
    with archive.root.served() as address, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = DICOMwebClient(f"{address}/dicom-web")
        studies = client.search_for_studies(search_filters={"PatientName": "müller*"})
        series = {one["00080060"]["Value"][0]: one for one in client.search_for_series(STUDY)}
        images = client.retrieve_series(STUDY, SERIES)
        headers = client.retrieve_series_metadata(STUDY, SERIES)
        segmentation = client.retrieve_series(STUDY, series["SEG"]["0020000E"]["Value"][0])[0]
        one = str(images[0].SOPInstanceUID)
        pixels = client.retrieve_instance_frames(STUDY, SERIES, one, [1])[0]
        bulk = client.retrieve_bulkdata(
            next(h for h in headers if h["00080018"]["Value"][0] == one)["7FE00010"]["BulkDataURI"]
        )

    assert [study["0020000D"]["Value"] for study in studies] == [[STUDY]]
    assert set(studies[0]["00080061"]["Value"]) == {"CT", "SEG", "SR", "OT"}
    assert studies[0]["00100010"]["Value"] == [{"Alphabetic": "Müller^Jörg"}]
    assert studies[0]["00201208"]["Value"] == [44]
    sent = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, archive.files)}
    assert {image.SOPInstanceUID for image in images} == set(sent)
    for image in images:
        assert image == sent[image.SOPInstanceUID]
    assert len(headers) == 40
    assert pixels == bulk[0] == sent[one].PixelData
    assert segmentation == pydicom.dcmread(archive.results / "seg.dcm")


def test_what_is_searched_for_is_found_and_nothing_else(archive: Archive) -> None:
    found = archive.found
    assert set(found("/studies")) == {STUDY, OTHER_PATIENT}
    assert found("/studies", PatientID="P2") == [OTHER_PATIENT]
    assert found("/studies", PatientName="MÜLLER*") == [STUDY]
    assert found("/studies", StudyDate="20200101-20200131") == [STUDY]
    assert found("/studies", StudyDate="-20200130") == []
    assert found("/studies", StudyTime="10-1030") == [STUDY]
    assert found("/studies", AccessionNumber="A[1]") == [STUDY]
    assert found("/studies", AccessionNumber="A[12]") == []
    assert found("/studies", ModalitiesInStudy="SEG") == [STUDY]
    assert found("/studies", ModalitiesInStudy="MR,SEG") == found("/studies", ModalitiesInStudy="MR\\SEG") == [STUDY]
    assert found("/studies", ModalitiesInStudy="MR,PT") == []
    assert found("/studies", **{"00100020": "P?"}) == [OTHER_PATIENT, STUDY]
    assert found("/studies", StudyInstanceUID=f"{STUDY},1.2.3") == [STUDY]
    assert set(found("/series", PatientID="P1", Modality="CT")) == {SERIES, RECODED}
    assert found(f"/studies/{STUDY}/series", SeriesInstanceUID=RECODED) == [RECODED]
    assert found("/instances", SOPInstanceUID=f"{RECODED}.1") == [f"{RECODED}.1"]
    assert len(found(f"/studies/{STUDY}/instances", Modality="CT", Rows="96")) == 41
    assert len(found(f"/studies/{STUDY}/series/{SERIES}/instances", InstanceNumber="7")) == 1
    assert found("/studies/1.2.3/series") == []


def test_the_requests_of_a_stock_ohif_are_answered(archive: Archive) -> None:
    # As OHIF 3.12 sent them with the configuration in docs/dicomweb.md.
    asked = {"limit": "101", "offset": "0", "fuzzymatching": "false", "includefield": "00081030,00080060"}
    (listed,) = archive.get("/studies", "application/dicom+json", **asked, PatientName="*jörg*").json()
    shown = {"00080020", "00080030", "00080050", "00080061", "00081030", "00100010", "00100020", "00201208"}
    assert shown <= listed.keys()
    assert listed["00201208"]["Value"] == [44]
    chosen = {"ModalitiesInStudy": "SEG,MR", "StudyDate": "20200101-20200201"}
    (again,) = archive.get("/studies", "application/dicom+json", **asked, **chosen).json()
    assert again == listed
    series = archive.get(f"/studies/{STUDY}/series", includefield="00080021,00080031,0008103E,00200011").json()
    uids = {one["00080060"]["Value"][0]: one["0020000E"]["Value"][0] for one in series}
    assert {"CT", "SEG", "SR", "OT"} == uids.keys()
    assert all(one["00201209"]["Value"][0] >= 1 for one in series)

    headers = archive.get(f"/studies/{STUDY}/series/{uids['SEG']}/metadata", "application/dicom+json").json()[0]
    source = {one["0020000E"]["Value"][0] for one in headers["00081115"]["Value"]}
    assert source == {SERIES}, "a SEG is laid over the series that it refers to"
    one = headers["00080018"]["Value"][0]
    whole = f"/studies/{STUDY}/series/{uids['SEG']}/instances/{one}"
    for accept in ('multipart/related; type="application/dicom"', "multipart/related; type=application/dicom"):
        assert (archive.results / "seg.dcm").read_bytes() in archive.get(whole, accept).content
    every = "multipart/related; type=application/octet-stream; transfer-syntax=*"
    frame = archive.get(f"{instance_of(archive, 20)}/frames/1", every)
    assert pydicom.dcmread(archive.files[20]).PixelData in frame.content
    small = archive.get(
        f"{instance_of(archive, 20)}/thumbnail", every.replace("; transfer-syntax=*", ""), accept="image/jpeg"
    )
    assert small.headers["content-type"] == "image/jpeg"


def test_parts_of_a_list_are_given_and_said_to_be_parts(archive: Archive) -> None:
    path = f"/studies/{STUDY}/series/{SERIES}/instances"
    whole = archive.found(path)
    parts = [archive.found(path, limit="15", offset=str(offset)) for offset in (0, 15, 30, 45)]
    assert [one for part in parts for one in part] == whole
    assert "additional results" in archive.get(path, limit="15").headers["warning"]
    assert "warning" not in archive.get(path).headers
    assert archive.get(path, limit="0").json() == []
    assert archive.found("/studies", offset="1") == archive.found("/studies")[1:]
    assert "fuzzymatching" in archive.get("/studies", fuzzymatching="true").headers["warning"]


def test_more_attributes_are_answered_when_asked_for(archive: Archive) -> None:
    (hit,) = archive.get("/studies", PatientID="P1", includefield="Manufacturer,00181030").json()
    assert {"00080070", "00181030"} <= hit.keys()
    plain = archive.get(f"/studies/{STUDY}/series/{SERIES}/instances", limit="1").json()[0]
    more = archive.get(f"/studies/{STUDY}/series/{SERIES}/instances", limit="1", includefield="all").json()[0]
    assert "00200032" not in plain
    assert len(more["00200032"]["Value"]) == 3


@pytest.mark.parametrize(
    ("path", "parameters", "status"),
    [
        ("/studies", {"limit": "-1"}, 400),
        ("/studies", {"limit": "9" * 400}, 400),
        ("/studies", {"Nonsense": "1"}, 400),
        ("/studies", {"FFFFFFFF": "1"}, 400),
        ("/studies", {"PixelData": "1"}, 400),
        ("/studies", {"SeriesInstanceUID": "1"}, 400),
        ("/series", {"SOPInstanceUID": "1"}, 400),
        ("/studies/1.2.3", {}, 404),
        ("/studies/%2E%2E%2Fetc/series/x/metadata", {}, 404),
        (f"/studies/{STUDY}/series/1.2/metadata", {}, 404),
        ("{one}/frames/0", {}, 400),
        ("{one}/frames/x", {}, 400),
        ("{one}/frames/2", {}, 404),
        ("{one}/rendered", {"window": "1"}, 400),
        ("{one}/rendered", {"window": "nan,1,linear"}, 400),
        ("{one}/rendered", {"window": "1,0,linear"}, 400),
        ("{one}/rendered", {"viewport": "0,0"}, 400),
        ("{one}/rendered", {"quality": "1000"}, 400),
        ("{one}/rendered", {"colour": "1"}, 400),
        ("{one}/bulkdata/00080018", {}, 404),
        ("{one}/bulkdata/zz", {}, 404),
        ("/nowhere", {}, 404),
    ],
)
def test_a_bad_request_is_refused_in_words(
    archive: Archive, path: str, parameters: dict[str, str], status: int
) -> None:
    answer = archive.get(path.format(one=instance_of(archive, 0)), **parameters)
    assert answer.status_code == status
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/studies", "application/dicom+xml"),
        ("{one}", 'multipart/related; type="image/png"'),
        ("{one}", 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.50'),
        ("{one}/frames/1", 'multipart/related; type="image/jp2"'),
        ("{one}/rendered", "image/gif"),
        ("{one}/metadata", 'multipart/related; type="application/dicom+xml"'),
    ],
)
def test_what_cannot_be_given_as_asked_is_not_acceptable(archive: Archive, path: str, accept: str) -> None:
    answer = archive.get(path.format(one=instance_of(archive, 0)), accept)
    assert answer.status_code == 406
    assert answer.json()["error"]


def test_frames_go_out_as_stored_where_that_is_accepted_and_else_decoded(archive: Archive) -> None:
    path = f"/studies/{STUDY}/series/{RECODED}/instances/{RECODED}.1/frames/1"
    native = pydicom.dcmread(archive.files[20]).PixelData

    decoded = archive.get(path, "application/octet-stream")
    stored = archive.get(path, "multipart/related; type=application/octet-stream; transfer-syntax=*")
    image = archive.get(path, 'multipart/related; type="image/jp2"')

    assert decoded.content == native
    assert decoded.headers["content-type"].endswith("transfer-syntax=1.2.840.10008.1.2.1")
    assert f"application/octet-stream; transfer-syntax={J2K}".encode() in stored.content
    assert b"\xff\x4f\xff\x51" in stored.content
    assert f"image/jp2; transfer-syntax={J2K}".encode() in image.content


def test_pictures_are_windowed_as_asked_or_as_the_header_says(archive: Archive) -> None:
    hu = archive.voxels[20]
    path = f"{instance_of(archive, 20)}/rendered"
    as_header = archive.get(path, "image/png")
    asked = archive.get(path, "image/png", window="40,400,linear")
    small = archive.get(path, "image/jpeg", viewport="48,30")

    assert np.array_equal(np.asarray(Image.open(io.BytesIO(as_header.content))), apply(hu, LUNG))
    assert not np.array_equal(np.asarray(Image.open(io.BytesIO(asked.content))), apply(hu, LUNG))
    assert Image.open(io.BytesIO(small.content)).size == (30, 30)
    assert as_header.headers["cache-control"] == "no-store"


def test_other_origins_read_only_where_they_are_allowed_and_only_with_a_token(archive: Archive) -> None:
    origin = "https://ohif.example"
    client = TestClient(archive.root.app(origins=[origin]), base_url="http://127.0.0.1")
    asking = {"Access-Control-Request-Method": "GET"}

    preflight = client.options("/dicom-web/studies", headers={"Origin": origin, **asking})
    answer = client.get("/dicom-web/studies", headers={"Origin": origin})
    stranger = client.get("/dicom-web/studies", headers={"Origin": "https://evil.example"})
    page = client.get("/livez", headers={"Origin": origin})

    assert preflight.status_code == 204
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert answer.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-credentials" not in answer.headers
    assert "access-control-allow-origin" not in stranger.headers
    assert "access-control-allow-origin" not in page.headers


def test_with_users_only_a_token_opens_dicomweb_and_the_viewer(archive: Archive, tmp_path: Path) -> None:
    line, token = token_line("ohif", Role.VIEW)
    (tmp_path / "users").write_text(line + "\n")
    (tmp_path / "users").chmod(0o600)
    app = archive.root.app(users=str(tmp_path / "users"))
    client = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
    one = instance_of(archive, 0)
    paths = [f"/dicom-web{path}" for path in ("/studies", one, f"{one}/metadata", f"{one}/frames/1", f"{one}/rendered")]

    strangers = [client.get(path) for path in paths]
    page = client.get(f"/viewer/{STUDY}/{SERIES}")
    plane = client.get(f"/viewer/{STUDY}/{SERIES}/r1/ct/axial/0")
    known = client.get(paths[0], headers={"Authorization": f"Bearer {token}"})

    assert [answer.status_code for answer in strangers] == [401] * len(paths)
    assert page.status_code == plane.status_code == 303
    assert known.status_code == 200


def deep(levels: int) -> bytes:
    """Return sequences nested in one another, each of defined length."""
    inner = b""
    for _ in range(levels):
        item = b"\xfe\xff\x00\xe0" + len(inner).to_bytes(4, "little") + inner
        inner = element(0x0040, 0xA730, "SQ", item)
    return inner


class Hostile(Bare):
    """An image whose header nests deeper than any parser goes."""

    def encode(self) -> bytes:
        plain = super().encode()
        at = plain.index(b"\xe0\x7f\x10\x00")
        return plain[:at] + deep(4000) + plain[at:]


def test_split_series_replaced_bytes_and_hostile_headers_are_told_apart(tmp_path: Path) -> None:
    root = PublishedRoot(tmp_path / "node")
    root.hold(Bare("1.2.3.1.1", number="1"))
    root.hold(Bare("1.2.3.1.1", number="2"))
    root.hold(Bare("1.2.3.1.2", patient="P2"))
    root.hold(Hostile("1.2.3.2.1", series="1.2.3.2"), Bare("1.2.3.2.2", series="1.2.3.2"))
    root.hold(Bare("1.2.4.1.1", study="1.2.4", series="1.2.4.1", modality=""))
    client = TestClient(root.app(), base_url="http://127.0.0.1")
    nameless, _ = client.get("/dicom-web/studies").json()
    assert nameless["0020000D"]["Value"] == ["1.2.4"]
    assert "00080061" not in nameless, "OHIF shows no study at all where one has an empty attribute"
    assert client.get("/dicom-web/studies?ModalitiesInStudy=CT").json() == client.get("/dicom-web/studies").json()[1:]

    def ask(path: str):
        return client.get(f"/dicom-web/studies/1.2.3{path}")

    series = {hit["0020000E"]["Value"][0]: hit["00201209"]["Value"][0] for hit in ask("/series").json()}
    (first,) = ask("/series/1.2.3.1/metadata").json()
    (split,) = ask("/series/1.2.3.1~2/metadata").json()
    hostile = ask("/series/1.2.3.2/metadata").json()
    picture = ask("/series/1.2.3.2/instances/1.2.3.2.1/rendered")

    assert series == {"1.2.3.1": 1, "1.2.3.1~2": 1, "1.2.3.2": 2}
    assert first["00200013"]["Value"] == [2]
    assert split["00080018"]["Value"] == ["1.2.3.1.2"]
    assert split["0020000E"]["Value"] == ["1.2.3.1~2"]
    assert [one["00080018"]["Value"][0] for one in hostile] == ["1.2.3.2.1", "1.2.3.2.2"]
    assert "00280010" in hostile[1]
    assert picture.status_code == 406
    json.dumps(hostile, allow_nan=False)
    root.close()


def test_an_object_beyond_its_limits_ends_its_opener_and_the_next_one_is_served(tmp_path: Path) -> None:
    from ctnode.config import Worker
    from ctnode.web.openers import Openers, Unrenderable

    pipe = tmp_path / "never.dcm"
    os.mkfifo(pipe)
    root = PublishedRoot(tmp_path / "node")
    root.hold(Bare("1.2.3.1.1"))
    (stored,) = root.layout.store.rglob("*.dcm")
    openers = Openers(Worker(timeout_s=1.0), children=1)
    with pytest.raises(Unrenderable) as refused:
        openers.ask(do="metadata", path=str(pipe), url="", series="")
    answer = openers.ask(do="metadata", path=str(stored), url="", series="")
    openers.close()
    root.close()

    assert refused.value.status == 406
    assert json.loads(answer.content)["00080018"]["Value"] == ["1.2.3.1.1"]
