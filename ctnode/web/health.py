"""Whether the role lives, and whether the node can do its work: two answers for who watches machines."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from ctnode.archive.suspect import marked
from ctnode.ops.role import RoleReport, read_reports
from ctnode.web.context import WebNode
from ctnode.web.overview import STALE_S, disks
from ctnode.words import CtnodeError

NEEDED: Final = ("keep", "receive", "work", "deliver")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to be so; ``found`` says what is wrong with it, else it is empty."""

    name: str
    found: str


def checks(node: WebNode) -> tuple[Check, ...]:
    """Look at what the node needs to do its work; some milliseconds."""
    roles = read_reports(node.layout.run)
    return (
        Check("index", _index(node)),
        *(Check(name, _role(name, roles)) for name in NEEDED),
        *_storage(node, roles),
    )


def _index(node: WebNode) -> str:
    try:
        with node.open_database() as database:
            database.execute("SELECT 1 FROM counters LIMIT 1").fetchone()
    except CtnodeError as error:
        return error.message.partition(" at ")[0]
    except sqlite3.Error:
        return "it cannot be read"
    return ""


def _role(name: str, roles: tuple[RoleReport, ...]) -> str:
    mine = [role for role in roles if role.role == name]
    if not mine:
        return "it does not run"
    if all(role.age_s > STALE_S for role in mine):
        return f"silent for {min(role.age_s for role in mine):.0f} s"
    return "" if any(role.state == "ready" for role in mine) else f"it is {mine[0].state}"


def _storage(node: WebNode, roles: tuple[RoleReport, ...]) -> Iterator[Check]:
    for disk in disks(node.config, node.layout):
        yield Check(f"disk {disk.what}", "free space or inodes are at the reserve" if disk.is_low else "")
    said = next((str(role.counters.get("storage", "ok")) for role in roles if role.role == "receive"), "ok")
    yield Check("storage", "" if said == "ok" and not marked(node.layout.run) else "the receiver does not trust it")


def health_routes(node: WebNode) -> list[BaseRoute]:
    """Return ``/livez`` and ``/readyz``, which anybody may ask."""

    async def livez(_: Request) -> JSONResponse:
        silent_s = time.monotonic() - node.live.ticked_at
        is_alive = silent_s < STALE_S
        return JSONResponse({"status": "ok" if is_alive else "silent"}, 200 if is_alive else 503)

    def readyz(_: Request) -> JSONResponse:
        failing = [check.name for check in checks(node) if check.found]
        return JSONResponse({"status": "failing" if failing else "ok", "failing": failing}, 503 if failing else 200)

    return [Route("/livez", livez), Route("/readyz", readyz)]
