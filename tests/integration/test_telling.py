"""Being told: each kind of trouble once, a digest instead of a storm, tried again, and never a word of a patient."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from ctnode.archive import alerts, jobs, outbox, revisions
from ctnode.archive.rejections import Rejections
from ctnode.cli import cli
from ctnode.config import Audit, Config, Notify, Storage, Target, Tls, Web
from ctnode.flow import notifier
from ctnode.flow.doctor import examine
from ctnode.flow.metrics import exposition
from ctnode.flow.notifier import Notifier, conditions
from ctnode.flow.telling import NotTold, compose, tell
from ctnode.words import Verdict
from tests.archive_root import Root, stack
from tests.certificates import Authority

pytestmark = pytest.mark.integration

CANARY = "KANARIENVOGEL"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    node = Root(tmp_path / "node")
    yield node
    node.close()


class Hook(HTTPServer):
    """A web service that keeps what is posted to it and answers as told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.posted: list[tuple[dict[str, object], str]] = []
        self.answers = [200]
        self.arrived = threading.Semaphore(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class Answering(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append((json.loads(body), self.headers.get("Authorization", "")))
        self.send_response(self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0])
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.server.arrived.release()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def trouble(root: Root) -> None:
    """Let one thing of each kind go wrong."""
    revision = root.queued(*stack(2, patient=CANARY))
    for _ in range(jobs.MAX_FAILURES):
        root.database.execute("UPDATE jobs SET state = 'QUEUED', due_at = 0")
        root.database.connection.commit()
        lease = jobs.claim(root.database, "one")
        assert lease is not None
        jobs.fail(root.database, lease, CANARY)
    root.hold(*stack(1, series="1.2.3.2"))
    with root.database.immediate():
        revisions.complete(root.database, revisions.newest(root.database, 2), Verdict.SUSPECT, [CANARY])
        outbox.post(root.database, revision.id, [outbox.Parcel("pacs", "report", "r1/report.dcm", "aa")])
    (delivery,) = outbox.claim(root.database, "pacs", "one")
    outbox.failed(root.database, delivery, 0xA900, CANARY, wait_s=None)
    root.index.quarantine(root.layout.quarantine / "x", "1-association", CANARY)


def told_of(root: Root) -> list[tuple[str, str, str]]:
    return [(one.kind, one.subject, one.text) for one in reversed(alerts.latest(root.database))]


def test_each_kind_of_trouble_is_an_alert_in_the_transaction_that_made_it(root: Root) -> None:
    trouble(root)
    assert told_of(root) == [
        ("failed", "1.2.3.1", "revision 1 could not be processed"),
        ("suspect", "1.2.3.2", "revision 1 may not be whole"),
        ("dead", "pacs", "report of 1.2.3.1 was given up, status A900H"),
        ("quarantine", "1-association", "a file could not be settled"),
    ]


def test_a_uid_that_is_a_name_is_not_said(root: Root) -> None:
    root.hold(*stack(1, series=CANARY))
    with root.database.immediate():
        revisions.complete(root.database, revisions.newest(root.database, 1), Verdict.SUSPECT, ["gap"])
    assert told_of(root) == [("suspect", "series 1", "revision 1 may not be whole")]


def channel_of(hook: Hook, **changes: object) -> Notify:
    return Notify(**{"name": "duty", "url": hook.url, "interval_s": 1000.0, **changes})  # type: ignore[arg-type]


def config_of(root: Root, *channels: Notify) -> Config:
    return Config(storage=Storage(root=str(root.layout.root), reserve_mb=0, reserve_inodes=0), notify=channels)


@contextmanager
def notifying(root: Root, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notifier]:
    monkeypatch.setattr(notifier, "GATHER_S", 0.0)
    monkeypatch.setattr(notifier, "LOOK_S", 1e9)
    one = Notifier(root.layout)
    one._looked = time.monotonic()
    try:
        yield one
    finally:
        one.stop()


def turn(part: Notifier, root: Root, config: Config) -> None:
    """Let the part work, and wait for what it has begun."""
    part.start_due(root.database, config)
    for thread in part._threads._busy.values():
        thread.join()


def test_a_storm_is_one_digest_and_the_next_one_waits(root: Root, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(root, channel_of(hook))
    with notifying(root, monkeypatch) as part:
        turn(part, root, config)
        trouble(root)
        with root.database.immediate():
            for number in range(500):
                alerts.add(root.database, "refused", f"SCU{number} at 10.0.0.1", "unknown", 2)
        turn(part, root, config)
        turn(part, root, config)
        ((content, token),) = hook.posted
        assert token == ""
        assert content["counts"] == {"failed": 1, "suspect": 1, "dead": 1, "quarantine": 1, "refused": 1000}
        assert len(content["alerts"]) == 20  # type: ignore[arg-type]
        assert content["more"] == 1004 - 4 - 16 * 2
        assert CANARY not in json.dumps(content)
        with root.database.immediate():
            alerts.add(root.database, "dead", "pacs", "again")
        turn(part, root, config)
        assert len(hook.posted) == 1
        # The interval is over.
        root.database.execute("UPDATE channels SET sent_at = sent_at - 1000")
        root.database.connection.commit()
        turn(part, root, config)
        assert hook.posted[1][0]["counts"] == {"dead": 1}


def test_a_channel_hears_of_what_it_wants_and_of_nothing_before_it_was_there(
    root: Root, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble(root)
    config = config_of(root, channel_of(hook, on=("dead",)))
    with notifying(root, monkeypatch) as part:
        turn(part, root, config)
        assert hook.posted == []
        with root.database.immediate():
            alerts.add(root.database, "refused", "SCU", "unknown")
            alerts.add(root.database, "dead", "pacs", "one")
        turn(part, root, config)
        assert [content["counts"] for content, _ in hook.posted] == [{"dead": 1}]


def test_what_did_not_arrive_is_tried_again_and_said_once(
    root: Root, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = root.layout.root / "token"
    token.write_text("Bearer secret\n")
    config = config_of(root, channel_of(hook, token_file=str(token)))
    hook.answers = [503, 302, 200]
    with notifying(root, monkeypatch) as part:
        turn(part, root, config)
        trouble(root)
        for comment in ("HTTP status 503", "HTTP status 302", ""):
            turn(part, root, config)
            # Nothing more before its time.
            turn(part, root, config)
            (state,) = alerts.channels(root.database, ["duty"])
            assert state.comment == comment
            found = [one.found for one in examine(config) if one.what == "channel duty"]
            assert found == ([f"not told {state.failures} times: {comment}"] if comment else [])
            root.database.execute("UPDATE channels SET due_at = 0")
            root.database.connection.commit()
    assert [content["counts"] for content, _ in hook.posted] == [hook.posted[0][0]["counts"]] * 3
    assert {token for _, token in hook.posted} == {"Bearer secret"}


def test_a_channel_that_hangs_makes_nobody_wait(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        config = config_of(root, Notify(name="duty", url=f"http://127.0.0.1:{deaf.getsockname()[1]}/", timeout_s=0.5))
        with notifying(root, monkeypatch) as part:
            part.start_due(root.database, config)
            trouble(root)
            part.start_due(root.database, config)
            assert part._threads.busy == ("duty",)
            # The role goes on meanwhile.
            part.start_due(root.database, config)
            turn(part, root, config)
            (state,) = alerts.channels(root.database, ["duty"])
            assert (state.failures, state.comment) == (1, "TimeoutError")


def test_who_was_refused_is_told_once_also_after_a_restart(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    who = {"address": "10.0.0.9", "calling_ae": "EVIL", "called_ae": "CTNODE", "reason": "calling AE not known"}
    file = Rejections(root.layout.rejections)
    for _ in range(3):
        file.add(who)
    file.flush(is_last=True)
    for _ in range(2):
        with notifying(root, monkeypatch) as part:
            part._look(config_of(root), "")
    said = [(one.kind, one.subject, one.text, one.count) for one in reversed(alerts.latest(root.database))]
    assert said == [("refused", "EVIL at 10.0.0.9", "calling AE not known", count) for count in (1, 2)]


def test_a_disk_that_is_low_is_told_when_it_begins(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    plenty, little = config_of(root), config_of(root)
    little = little.model_copy(update={"storage": Storage(root=str(root.layout.root), reserve_mb=1 << 40)})
    with notifying(root, monkeypatch) as part:
        for config in (plenty, little, little, plenty, little):
            part._look(config, "")
    spaces = [one for one in alerts.latest(root.database) if one.subject == "root, space"]
    assert len(spaces) == 2
    assert f"under {1 << 40} MB nothing is taken" in spaces[0].text


@pytest.mark.parametrize(("days", "steps"), [(400, 0), (20, 1), (5, 2), (0.5, 3)])
def test_a_certificate_is_told_at_each_step_to_its_end(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: float, steps: int
) -> None:
    monkeypatch.setattr(notifier.read_material.__globals__["Material"], "days_left", lambda _self: days)
    issued = Authority(tmp_path).issue("node")
    tls = Tls(certificate=str(issued.certificate), key=str(issued.key), require_client_certificate=False)
    config = config_of(root).model_copy(update={"tls": tls})
    held = [one for one in conditions(config, root.layout) if one.kind == "certificate" and one.holds]
    assert len(held) == steps


def test_each_certificate_and_authority_that_is_used_is_looked_at(root: Root, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good, ends, ended = (authority.issue(name, days=days) for name, days in (("a", 60), ("b", 5), ("c", -1)))
    gone = str(tmp_path / "none.pem")
    ca = str(authority.certificate)
    target = Target(
        name="pacs", ae_title="PACS", host="pacs.example", port=2762, tls=True, ca=ca, certificate=str(ends.certificate)
    )
    config = config_of(root, channel_of_nobody(ca=gone)).model_copy(
        update={
            "targets": (target,),
            "web": Web(certificate=str(ended.certificate), key=str(ended.key)),
            "audit": Audit(ca=str(good.certificate)),
        }
    )
    held = {one.subject for one in conditions(config, root.layout) if one.kind == "certificate" and one.holds}
    assert held == {
        "web.certificate within 30 days", "web.certificate within 7 days", "web.certificate within 1 days",
        "certificate of target pacs within 30 days", "certificate of target pacs within 7 days",
        "ca of target pacs within 30 days",
        "ca of channel duty",
    }  # fmt: skip
    days = dict(
        re.findall(r'ctnode_certificate_file_days\{file="([^"]+)"\} (.+)', exposition(config, root.database).decode())
    )
    assert {name: round(float(value)) for name, value in days.items()} == {
        "web.certificate": -1, "audit.ca": 60, "certificate of target pacs": 5, "ca of target pacs": 30,
    }  # fmt: skip
    found = {one.what: one.is_good for one in examine(config)}
    assert found["audit.ca"]
    assert not any(found[name] for name in ("web.certificate", "ca of target pacs", "ca of channel duty"))


def channel_of_nobody(**changes: object) -> Notify:
    return Notify(**{"name": "duty", "url": "https://127.0.0.1:1/", **changes})  # type: ignore[arg-type]


def test_what_is_old_is_forgotten_and_its_numbers_are_not_used_again(root: Root) -> None:
    with root.database.immediate():
        alerts.add(root.database, "dead", "pacs", "one")
    alerts.channel(root.database, "duty")
    root.database.execute("UPDATE alerts SET at = at - ?", (alerts.KEPT_S + 1,))
    root.database.connection.commit()
    alerts.forget_old(root.database)
    assert alerts.latest(root.database) == ()
    with root.database.immediate():
        alerts.add(root.database, "dead", "pacs", "two")
    told = alerts.channel(root.database, "duty").told
    assert alerts.untold(root.database, told, ["dead"]) is not None


# --------------------------------------------------------------------------------------------- mail and command


class MailServer(threading.Thread):
    """As much of SMTP as a mail needs."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.refuses = refuses
        self.mail = b""

    def run(self) -> None:
        connection, _ = self.listener.accept()
        with connection, connection.makefile("rwb", buffering=0) as line:
            line.write(b"220 mail\r\n")
            for said in iter(line.readline, b""):
                word = said[:4].upper()
                if word == b"DATA":
                    line.write(b"354 go\r\n")
                    self.mail = b"".join(iter(line.readline, b".\r\n"))
                if word == b"RCPT" and self.refuses:
                    line.write(b"550 KANARIENVOGEL\r\n")
                    continue
                line.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")
        self.listener.close()


def digest(subject: str = "1.2.3.1") -> alerts.Digest:
    alert = alerts.Alert(1, 0.0, "failed", subject, "revision 1 could not be processed", 3)
    return alerts.Digest({"failed": 3}, (alert,), 0.0, 1)


def test_a_mail_says_the_same_and_its_head_is_of_one_line() -> None:
    server = MailServer()
    server.start()
    channel = Notify(
        name="m", kind="email", host="127.0.0.1", port=server.port, security="none", sender="ctnode@example.org",
        to=("duty@example.org", "two@example.org"),
    )  # fmt: skip
    tell(channel, compose("CTNODE", digest("evil\r\nBcc: x@example.org")))
    server.join()
    mail = message_from_bytes(server.mail)
    assert mail["Subject"] == "ctnode CTNODE: 3 failed"
    assert (mail["Auto-Submitted"], mail["Bcc"]) == ("auto-generated", None)
    text = str(mail.get_payload(decode=True))
    assert "evil??Bcc" in text
    assert "(3 times)" in text


def test_a_mail_that_nobody_takes_is_not_told() -> None:
    server = MailServer(refuses=True)
    server.start()
    channel = Notify(
        name="m", kind="email", host="127.0.0.1", port=server.port, security="none", sender="a@b", to=("c@d",)
    )
    with pytest.raises(NotTold) as fault:
        tell(channel, compose("CTNODE", digest()))
    server.join()
    assert CANARY not in str(fault.value)


def test_a_command_gets_json_and_nothing_of_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTNODE_TEST_SECRET", "x")
    out = tmp_path / "out"
    script = f'cat > {out}; [ -z "$CTNODE_TEST_SECRET" ]'
    tell(Notify(name="c", kind="command", command=("sh", "-c", script)), compose("CTNODE", digest()))
    assert json.loads(out.read_text())["counts"] == {"failed": 3}


@pytest.mark.parametrize(
    ("command", "words"),
    [(("sh", "-c", "exit 3"), "ended with 3"), (("sleep", "60"), "longer than 0.3 s"), (("/no/such",), "No such file")],
)
def test_a_command_that_fails_or_does_not_end_is_not_told(command: tuple[str, ...], words: str) -> None:
    channel = Notify(name="c", kind="command", command=command, timeout_s=0.3)
    with pytest.raises(NotTold, match=words):
        tell(channel, compose("CTNODE", digest()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "webhook"}, {"kind": "webhook", "url": "ftp://x"}, {"kind": "command"}, {"kind": "email"},
        {"kind": "email", "host": "h", "sender": "a@b", "to": ("no address",)},
        {"kind": "email", "host": "h", "sender": "a@b", "to": ("c@d\nBcc: e@f",)},
        {"kind": "email", "host": "h", "sender": "a@b", "to": ("c@d",), "user": "u"},
        {"url": "http://x", "on": ("everything",)}, {"url": "http://x", "on": ()},
    ],
)  # fmt: skip
def test_a_channel_that_could_not_work_is_a_fault_of_the_configuration(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Notify(name="n", **wrong)  # type: ignore[arg-type]


def test_the_test_command_tells_each_channel_and_says_who_was_not(tmp_path: Path, hook: Hook) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        f'[[notify]]\nname = "good"\nurl = "{hook.url}"\n'
        '[[notify]]\nname = "bad"\nkind = "command"\ncommand = ["false"]\n'
    )
    done = CliRunner().invoke(cli, ["--config", str(file), "notify", "test"], standalone_mode=False)
    assert done.output == "good: told\nbad: NOT told: it ended with 1\n"
    assert done.return_value == 1
    assert hook.posted[0][0]["counts"] == {"test": 1}
    one = CliRunner().invoke(cli, ["--config", str(file), "notify", "test", "good"], standalone_mode=False)
    assert (one.output, one.return_value) == ("good: told\n", 0)
    assert not os.path.exists(tmp_path / "ctnode-data")
