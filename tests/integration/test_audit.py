"""The audit trail: every line once, whole, durable, without a patient; its way to a repository by syslog over TLS."""

from __future__ import annotations

import base64
import json
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from socket import create_server
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from ctnode.archive import outbox, revisions
from ctnode.archive.outbox import Parcel
from ctnode.archive.part10 import Opened
from ctnode.archive.rejections import Rejection
from ctnode.archive.settle import Settler
from ctnode.cli import cli
from ctnode.config import Audit, Config, Storage, Target
from ctnode.flow.auditing import AuditSender, of_associations, of_deliveries, of_rejection
from ctnode.ops import audit, durable
from ctnode.ops.audit import Action, Event, Outcome, Record
from ctnode.ops.audit_message import frame, message_of
from tests.archive_root import SERIES, STUDY, Root, put, stack
from tests.certificates import Authority, Issued

pytestmark = pytest.mark.integration

CANARY = "KANARIENVOGEL"
RECORD = Record(Event.INSTANCES_ACCESSED, Action.UPDATE, "admin", "hold", studies=("1.2.3",), series=("1.2.3.1",))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    node = Root(tmp_path / "node")
    yield node
    node.close()


# ------------------------------------------------------------------------------------------------- the file


def test_a_record_is_one_line_in_the_file_of_its_day(tmp_path: Path) -> None:
    for at in (0.0, 86399.999, 86400.0):
        audit.write(tmp_path, RECORD, at=at)
    assert [file.name for file in audit.files(tmp_path)] == ["audit-1970-01-01.jsonl", "audit-1970-01-02.jsonl"]
    first, _, last = audit.read(tmp_path)
    assert first == {
        "at": "1970-01-01T00:00:00.000Z", "event": "DICOM Instances Accessed", "code": "110103", "action": "U",
        "outcome": 0, "who": "admin", "what": "hold", "studies": ["1.2.3"], "series": ["1.2.3.1"],
    }  # fmt: skip
    assert last["at"] == "1970-01-02T00:00:00.000Z"
    assert {stat.S_IMODE(file.stat().st_mode) for file in audit.files(tmp_path)} == {0o600}


