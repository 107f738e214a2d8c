"""The keys of a sender."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ctnode.config.fields import AeTitle, Name, Port, Seconds, Section, Uid

Service = Literal["echo", "store", "mpps", "commitment", "availability"]


class Peer(Section):
    """One sender that is known by AE title and host, and by its certificate if one is named."""

    name: Name = Field(description="name of the peer in logs and commands")
    ae_title: AeTitle = Field(description="calling AE title of the peer")
    host: str = Field(description="address, host name or network (10.1.2.0/24) the peer calls from")
    port: Port | None = Field(None, description="port of the peer's own SCP, for `ctnode echo`")
    certificate: str = Field(
        "",
        description="subject, common name, DNS name or sha256:HEX of the certificate it shows (TLS); empty: any",
    )
    services: tuple[Service, ...] = Field(
        ("echo", "store"),
        strict=False,
        description="services the peer may use: echo, store, mpps, commitment, availability",
    )
    sop_classes: tuple[Uid, ...] = Field(
        (), strict=False, description="UIDs of the SOP classes it may store; empty: all"
    )
    max_associations: int | None = Field(
        None, ge=1, le=900, description="its associations at the same time; default: as many as its address may have"
    )
    max_pdu: int | None = Field(
        None, ge=4096, le=1048576, description="largest PDU in bytes that is offered to it; default: that of [receiver]"
    )
    max_object_mb: int | None = Field(
        None, ge=1, description="largest object in megabytes that is taken; default: that of [receiver]"
    )
    idle_timeout_s: Seconds | None = Field(
        None, description="seconds its associations may be silent; default: that of [receiver]"
    )
    pdu_timeout_s: Seconds | None = Field(
        None, description="seconds one of its PDUs may take; default: that of [receiver]"
    )
    quiet_s: Seconds | None = Field(
        None, description="quiet time of series from this peer; default: that of [completion]"
    )
    active_check: Literal["", "series", "image"] = Field(
        "",
        description="ask it what it holds of a series: series (their number), image (each); empty: do not ask",
    )
    retrieve: Literal["", "move", "get"] = Field(
        "", description="how to fetch what it holds and has not sent: move (it has to know our port), get; empty: not"
    )
    query_ae_title: AeTitle | None = Field(None, description="AE title that is asked; default: that of the peer")
    query_host: str = Field("", description="host that is asked; empty: that of the peer")
    query_port: Port | None = Field(None, description="port that is asked; default: that of the peer")
    query_timeout_s: Seconds = Field(30.0, description="seconds it may take for one answer to a question")

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.active_check and not (self.query_port or self.port):
            raise ValueError("active_check needs query_port or port")
        if self.active_check and not self.query_host and "/" in self.host:
            raise ValueError("active_check needs query_host where host is a network")
        if self.retrieve and not self.active_check:
            raise ValueError("retrieve needs active_check")
        return self
