"""Mails of [[notify]] by way of a real SMTP server: STARTTLS, TLS from the first byte, a login, certificates."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from ctnode.archive.alerts import Alert, Digest
from ctnode.config import Notify
from ctnode.flow.telling import NotTold, compose, tell
from tests.certificates import Authority

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")]

PASSWORD = "correct horse battery"
MESSAGE = compose("CTNODE", Digest({"failed": 1}, (Alert(1, 0.0, "failed", "1.2.3.1", "could not", 1),), 0.0, 1))


class Inbox:
    """What a server took, and whether the sender had proved who it is."""

    def __init__(self) -> None:
        self.mails: list[tuple[Envelope, bool]] = []

    async def handle_DATA(  # noqa: N802 - what the library calls
        self, _server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        self.mails.append((envelope, session.authenticated is True))
        return "250 OK"


def knows(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: Any) -> AuthResult:
    assert isinstance(data, LoginPassword)
    return AuthResult(success=(data.login, data.password) == (b"node", PASSWORD.encode()), handled=False)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


class Servers:
    """SMTP servers on free ports with a certificate of the authority."""

    def __init__(self, authority: Authority, opened: ExitStack) -> None:
        issued = authority.issue("mail")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(issued.certificate, issued.key)
        self._opened = opened

    def start(self, security: str, *, login: bool = False, host: str = "127.0.0.1") -> tuple[Inbox, int]:
        inbox, settings = Inbox(), dict[str, Any](hostname=host, port=0)
        if security == "starttls":
            settings |= {"tls_context": self.context, "require_starttls": True}
        elif security == "tls":
            settings["ssl_context"] = self.context
        if login:
            # The library cannot know of TLS from the first byte and would not let anybody log in.
            settings |= {"authenticator": knows, "auth_required": True, "auth_require_tls": security == "starttls"}
            settings |= {"auth_exclude_mechanism": ["LOGIN"]}
        controller = Listening(inbox, **settings)
        controller.start()
        self._opened.callback(controller.stop)
        return inbox, controller.port


class Listening(Controller):
    """A server that says which free port it got; its parent connects to it once to see it answer."""

    def _trigger_server(self) -> None:
        assert self.server is not None
        self.port = int(self.server.sockets[0].getsockname()[1])
        super()._trigger_server()


@pytest.fixture
def servers(authority: Authority) -> Iterator[Servers]:
    with ExitStack() as opened:
        yield Servers(authority, opened)


def channel(port: int, **changes: Any) -> Notify:
    return Notify(
        **{"name": "m", "kind": "email", "host": "localhost", "port": port, "sender": "ctnode@example.org",
           "to": ("duty@example.org", "two@example.org"), "timeout_s": 10.0, **changes}
    )  # fmt: skip


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_mail_goes_by_tls_with_a_login(security: str, servers: Servers, authority: Authority, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD + "\n")
    inbox, port = servers.start(security, login=True)
    tell(
        channel(port, security=security, ca=str(authority.certificate), user="node", password_file=str(secret)), MESSAGE
    )
    ((envelope, is_known),) = inbox.mails
    assert is_known
    assert envelope.rcpt_tos == ["duty@example.org", "two@example.org"]
    assert isinstance(envelope.content, bytes)
    mail = message_from_bytes(envelope.content)
    assert mail["Subject"] == "ctnode CTNODE: 1 failed"
    secret.write_text("guessed")
    with pytest.raises(NotTold, match="535"):
        tell(
            channel(port, security=security, ca=str(authority.certificate), user="node", password_file=str(secret)),
            MESSAGE,
        )
    assert len(inbox.mails) == 1


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_server_whose_certificate_is_not_trusted_or_of_another_name_gets_nothing(
    security: str, servers: Servers, authority: Authority, tmp_path: Path
) -> None:
    inbox, port = servers.start(security)
    foreign, elsewhere = servers.start(security, host="127.0.0.2")
    other = str(Authority(tmp_path, "elsewhere").certificate)
    wrong = [
        channel(port, security=security, ca=other),
        channel(port, security=security),
        # The certificate is of localhost and 127.0.0.1.
        channel(elsewhere, security=security, ca=str(authority.certificate), host="127.0.0.2"),
    ]
    for one in wrong:
        with pytest.raises(NotTold, match="TLS: CERTIFICATE_VERIFY_FAILED"):
            tell(one, MESSAGE)
    assert inbox.mails == foreign.mails == []


def test_a_server_that_knows_no_starttls_gets_neither_password_nor_mail(
    servers: Servers, authority: Authority, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD)
    inbox, port = servers.start("none")
    settings = {"ca": str(authority.certificate), "user": "node", "password_file": str(secret)}
    with pytest.raises(NotTold):
        tell(channel(port, security="starttls", **settings), MESSAGE)
    assert inbox.mails == []