def test_what_was_written_is_synced_before_the_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def see(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr(audit, "sync", see)
    monkeypatch.setattr(durable, "sync", see)
    audit.write(tmp_path, RECORD, at=0.0)
    folder = str(tmp_path / "audit")
    assert synced == [str(tmp_path), f"{folder}/audit-1970-01-01.jsonl", folder]


def test_a_line_that_was_cut_spoils_no_other(tmp_path: Path) -> None:
    audit.write(tmp_path, RECORD, at=0.0)
    (file,) = audit.files(tmp_path)
    with file.open("ab") as torn:
        torn.write(b'{"at": "1970-')
    audit.write(tmp_path, RECORD, RECORD, at=1.0)
    assert len(list(audit.read(tmp_path))) == 3


def test_lines_of_several_processes_are_whole_and_all_there(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from ctnode.ops import audit\n"
        "for n in range(40): audit.write(Path(sys.argv[1]), *[audit.Record(audit.Event.IMPORT, audit.Action.CREATE,"
        " sys.argv[2], f'{n}' * 500)] * 3)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    entries = [(entry["who"], entry["what"]) for entry in audit.read(tmp_path)]
    assert len(entries) == 3 * 40 * 3
    assert len(set(entries)) == 3 * 40


def test_a_uid_that_is_a_name_is_not_said(tmp_path: Path) -> None:
    audit.write(tmp_path, Record(Event.EXPORT, Action.READ, "a", "b", studies=(CANARY,), series=(CANARY, "1.2~2")))
    (file,) = audit.files(tmp_path)
    assert CANARY not in file.read_text()
    assert next(audit.read(tmp_path))["series"][1] == "1.2~2"


def test_switched_off_it_leaves_nothing(tmp_path: Path) -> None:
    audit.write(tmp_path, RECORD, enabled=False)
    audit.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_nothing_stops_no_role_but_a_command(tmp_path: Path) -> None:
    (tmp_path / "audit").touch()
    with pytest.raises(FileExistsError):
        audit.write(tmp_path, RECORD)
    audit.note(tmp_path, RECORD)


# ----------------------------------------------------------------------------------------- who sends and gets


def test_who_sent_what_is_written_when_the_association_ends(root: Root) -> None:
    told: list[Record] = []
    settler = Settler(root.index, on_ended=lambda ended: told.extend(of_associations(root.database, ended)))
    for door, statuses, how, series in (
        ("network", {"0000": 2, "A700": 3}, "released", SERIES), ("network", {"0000": 1}, "aborted", "1.2.3.2"),
        ("network", {}, "released", ""), ("import", {"0000": 1}, "released", "1.2.3.4"),
    ):  # fmt: skip
        journal = root.spool.open_association(Opened(door, "CT1", "CTNODE", "10.0.0.1:4711", "10.0.0.2:11112"))
        for image in stack(statuses.get("0000", 0), series=series):
            put(journal, image)
        journal.close(how, statuses=statuses)
        settler.scan()
        settler.scan()
    said = [(one.event, one.who, one.what, int(one.outcome), one.source, one.series, one.instances) for one in told]
    sent = Event.INSTANCES_TRANSFERRED
    assert said == [
        (sent, "CT1", "association released, 3 refused", 4, "10.0.0.1:4711", (SERIES,), 2),
        (sent, "CT1", "association aborted", 4, "10.0.0.1:4711", ("1.2.3.2",), 1),
        (Event.IMPORT, "CT1", "association released", 0, "", ("1.2.3.4",), 1),
    ]
    assert told[0].studies == (STUDY,)


@pytest.mark.parametrize(("external", "event"), [(False, Event.INSTANCES_TRANSFERRED), (True, Event.EXPORT)])
def test_what_went_out_is_one_entry_for_each_series(root: Root, external: bool, event: Event) -> None:
    revision = root.queued(*stack(2))
    with root.database.immediate():
        outbox.post(root.database, revision.id, [Parcel("pacs", "report", f"r1/{n}.dcm", "aa") for n in range(3)])
    owed = outbox.claim(root.database, "pacs", "one")
    pacs = Target(name="pacs", ae_title="P", host="h", port=104, external=external, deidentify="x")
    outcomes = [*((one, Outcome.SUCCESS) for one in owed[:2]), (owed[2], Outcome.SERIOUS_FAILURE)]
    good, bad = of_deliveries(root.database, "CTNODE", pacs, outcomes)
    assert (good.event, good.what, good.instances, good.series, good.target) == (
        event,
        "delivery",
        2,
        (SERIES,),
        "pacs",
    )
    assert (bad.what, bad.instances, int(bad.outcome)) == ("delivery given up", 1, 8)


def test_who_was_turned_away_is_an_alert_of_security() -> None:
    record = of_rejection(Rejection("10.0.0.9", "EVIL", "CTNODE", "calling AE not known", count=4))
    assert (record.event, record.who, record.source) == (Event.SECURITY_ALERT, "EVIL", "10.0.0.9")
    assert record.what == "refused: calling AE not known, 4 times"


def test_what_a_person_does_at_the_command_line_is_written(root: Root, tmp_path: Path) -> None:
    revision = root.queued(*stack(2))
    root.hold(*stack(1, series="1.2.3.2"))
    with root.database.immediate():
        outbox.post(root.database, revision.id, [Parcel("pacs", "report", "r1/report.dcm", "aa")])
    file = tmp_path / "config.toml"
    file.write_text(f'[storage]\nroot = "{root.layout.root}"\n')

    def run(*words: str) -> Result:
        done = CliRunner().invoke(cli, ["--config", str(file), *words], standalone_mode=False)
        assert not isinstance(done.exception, Exception), done.exception
        return done

    for words in (
        ("series", "hold", SERIES), ("series", "release", SERIES), ("series", "complete", "1.2.3.2"),
        ("jobs", "cancel", "1"), ("jobs", "retry", "1"), ("jobs", "cancel", "1"), ("series", "requeue", SERIES),
        ("deliveries", "pause", "pacs"), ("deliveries", "resume", "pacs"), ("deliveries", "cancel", "1"),
        ("deliveries", "retry", "1"), ("series", "acknowledge", SERIES, "--reason", "seen"),
        ("backup", str(tmp_path / "copy.db")),
    ):  # fmt: skip
        run(*words)
    said = [(entry["what"], entry.get("target", "")) for entry in audit.read(root.layout.root)]
    assert said == [
        ("hold", ""), ("release", ""), ("complete", ""), ("cancel job", ""), ("retry job", ""), ("cancel job", ""),
        ("requeue", ""), ("destination paused", "pacs"), ("destination resumed", "pacs"), ("deliveries cancelled", ""),
        ("deliveries tried again", ""), ("acknowledge", ""), ("index copied", ""),
    ]  # fmt: skip
    assert {entry["who"] for entry in audit.read(root.layout.root)} == {audit.operator()}
    listed = json.loads(run("audit", "list", "--json", "--limit", "2").output)
    assert [entry["what"] for entry in listed] == ["acknowledge", "index copied"]
    assert revisions.newest(root.database, 1).state == "QUEUED"
    assert "acknowledged by a command: seen" in run("series", "show", SERIES).output


# ----------------------------------------------------------------------------------------------- the repository


def entry_of(**changes: object) -> dict[str, object]:
    record = Record(
        Event.INSTANCES_TRANSFERRED, Action.CREATE, "CT1", "association released", source="10.0.0.1:4711",
        studies=("1.2.3",), series=("1.2.3.1", "1.2.3.2"), instances=3, reference="17-a",
    )  # fmt: skip
    return {**record.as_json(0.0), **changes}


def test_the_message_is_that_of_the_standard() -> None:
    root = ET.fromstring(message_of(entry_of(target="pacs"), node="CTNODE"))
    event = root.find("EventIdentification")
    assert event is not None
    assert event.attrib == {
        "EventActionCode": "C", "EventDateTime": "1970-01-01T00:00:00.000Z", "EventOutcomeIndicator": "0",
    }  # fmt: skip
    code = event.find("EventID")
    assert code is not None
    assert code.attrib == {
        "csd-code": "110104", "codeSystemName": "DCM", "originalText": "DICOM Instances Transferred",
    }  # fmt: skip
    people = {one.get("UserID"): one for one in root.findall("ActiveParticipant")}
    assert set(people) == {"CT1", "pacs", "CTNODE"}
    assert people["CT1"].get("NetworkAccessPointID") == "10.0.0.1"
    assert [one.get("UserIsRequestor") for one in people.values()] == ["true", "false", "false"]
    source = root.find("AuditSourceIdentification")
    assert source is not None
    assert source.get("AuditSourceID") == "CTNODE"
    (study,) = root.findall("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == "1.2.3"
    details = {
        one.get("type"): base64.b64decode(str(one.get("value"))).decode()
        for one in study.findall("ParticipantObjectDetail")
    }
    assert details == {"series": "1.2.3.1 1.2.3.2", "instances": "3", "reference": "17-a"}


@given(st.text())
@example("\0")
@example("a\r\nb]]><&>\"'\ud800ä\u2028\ufffe")
def test_no_text_breaks_the_message(text: str) -> None:
    sent = frame(entry_of(who=text, target=text), node="CTNODE", host="h ö st", process=1)
    length, _, message = sent.partition(b" ")
    assert int(length) == len(message)
    head, _, content = message.partition(b"\xef\xbb\xbf")
    assert head == b"<85>1 1970-01-01T00:00:00.000Z hst ctnode 1 DICOM+RFC3881 - "
    ET.fromstring(content)


class Repository(threading.Thread):
    """Takes frames over TLS and keeps the messages; one that is rude hangs up after so many bytes."""

    def __init__(self, issued: Issued, connections: int = 1) -> None:
        super().__init__()
        self.listener = create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.messages: list[str] = []
        self._connections = connections
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(issued.certificate, issued.key)

    def run(self) -> None:
        for _ in range(self._connections):
            plain, _ = self.listener.accept()
            with self._context.wrap_socket(plain, server_side=True) as connection:
                stream = b"".join(iter(lambda: connection.recv(65536), b""))
            while stream:
                length, _, rest = stream.partition(b" ")
                self.messages.append(rest[: int(length)].decode())
                stream = rest[int(length) :]
        self.listener.close()


def whole(part: AuditSender, root: Root, config: Config) -> None:
    part._due_s = 0.0
    part.start_due(root.database, config)
    for thread in part._threads._busy.values():
        thread.join()


def test_each_line_reaches_the_repository_once_and_in_order(root: Root, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    repository = Repository(authority.issue("arr"), connections=2)
    settings = Audit(syslog_host="localhost", syslog_port=repository.port, ca=str(authority.certificate))
    config = Config(storage=Storage(root=str(root.layout.root)), audit=settings)
    today = datetime.now(UTC).timestamp()

    def say(*numbers: int, at: float = today) -> None:
        audit.write(root.layout.root, *(Record(Event.IMPORT, Action.CREATE, "a", f"<{n}>") for n in numbers), at=at)

    say(1, 2, at=today - 86400)
    say(*range(3, 1000))
    part = AuditSender(root.layout)
    # Nobody listens yet; what waits is tried again and nothing is lost.
    nobody = create_server(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
    nobody.close()
    down = settings.model_copy(update={"syslog_port": port})
    whole(part, root, config.model_copy(update={"audit": down}))
    assert part._due_s > time.monotonic()
    repository.start()
    whole(part, root, config)
    say(9998)
    # Another process goes on where the first one was.
    whole(AuditSender(root.layout), root, config)
    repository.join()
    numbers = [int(message.partition("&lt;")[2].partition("&gt;")[0]) for message in repository.messages]
    assert numbers == [1, 2, *range(3, 1000), 9998]
    part.stop()


def test_a_repository_with_another_certificate_gets_nothing(root: Root, tmp_path: Path) -> None:
    repository = Repository(Authority(tmp_path, "other").issue("arr"))
    settings = Audit(
        syslog_host="localhost", syslog_port=repository.port, ca=str(Authority(tmp_path, "ours").certificate)
    )
    audit.write(root.layout.root, RECORD)
    repository.run = lambda: None  # type: ignore[method-assign]
    accepted = threading.Thread(target=lambda: _refused(repository))
    accepted.start()
    part = AuditSender(root.layout)
    whole(part, root, Config(storage=Storage(root=str(root.layout.root)), audit=settings))
    accepted.join()
    assert part._failures == 1
    assert part._cursor() == ("", 0)


def _refused(repository: Repository) -> None:
    plain, _ = repository.listener.accept()
    with plain, pytest.raises(ssl.SSLError):
        repository._context.wrap_socket(plain, server_side=True).recv(1)
    repository.listener.close()
