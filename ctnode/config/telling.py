"""The keys of being told: whom the node tells what needs somebody, and where the audit trail goes."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from ctnode.config.fields import Name, Seconds, Section

AlertKind = Literal["failed", "suspect", "dead", "quarantine", "refused", "disk", "certificate"]
ALERT_KINDS: Final[tuple[AlertKind, ...]] = (
    "failed", "suspect", "dead", "quarantine", "refused", "disk", "certificate",
)  # fmt: skip

_NEEDED: Final = {"webhook": ("url",), "email": ("host", "sender", "to"), "command": ("command",)}


class Notify(Section):
    """Somebody who is told what needs a person; without patient data."""

    name: Name = Field(description="name of the channel in logs and commands")
    kind: Literal["webhook", "email", "command"] = Field("webhook", description="webhook (POST), email, or command")
    on: tuple[AlertKind, ...] = Field(
        ALERT_KINDS, strict=False, min_length=1, description="what it is told of; see docs/operations.md"
    )
    interval_s: Seconds = Field(
        300.0, description="least seconds between two messages; what comes meanwhile is one digest"
    )
    timeout_s: Seconds = Field(20.0, description="seconds the other side may take")
    url: str = Field("", description="where JSON is posted; needed with webhook")
    token_file: str = Field("", description="file with the value of its Authorization header; empty: none is sent")
    host: str = Field("", description="mail server; needed with email")
    port: int = Field(587, ge=1, le=65535, description="port of the mail server")
    security: Literal["starttls", "tls", "none"] = Field("starttls", description="how the mail server is talked to")
    user: str = Field("", description="user at the mail server; empty: no login")
    password_file: str = Field("", description="file with the password of that user")
    sender: str = Field("", description="address that mails come from; needed with email")
    to: tuple[str, ...] = Field((), strict=False, description="addresses that mails go to; needed with email")
    ca: str = Field("", description="PEM file of authorities, for webhook and email; empty: those of the system")
    command: tuple[str, ...] = Field(
        (), strict=False, description="program and arguments, JSON on its standard input; needed with command"
    )

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Notify:
        for key in _NEEDED[self.kind]:
            if not getattr(self, key):
                raise ValueError(f"{self.name} needs {key}, for its kind is {self.kind}")
        if self.kind == "webhook" and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"{self.name} needs a url that begins with http:// or https://")
        if self.user and (not self.password_file or self.security == "none"):
            raise ValueError(f"{self.name} has a user: that needs password_file, and a connection with TLS")
        for address in (self.sender, *self.to):
            if self.kind == "email" and ("@" not in address or not address.isprintable() or " " in address):
                raise ValueError(f"{self.name} has {address!r}, which is no mail address")
        return self


class Audit(Section):
    """The audit trail: who did, sent, exported or erased what (PS3.15 A.5), as JSON lines in audit/ below the root."""

    enabled: bool = Field(default=True, description="write audit/audit-DATE.jsonl")
    syslog_host: str = Field("", description="audit repository that also gets it by syslog over TLS; empty: none")
    syslog_port: int = Field(6514, ge=1, le=65535, description="its port")
    ca: str = Field("", description="PEM file of the authority of its certificate; empty: those of the system")
    certificate: str = Field("", description="PEM file of the certificate to show it, with its chain; empty: none")
    key: str = Field("", description="PEM file of that certificate's key; empty: in the certificate file")
