"""The keys of the page and its API."""

from __future__ import annotations

from pydantic import Field

from ctnode.config.fields import Seconds, Section


class Web(Section):
    """The page and the API; see docs/web.md."""

    enabled: bool = Field(default=True, description="serve the page; false: `ctnode run` starts no web role")
    host: str = Field(
        "127.0.0.1", description="address to serve the page at; anything but loopback needs users, and TLS or a proxy"
    )
    port: int = Field(8112, ge=0, le=65535, description="port of the page; 0 takes any free one, see `ctnode status`")
    names: tuple[str, ...] = Field(
        (), strict=False, description="host names under which the page is reached, beside web.host and addresses"
    )
    users: str = Field("", description="file of who may log in, made with `ctnode user`; empty: all of this machine")
    certificate: str = Field("", description="PEM file of the page's certificate with its chain; empty: no TLS")
    key: str = Field("", description="PEM file of its private key; empty: in the certificate file")
    behind_proxy: bool = Field(
        default=False, description="a reverse proxy in front of the page speaks TLS and sets X-Forwarded-For"
    )
    origins: tuple[str, ...] = Field(
        (), strict=False, description="origins of viewers that may read DICOMweb, such as https://ohif.example"
    )
    max_upload_mb: int = Field(4096, ge=1, description="largest file in megabytes that is taken by upload")
    session_s: Seconds = Field(43200.0, description="seconds after which one has to log in again")
