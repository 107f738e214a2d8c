"""A patient with a text of its own in each of forty elements: after all is done they stand in images, nowhere else."""

from __future__ import annotations

import gzip
import html
import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel
import pydicom
import pytest
import structlog
from PIL import Image as Picture
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from starlette.testclient import TestClient

from ctnode.archive import alerts, catalog, jobs, revisions
from ctnode.config import Config, Log, LungMask, Outputs, Pipeline, Storage
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.flow.doctor import examine
from ctnode.flow.importing import import_paths
from ctnode.flow.telling import compose
from ctnode.ops import audit, log
from ctnode.ops.role import Role
from ctnode.web.app import make_app
from ctnode.web.context import WebNode, make_node
from tests.archive_root import Root, opened

pytestmark = pytest.mark.integration

STUDY, SERIES = "1.2.826.0.1.3680043.8.498.7", "1.2.826.0.1.3680043.8.498.7.1"
JAPANESE, UTF8 = ["", "ISO 2022 IR 87"], "ISO_IR 192"
WORDS = [
    "PatientName",
    "PatientID",
    "OtherPatientNames",
    "PatientComments",
    "PatientAddress",
    "PatientMotherBirthName",
    "AdditionalPatientHistory",
    "EthnicGroup",
    "Occupation",
    "PatientTelephoneNumbers",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "NameOfPhysiciansReadingStudy",
    "PhysiciansOfRecord",
    "RequestingPhysician",
    "StudyDescription",
    "SeriesDescription",
    "ProtocolName",
    "RequestedProcedureDescription",
    "PerformedProcedureStepDescription",
    "ImageComments",
    "StationName",
    "AccessionNumber",
    "StudyID",
    "AdmissionID",
    "DeviceSerialNumber",
    "AdmittingDiagnosesDescription",
    "DerivationDescription",
    # Further kinds of text.
    "TextComments",
    "TextValue",
]
NESTED = ["ScheduledProcedureStepDescription", "ScheduledProcedureStepID", "ReasonForTheRequestedProcedure"]
INNERMOST = ["CodeMeaning", "CodeValue"]
PRIVATE = {"private creator": "LO", "private LO": "LO", "private UT": "UT", "private ST": "ST"}
EVERY = [*WORDS, *NESTED, *INNERMOST, *PRIVATE]
# Where PS3.3 C.7 wants the patient and the study of the source to stand.
COPIED = {
    "PatientName", "PatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName", "StudyDescription",
    "PatientBirthDate",
}  # fmt: skip
BIRTH_DATE = b"19010203"
# Two characters of their own for each attribute, none of which is anywhere else in a file of ours.
KANJI = bytes(
    part for number in range(2 * len(EVERY)) for part in (0xB0 + number // 94, 0xA1 + number % 94)
).decode("euc_jp")  # fmt: skip


def letters(word: str) -> str:
    return f"KV{EVERY.index(word):02d}Q"


def signs(word: str) -> str:
    return KANJI[2 * EVERY.index(word) :][:2]


def canary(word: str) -> str:
    """Return the text of one attribute, which no other has: in Latin letters and in kanji."""
    name = word in WORDS and dictionary_VR(word) == "PN"
    return f"{letters(word)}^Tarou={signs(word)}^太郎" if name else f"{letters(word)} {signs(word)}"


# What the text of one attribute can look like in bytes: its letters, or its kanji in UTF-8, after the escape of ISO
# 2022, and as JSON escapes them.
DRESSES = (
    (re.compile(rb"[kK][vV]\d\d[qQ]"), lambda found: found.decode("ascii").lower()),
    (re.compile(rb"(?:[\xe3-\xe9][\x80-\xbf]{2}){2,}"), lambda found: found.decode("utf-8", "replace")),
    (re.compile(rb"\x1b\$B.{4}", re.DOTALL), lambda found: found.decode("iso2022_jp", "replace")),
    (re.compile(rb"(?:\\u[0-9a-fA-F]{4}){2,}"), lambda found: found.decode("unicode_escape")),
)
OWNERS = {form: word for word in EVERY for form in (letters(word).lower(), signs(word))}


def found_in(content: str | bytes) -> set[str]:
    """Return the attributes of whose text some form stands in ``content``."""
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    seen = {plain(found) for dress, plain in DRESSES for found in set(dress.findall(data))}
    words = {OWNERS[run[start : start + size]] for run in seen for size in (2, 5) for start in range(len(run))
             if run[start : start + size] in OWNERS}  # fmt: skip
    return words | ({"PatientBirthDate"} if BIRTH_DATE in data else set())


def found_in_file(path: Path) -> set[str]:
    """Return the attributes of whose text some form stands in a file, or in what it packs."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed:
            return set().union(*(found_in(name) | found_in(packed.read(name)) for name in packed.namelist()))
    content = path.read_bytes()
    return found_in(gzip.decompress(content) if path.suffix == ".gz" else content)


def mark(charset: str | list[str]) -> Callable[[int, pydicom.Dataset], None]:
    def edit(_index: int, dataset: pydicom.Dataset) -> None:
        dataset.SpecificCharacterSet = charset
        for word in WORDS:
            setattr(dataset, word, canary(word))
        dataset.PatientBirthDate = BIRTH_DATE.decode()
        inner, step = pydicom.Dataset(), pydicom.Dataset()
        for word in INNERMOST:
            setattr(inner, word, canary(word))
        for word in NESTED:
            setattr(step, word, canary(word))
        step.ScheduledProtocolCodeSequence = [inner]
        dataset.RequestAttributesSequence = [step]
        # A creator is of the default repertoire (PS3.5 7.8.1).
        block = dataset.private_block(0x0011, letters("private creator"), create=True)
        for number, word in enumerate(list(PRIVATE)[1:], start=1):
            block.add_new(number, PRIVATE[word], canary(word))

    return edit


@pytest.fixture(scope="module")
def said() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "stderr", stream)
        log.configure(Log(level="debug"), role="keep")
        yield stream
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, said: io.StringIO) -> Iterator[tuple[Root, Path]]:
    """A node that took a marked series, and the folder of its results."""
    tmp_path = tmp_path_factory.mktemp("canary")
    volume, _, where = chest((60, 128, 128), (5.0, 3.0, 3.0))
    source = tmp_path / "source"
    source.mkdir()
    write_series(source, volume, where, study_uid=STUDY, series_uid=SERIES, edit=mark(JAPANESE))
    root = Root(tmp_path / "node")
    list(import_paths(root.layout, [source], door="import"))
    root.settle()
    # One that cannot be settled stays where only its bytes know the patient.
    journal = root.spool.open_association(opened())
    broken = journal.directory / f"{10**18 * 2:019d}-000001.dcm"
    broken.write_bytes(canary("PatientName").encode())
    journal.close("released")
    root.settle()
    root.settle()
    root.complete()
    with root.database.immediate():
        revisions.queue(root.database, revisions.newest(root.database, 1))
    lease = jobs.claim(root.database, "one")
    assert lease is not None
    out = root.layout.result_directory(STUDY, SERIES, 1, 1)
    out.mkdir(parents=True)
    order = {
        "parent": os.getpid(),
        "files": [str(root.layout.store / path) for path in revisions.frozen_paths(root.database, 1)],
        "study": STUDY,
        "series": SERIES,
        "revision": 1,
        "made_at": datetime(2026, 1, 1, tzinfo=UTC).timestamp(),
        "out": str(out),
        "pipeline": Pipeline(spacing_mm=3.0).model_dump(),
        "wanted": Outputs().model_dump(),
        "lungs": LungMask().model_dump(),
    }
    child = subprocess.run(
        [sys.executable, "-m", "ctnode.flow.child"], input=json.dumps(order).encode(), capture_output=True, check=True
    )
    assert not found_in(child.stdout + child.stderr)
    (report,) = json.loads(child.stdout.splitlines()[-1])["reports"]
    jobs.finish(root.database, lease, [report], "done", lambda _newest: None)
    with Role("keep", root.layout.run, "digest") as role:
        role.report(waiting=0)
        role.write_report()
        for file in root.layout.run.glob("*.json"):
            assert not found_in(file.read_bytes())
    yield root, out
    root.close()


def test_the_search_knows_a_text_in_every_dress() -> None:
    assert len(EVERY) >= 30
    assert len({canary(word) for word in EVERY}) == len({signs(word) for word in EVERY}) == len(EVERY)
    for word in EVERY:
        text = canary(word)
        dresses = [text, letters(word), signs(word), json.dumps(text), text.encode("iso2022_jp")]
        dresses += [signs(word).encode("iso2022_jp"), text.upper(), "太" + signs(word)]
        assert all(found_in(dress) == {word} for dress in dresses), word


def test_the_patient_stands_in_images_and_nowhere_else(finished: tuple[Root, Path], said: io.StringIO) -> None:
    root, _ = finished
    allowed = ("store", "incoming", "quarantine")
    for path in root.layout.root.rglob("*"):
        relative = path.relative_to(root.layout.root)
        assert not found_in(str(relative))
        if path.is_file() and relative.parts[0] not in allowed and path.suffix != ".dcm":
            assert not found_in_file(path), relative
    assert found_in_file(next(root.layout.store.rglob("*.dcm"))) == {*EVERY, "PatientBirthDate"}
    assert "PatientName" in found_in_file(next(root.layout.quarantine.rglob("*.dcm")))
    assert "instance not settled" in said.getvalue()
    assert not found_in(said.getvalue())
    shown = [*catalog.listing(root.database), *examine(Config(storage=Storage(root=str(root.layout.root))))]
    assert not found_in(repr(shown))


WRITTEN = ("SeriesDescription", "StudyDescription", "ProtocolName", "ImageComments")


@pytest.mark.parametrize(
    ("described", "charset"), [(False, UTF8), (True, JAPANESE)], ids=["technique only", "descriptions"]
)
def test_process_says_no_more_than_it_is_asked_for(tmp_path: Path, described: bool, charset: str | list[str]) -> None:
    voxels, _, where = chest((40, 48, 48), (8.0, 8.0, 8.0))
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    images = write_series(source, voxels, where, study_uid=STUDY, series_uid=SERIES, edit=mark(charset))
    arguments = ["process", str(source), "--out", str(out), "--json", "--set", "outputs.png16=true"]
    arguments += ["--set", "pipeline.spacing_mm=4", "--set", f"outputs.descriptions={str(described).lower()}"]
    done = subprocess.run([sys.executable, "-m", "ctnode", *arguments], capture_output=True, check=True)
    assert not found_in(done.stdout + done.stderr)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"ct.json", "measurements.json", "ct.nii.gz", "lungs.png", "slices.zip"} <= {path.name for path in files}
    for path in files:
        assert not found_in(str(path.relative_to(tmp_path)))
        if path.name == "ct.json":
            told = json.loads(path.read_text("utf-8"))
            marked = {name: found_in(json.dumps(value)) for name, value in told.items()}
            assert {name: words for name, words in marked.items() if words} == (
                {name: {name} for name in WRITTEN} if described else {}
            )
        elif path.suffix != ".dcm":
            assert not found_in_file(path), path.name
    check_objects(images[0], next(out.rglob("ct.json")).parent)


def test_the_report_names_the_patient_only_where_the_standard_wants_it(finished: tuple[Root, Path]) -> None:
    root, out = finished
    check_objects(next(root.layout.store.rglob("*.dcm")), out)


def check_objects(image: Path, out: Path) -> None:
    """The objects hold the patient and the study in the characters and the bytes of the source, and nothing else."""
    source = pydicom.dcmread(image)
    for name in ("report.dcm", "seg.dcm", "sr.dcm"):
        assert found_in_file(out / name) == COPIED
        made = pydicom.dcmread(out / name)
        assert made.SpecificCharacterSet == source.SpecificCharacterSet
        for word in COPIED:
            element = made.get_item(word)
            assert isinstance(element, RawDataElement)
            assert element.value == source.get_item(word).value, word
        assert made.PatientName == canary("PatientName")
        assert made.StudyDescription == canary("StudyDescription")
        # Read by what is neither pydicom nor ours, too.
        codec = "utf-8" if made.SpecificCharacterSet == UTF8 else "iso2022_jp"
        assert made.get_item("PatientID").value.decode(codec).rstrip() == canary("PatientID")


def test_headers_and_chunks_of_results_hold_technique_only(finished: tuple[Root, Path]) -> None:
    _, out = finished
    for file in out.glob("*.nii.gz"):
        assert not found_in(repr(dict(nibabel.load(file).header)))
    for file in out.glob("*.png"):
        with Picture.open(file) as picture:
            assert not found_in(repr(picture.info))
    for file in out.glob("*.json"):
        text = json.dumps(json.loads(file.read_text()))
        assert not found_in(text)
        for word in ("Institution", "Physician", "Description", "Operators", "Station"):
            assert word not in text
    pictures = {"preview.png", "mpr.png", "lungs.png", "histogram.png", "surface.png"}
    assert pictures | {"ct.json", "ct.nii.gz", "report.dcm", "lungs.nii.gz"} <= {path.name for path in out.iterdir()}


# ----------------------------------------------------------------------------------------------------- the page

LINK = re.compile(r"""\b(?:href|src|action|data-root|data-about)="([^"]*)\"""")
URL_KEYS = {"BulkDataURI", "RetrieveURL", "00081190"}


def urls_in(value: object) -> Iterator[str]:
    """Yield what stands in a JSON answer of DICOMweb as an address."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from [json.dumps(inner)] if key in URL_KEYS else urls_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from urls_in(inner)


