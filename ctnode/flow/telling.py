"""One message to one channel: what it says, and how it goes out; nothing in it comes from a data set."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import smtplib
import ssl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ctnode import __version__
from ctnode.archive.alerts import Digest
from ctnode.archive.timeline import iso
from ctnode.config import Notify
from ctnode.ops.process import end_group

WORDS: Final[Mapping[str, str]] = {
    "failed": "FAILED: series that could not be processed (`ctnode series why UID`)",
    "suspect": "SUSPECT: series that may not be whole (`ctnode series why UID`)",
    "dead": "DEAD: objects given up for a destination (`ctnode deliveries list --state DEAD`)",
    "quarantine": "files that could not be settled (`ctnode doctor`)",
    "refused": "connections and associations refused (`ctnode associations list`)",
    "disk": "storage low or not to be trusted (`ctnode doctor`)",
    "certificate": "certificates that end soon (`ctnode doctor`)",
    "test": "a test of this channel",
}
_FAMILIAR: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")


class NotTold(Exception):
    """A message that did not go out; says why without anything of the other side's text."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a channel is told."""

    subject: str
    text: str
    content: Mapping[str, Any]


def compose(node: str, digest: Digest) -> Message:
    """Put a digest into words; ``node`` is the AE title of this node."""
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(digest.counts.items()))
    lines = [f"ctnode {node}: {counts}"]
    for kind in sorted(digest.counts):
        lines += ["", WORDS.get(kind, kind)]
        lines += [
            f"  {iso(alert.at)} {_line(alert.subject)}: {_line(alert.text)}"
            + (f" ({alert.count} times)" * (alert.count > 1))
            for alert in digest.shown
            if alert.kind == kind
        ]
    more = sum(digest.counts.values()) - sum(alert.count for alert in digest.shown)
    if more > 0:
        lines += ["", f"and {more} more"]
    text = "\n".join(lines)
    alerts = [
        {"at": iso(alert.at), "kind": alert.kind, "subject": alert.subject, "text": alert.text, "count": alert.count}
        for alert in digest.shown
    ]
    content = {"node": node, "version": __version__, "counts": digest.counts, "alerts": alerts, "more": max(0, more)}
    # Chat services show what stands under "text".
    return Message(lines[0], text, {**content, "text": text})


def _line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def tell(channel: Notify, message: Message) -> None:
    """Send a message.

    Raises
    ------
    NotTold
        If it did not arrive, as far as can be known.
    """
    try:
        {"webhook": _post, "email": _mail, "command": _run}[channel.kind](channel, message)
    except ssl.SSLError as error:
        raise NotTold(f"TLS: {error.reason or 'failed'}") from None
    except smtplib.SMTPResponseException as error:
        raise NotTold(f"the mail server answered {error.smtp_code}") from None
    except (OSError, http.client.HTTPException, smtplib.SMTPException, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise NotTold(words) from None


def _post(channel: Notify, message: Message) -> None:
    place = urlsplit(channel.url)
    host = place.hostname or ""
    connection = (
        http.client.HTTPSConnection(host, place.port, timeout=channel.timeout_s, context=_context(channel))
        if place.scheme == "https"
        else http.client.HTTPConnection(host, place.port, timeout=channel.timeout_s)
    )
    headers = {"Content-Type": "application/json", "User-Agent": f"ctnode/{__version__}"}
    if channel.token_file:
        headers["Authorization"] = _secret(channel.token_file)
    path = (place.path or "/") + (f"?{place.query}" if place.query else "")
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(message.content).encode(), headers)
        status = connection.getresponse().status
    if not http.client.OK <= status < http.client.MULTIPLE_CHOICES:
        # A redirection too: the token was meant for this place.
        raise NotTold(f"HTTP status {status}")


def _mail(channel: Notify, message: Message) -> None:
    mail = EmailMessage()
    mail["From"] = channel.sender
    mail["To"] = ", ".join(channel.to)
    mail["Subject"] = message.subject
    mail["Date"] = formatdate()
    mail["Message-ID"] = make_msgid(domain=channel.sender.rpartition("@")[2])
    # RFC 3834: nobody's absence is to answer it.
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.text)
    server: smtplib.SMTP
    if channel.security == "tls":
        server = smtplib.SMTP_SSL(channel.host, channel.port, timeout=channel.timeout_s, context=_context(channel))
    else:
        server = smtplib.SMTP(channel.host, channel.port, timeout=channel.timeout_s)
    with server:
        if channel.security == "starttls":
            server.starttls(context=_context(channel))
        if channel.user:
            server.login(channel.user, _secret(channel.password_file))
        refused = server.send_message(mail)
    if refused:
        raise NotTold(f"the mail server refused {len(refused)} of {len(channel.to)} addresses")


def _run(channel: Notify, message: Message) -> None:
    environment = {name: os.environ[name] for name in _FAMILIAR if name in os.environ}
    process = subprocess.Popen(
        channel.command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        process.communicate(json.dumps(message.content).encode(), timeout=channel.timeout_s)
    except subprocess.TimeoutExpired:
        raise NotTold(f"it took longer than {channel.timeout_s:g} s") from None
    finally:
        end_group(process.pid)
        process.wait()
    if process.returncode:
        raise NotTold(f"it ended with {process.returncode}")


def _context(channel: Notify) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=channel.ca or None)


def _secret(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise NotTold(f"{file} cannot be read") from None
