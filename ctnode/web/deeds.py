"""What can be done from page and API: the same functions as the commands call, each with the name of who asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from starlette.requests import Request

from ctnode.archive import catalog, outbox
from ctnode.archive.database import Database
from ctnode.flow import operating
from ctnode.flow.operating import Operator
from ctnode.ops import audit
from ctnode.web.context import WebNode
from ctnode.web.guard import Principal, principal_of
from ctnode.wire.sender import EchoResult

REASON_LIMIT: Final = 200

_Deed = Callable[[Database, int, Operator, str], str]


def _requeue(database: Database, number: int, by: Operator, _reason: str) -> str:
    return f"revision {operating.requeue(database, number, by).n} is queued"


def _hold(database: Database, number: int, by: Operator, reason: str) -> str:
    return f"revision {operating.hold(database, number, reason, by).n} is held"


def _release(database: Database, number: int, by: Operator, _reason: str) -> str:
    return f"revision {operating.release(database, number, by).n} is no longer held"


def _complete(database: Database, number: int, by: Operator, _reason: str) -> str:
    return f"revision {operating.complete(database, number, by).n} waits no longer"


def _acknowledge(database: Database, number: int, by: Operator, reason: str) -> str:
    return f"revision {operating.acknowledge(database, number, reason, by).n} is acknowledged"


def _retry_job(database: Database, number: int, by: Operator, _reason: str) -> str:
    return f"job {number}: revision {operating.retry_job(database, number, by).n} is queued"


def _cancel_job(database: Database, number: int, by: Operator, _reason: str) -> str:
    operating.cancel_job(database, number, by)
    return f"job {number} is cancelled"


def _retry_delivery(database: Database, number: int, by: Operator, _reason: str) -> str:
    delivery = outbox.get(database, number)
    with database.immediate():
        operating.retry_delivery(database, delivery, by)
    operating.note_deliveries(by, "tried again", [number])
    return f"delivery {number} is tried again"


def _cancel_delivery(database: Database, number: int, by: Operator, _reason: str) -> str:
    delivery = outbox.get(database, number)
    with database.immediate():
        operating.cancel_delivery(database, delivery, by)
    operating.note_deliveries(by, "cancelled", [number])
    return f"delivery {number} is cancelled"


# What is acted on, and the verbs for it; each verb is a command as well.
DEEDS: Final[Mapping[str, Mapping[str, _Deed]]] = {
    "series": {
        "requeue": _requeue, "hold": _hold, "release": _release, "complete": _complete, "acknowledge": _acknowledge,
    },
    "jobs": {"retry": _retry_job, "cancel": _cancel_job},
    "deliveries": {"retry": _retry_delivery, "cancel": _cancel_delivery},
}  # fmt: skip
# Those that take a reason.
REASONED: Final = frozenset({"hold", "acknowledge"})


def do(node: WebNode, kind: str, verb: str, number: int, who: Principal, reason: str = "") -> str:
    """Carry out one deed and return what became of it.

    Raises
    ------
    NotFound, WrongState
        If there is no such object, or its state does not allow it.
    """
    by = operating.by_page(node.config, who.name)
    with node.open_for_writing() as database:
        words = DEEDS[kind][verb](database, number, by, reason.strip()[:REASON_LIMIT])
        uid = catalog.by_id(database, number).uid if kind == "series" else ""
    node.log.info("operator acted", what=f"{kind} {verb}", reason=who.name, **_named(kind, number, uid))
    return words


def _named(kind: str, number: int, uid: str) -> dict[str, str | int]:
    """Return by what the log names what was acted on."""
    return {"series": uid} if kind == "series" else {"job" if kind == "jobs" else "delivery": number}


def ask(node: WebNode, name: str, who: Principal) -> EchoResult:
    """Ask a peer or target whether it is there.

    Raises
    ------
    NotFound
        If none has this name.
    """
    result = operating.neighbour(node.config, name)()
    _note(node, audit.Record(audit.Event.APPLICATION_ACTIVITY, audit.Action.EXECUTE, who.name, "echo", target=name))
    node.log.info("operator acted", what="echo", target=name, reason=who.name)
    return result


def note_upload(node: WebNode, instances: int, who: Principal) -> None:
    """Write down who brought how many instances."""
    event, action = audit.Event.IMPORT, audit.Action.CREATE
    _note(node, audit.Record(event, action, who.name, "upload", instances=instances))
    node.log.info("operator acted", what="upload", instances=instances, reason=who.name)


def note_access(node: WebNode, request: Request, what: str, study: str, series: Iterable[str]) -> None:
    """Write down who was handed what of which series: once an hour, since a viewer asks for each picture."""
    who = principal_of(request)
    name = who.name if who is not None else "unknown"
    fresh = tuple(uid for uid in dict.fromkeys(series) if node.sessions.is_news(name, what, study, uid))
    if fresh:
        event, action = audit.Event.INSTANCES_ACCESSED, audit.Action.READ
        _note(node, audit.Record(event, action, name, what, studies=(study,), series=fresh))


def note_login(node: WebNode, name: str, address: str) -> None:
    """Write a login into the audit trail, or with an empty name one that failed: what was typed is not repeated."""
    outcome = audit.Outcome.SUCCESS if name else audit.Outcome.MINOR_FAILURE
    event, action = audit.Event.USER_AUTHENTICATION, audit.Action.EXECUTE
    _note(node, audit.Record(event, action, name or "unknown", "login", outcome, source=address))


def _note(node: WebNode, record: audit.Record) -> None:
    audit.note(node.layout.root, record, enabled=node.config.audit.enabled)