def check_outside(answer: Any) -> None:
    """Check what proxies, histories and logs see of an answer: its address, head, title and links."""
    assert not found_in(str(answer.url)), answer.url
    assert not found_in(repr(answer.headers)), answer.url
    kind = answer.headers.get("content-type", "")
    if "html" in kind:
        assert not found_in("".join(re.findall(r"<title>.*?</title>|<meta[^>]*>", answer.text))), answer.url
        assert not found_in(" ".join(map(html.unescape, LINK.findall(answer.text)))), answer.url
    elif "json" in kind and "dicom-web" in str(answer.url):
        assert not found_in(" ".join(urls_in(answer.json()))), answer.url
    if answer.status_code >= 400:
        assert not found_in(answer.content), answer.url


def crawl(client: TestClient, *starts: str) -> dict[str, Any]:
    """Ask for all that pages and answers lead to."""
    waiting, answers = list(starts), dict[str, Any]()
    while waiting:
        path = waiting.pop()
        is_passed = path.startswith(("/static", "/events", "/act", "/echo")) or path.endswith((".gz", ".zip"))
        if path in answers or not path.startswith("/") or is_passed:
            continue
        answers[path] = client.get(path)
        check_outside(answers[path])
        if "html" in answers[path].headers.get("content-type", ""):
            waiting += map(html.unescape, LINK.findall(answers[path].text))
    return answers


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the web role logs, with nothing left out."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log.configure(Log(level="debug"), role="web")
    return stream


@pytest.fixture
def page(finished: tuple[Root, Path], written: io.StringIO) -> WebNode:
    root, _ = finished
    place = {"root": str(root.layout.root), "reserve_mb": 1}
    return make_node(Config.model_validate({"storage": place, "outputs": {"descriptions": True}}))


def browser(node: WebNode) -> TestClient:
    return TestClient(make_app(node), "http://127.0.0.1", follow_redirects=False, raise_server_exceptions=False)


def test_no_address_head_title_or_error_of_the_page_names_the_patient(
    page: WebNode, finished: tuple[Root, Path], written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = finished
    client = browser(page)
    association = root.one("SELECT max(name) FROM associations")
    dicom, sop = f"/dicom-web/studies/{STUDY}", root.one("SELECT sop_instance FROM instances LIMIT 1")
    instance = f"{dicom}/series/{SERIES}/instances/{sop}"
    answers = crawl(
        client, "/", "/problems", "/metrics", "/livez", "/readyz", "/api/v1/now", "/api/v1/series/1",
        "/api/v1/problems", "/api/v1/series/1/results/1", f"/api/v1/associations/{association}", "/api/v1/openapi.json",
        "/dicom-web/studies", f"{dicom}/metadata", f"{instance}/metadata", instance, f"{instance}/frames/1",
    )  # fmt: skip
    assert {"/series/1", "/series/1/r1/ct.json", "/viewer/1"} <= answers.keys()
    # DICOMweb is what hands images out: there the patient is, and nowhere else.
    assert "PatientName" in found_in(answers[f"{dicom}/metadata"].content)
    for path, answer in answers.items():
        if not path.startswith("/dicom-web") and not path.endswith(".dcm"):
            assert not found_in(answer.content), path
    token = re.search(r'<meta name="csrf" content="([0-9a-f]+)">', answers["/"].text)
    assert token is not None
    headers = {"x-csrf-token": token[1]}
    nameless = pydicom.Dataset()
    nameless.PatientName = canary("PatientName")
    nameless.file_meta = pydicom.dataset.FileMetaDataset()
    nameless.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    body = io.BytesIO()
    nameless.save_as(body, enforce_file_format=False)
    refusals = [
        client.post("/api/v1/series/1/hold", json={"reason": "x" * 500}, headers=headers),
        client.post("/api/v1/series/1/hold", json={}),
        client.post("/act/series/1/hold", data={"csrf": "0"}),
        client.post("/api/v1/upload", content=body.getvalue(), headers=headers),
        client.get("/series/77"), client.get("/nowhere"), client.delete("/series/1"),
        client.get("/", headers={"host": "x"}),
        client.get("/dicom-web/studies?Bogus=x"), client.get(f"{instance}/frames/9"),
        client.get(f"{instance}/rendered?window=1,2"), client.get(instance, headers={"accept": "text/plain"}),
        client.get("/dicom-web/studies?limit=x"), client.post("/login", content=b"x" * (2 << 20)),
    ]  # fmt: skip
    with monkeypatch.context() as broken:
        # Libraries quote values in what they raise.
        def fail(*_: object, **__: object) -> None:
            raise ValueError(canary("PatientName"))

        for place in (
            "ctnode.archive.browse.series",
            "ctnode.archive.catalog.by_id",
            "ctnode.web.dicomweb.parse_query",
        ):
            broken.setattr(place, fail)
        failed = [client.get(path) for path in ("/", "/series", "/series/1", "/api/v1/series", "/dicom-web/studies")]
        assert {answer.status_code for answer in failed} == {500}
        refusals += failed
    for answer in refusals:
        check_outside(answer)
        assert not found_in(answer.content), answer.url
    assert {200, 400, 403, 404, 405, 413, 421, 500} <= {answer.status_code for answer in refusals}
    for verb in ("requeue", "acknowledge"):
        assert client.post(f"/api/v1/series/1/{verb}", headers=headers).status_code == 200
    kept = list(audit.files(root.layout.root))
    assert kept
    for file in kept:
        assert not found_in(file.read_bytes())
    with root.database.immediate():
        root.database.execute("UPDATE revisions SET state = 'FAILED' WHERE series_id = 1")
    digest = alerts.untold(root.database, 0, ["failed", "quarantine"])
    assert digest is not None
    message = compose("CTNODE", digest)
    assert message.content["counts"] == {"failed": 1, "quarantine": 1}
    assert not found_in(json.dumps(dict(message.content)) + message.subject + message.text)
    assert written.getvalue().count("request failed") >= 5
    assert not found_in(written.getvalue())
    for path in root.layout.root.rglob("*"):
        assert not found_in(str(path))
