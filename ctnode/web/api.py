"""The same for programs: ``/api/v1`` in JSON, described by ``/api/v1/openapi.json``."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, fields
from functools import cache
from typing import Any, Final, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ctnode.archive import associations, browse, catalog, jobs, outbox
from ctnode.archive.browse import Listed
from ctnode.archive.timeline import iso
from ctnode.archive.trouble import Trouble, trouble
from ctnode.flow.why import as_times, is_time, why, why_as_json
from ctnode.web import results
from ctnode.web.context import WebNode
from ctnode.web.deeds import DEEDS, REASON_LIMIT, REASONED, ask, do, note_upload
from ctnode.web.guard import Principal, principal_of
from ctnode.web.live import Rates
from ctnode.web.openapi import Call, Parameter, describe, items, record
from ctnode.web.overview import Overview, overview
from ctnode.web.pages import filter_of, key_of, result_file
from ctnode.web.results import Result
from ctnode.web.upload import UPLOAD_PATH, Uploaded, Uploads
from ctnode.wire.sender import EchoResult
from ctnode.words import DeliveryState, JobState, RevisionState, Verdict

_Word = TypeVar("_Word")

ROOT: Final = "/api/v1"
LIMIT: Final = 500
_LIMIT: Final = Parameter("limit", f"at most so many, {browse.PAGE} if none is given", "integer", least=1, most=LIMIT)
_TEXT: Final = {"type": "string"}
_NEXT: Final = {"anyOf": [{"type": "integer"}, {"type": "null"}], "description": "the key of the next page"}
_WORDS: Final = {"type": "object", "required": ["done"], "properties": {"done": _TEXT}}


def api_routes(node: WebNode) -> list[BaseRoute]:
    """Return the API with its description."""
    calls = [*_reading(node), *_acting(node)]
    description = describe(calls)

    async def openapi(_: Request) -> JSONResponse:
        return JSONResponse(description)

    return [
        *(Route(call.path, _as_described(call), methods=[call.method]) for call in calls),
        Route(f"{ROOT}/openapi.json", openapi),
    ]


def _as_described(call: Call) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler behind a check of what is asked for."""

    async def handle(request: Request) -> Response:
        call.require(request.query_params)
        if inspect.iscoroutinefunction(call.handler):
            answer = await call.handler(request)
        else:
            answer = await run_in_threadpool(call.handler, request)
        assert isinstance(answer, Response)
        return answer

    return handle


def _many(request: Request) -> int:
    return key_of(request, "limit", browse.PAGE)


def _one_of(request: Request, words: Callable[[str], _Word]) -> _Word | None:
    text = request.query_params.get("state", "")
    return words(text) if text else None


def _reading(node: WebNode) -> list[Call]:
    """Return what a program can ask."""

    def now(_: Request) -> JSONResponse:
        with node.open_database() as database:
            seen = overview(node.config, node.layout, database)
        return JSONResponse({**_plain(seen), "rates": asdict(node.live.rates())})

    def series(request: Request) -> JSONResponse:
        with node.open_database() as database:
            page = browse.series(
                database, filter_of(request), before=key_of(request, "before", browse.NEWEST), limit=_many(request)
            )
        return JSONResponse({"items": [_plain(line) for line in page.lines], "before": page.before})

    def one(request: Request) -> JSONResponse:
        with node.open_database() as database:
            told = why(database, node.layout, catalog.by_id(database, request.path_params["series_id"]))
        return JSONResponse({"id": told.series.id, **why_as_json(told)})

    def files(request: Request) -> JSONResponse:
        with node.open_database() as database:
            record_ = catalog.by_id(database, request.path_params["series_id"])
        found = results.listed(results.folder_of(node.layout, record_, request.path_params["revision"]))
        return JSONResponse({"items": [asdict(one) for one in found]})

    def file(request: Request) -> Response:
        with node.open_database() as database:
            record_ = catalog.by_id(database, request.path_params["series_id"])
        return result_file(node, request, record_)

    def job_list(request: Request) -> JSONResponse:
        state = _one_of(request, JobState)
        with node.open_database() as database:
            found = jobs.listing(database, state=state, limit=_many(request))
        return JSONResponse({"items": [_plain(job) for job in found]})

    def deliveries(request: Request) -> JSONResponse:
        state = _one_of(request, DeliveryState)
        target, after, many = request.query_params.get("to") or None, key_of(request, "after", 0), _many(request)
        with node.open_database() as database:
            found = outbox.listed(database, target=target, state=state, after=after, limit=many)
        following = found[-1].id if len(found) == many else None
        return JSONResponse({"items": [_plain(delivery) for delivery in found], "after": following})

    def association_list(request: Request) -> JSONResponse:
        calling = request.query_params.get("ae") or None
        with node.open_database() as database:
            found = associations.listing(database, calling_ae=calling, since=0.0, limit=_many(request))
        return JSONResponse({"items": [as_times(row) for row in found]})

    def association(request: Request) -> JSONResponse:
        with node.open_database() as database:
            return JSONResponse(as_times(associations.show(database, request.path_params["name"])))

    def problems(_: Request) -> JSONResponse:
        with node.open_database() as database:
            return JSONResponse(_plain(trouble(database)))

    before = Parameter("before", "only series under this key", "integer")
    after = Parameter("after", "only deliveries over this number", "integer")
    association_record = {"type": "object", "required": ["association", "calling_ae", "peer_address", "series"]}
    life = {"type": "object", "required": ["id", "study", "series", "associations", "evidence", "revisions"]}
    return [
        Call("GET", f"{ROOT}/now", "What happens now.", now, record(Overview, more={"rates": record(Rates)})),
        Call(
            "GET", f"{ROOT}/series", "Series, the newest first, page by page.", series,
            items(record(Listed), more={"before": _NEXT}),
            (
                Parameter("q", "a UID or its beginning, an AE title, or the name of a peer"),
                Parameter("state", "only this state", words=tuple(map(str, RevisionState))),
                Parameter("verdict", "only this verdict", words=tuple(map(str, Verdict))),
                Parameter("modality", "only this modality"),
                Parameter("flag", "only what is held or flagged", words=("held", "flagged")),
                before, _LIMIT,
            ),
        ),
        Call("GET", f"{ROOT}/series/{{series_id:int}}", "The whole life of a series.", one, life),
        Call(
            "GET", f"{ROOT}/series/{{series_id:int}}/results/{{revision:int}}", "The published files of a revision.",
            files, items(record(Result)),
        ),
        Call(
            "GET", f"{ROOT}/series/{{series_id:int}}/results/{{revision:int}}/{{name}}", "One published file.", file,
            (*results.MEDIA.values(), results.OTHER),
        ),
        Call(
            "GET", f"{ROOT}/jobs", "Jobs, the newest first.", job_list, items(record(jobs.Job)),
            (Parameter("state", "only this state", words=tuple(map(str, JobState))), _LIMIT),
        ),
        Call(
            "GET", f"{ROOT}/deliveries", "What is owed to destinations, the oldest first.", deliveries,
            items(record(outbox.Delivery), more={"after": _NEXT}),
            (
                Parameter("to", "only for this target"),
                Parameter("state", "only this state", words=tuple(map(str, DeliveryState))), after, _LIMIT,
            ),
        ),
        Call(
            "GET", f"{ROOT}/associations", "Associations, the newest first.", association_list,
            items(association_record), (Parameter("ae", "only of this calling AE title"), _LIMIT),
        ),
        Call(
            "GET", f"{ROOT}/associations/{{name}}", "One association with its contexts.", association,
            association_record,
        ),
        Call("GET", f"{ROOT}/problems", "What will not get better by itself.", problems, record(Trouble)),
    ]  # fmt: skip


def _acting(node: WebNode) -> list[Call]:
    """Return what a program can do; each needs the role operate."""
    uploads = Uploads(node)

    def deed(kind: str, verb: str) -> Call:
        async def act(request: Request) -> JSONResponse:
            reason = await _reason(request) if verb in REASONED else ""
            number = request.path_params["number"]
            return JSONResponse({"done": await asyncio.to_thread(do, node, kind, verb, number, _who(request), reason)})

        body = {"type": "object", "properties": {"reason": {"type": "string", "maxLength": REASON_LIMIT}}}
        meaning = f"{verb.capitalize()}: as the command `ctnode {kind} {verb}`."
        return Call(
            "POST", f"{ROOT}/{kind}/{{number:int}}/{verb}", meaning, act, _WORDS,
            body=body if verb in REASONED else None, refusals=(409,),
        )  # fmt: skip

    def echo(request: Request) -> JSONResponse:
        return JSONResponse(asdict(ask(node, request.path_params["name"], _who(request))))

    async def upload(request: Request) -> JSONResponse:
        taken = await uploads.take(request)
        await asyncio.to_thread(note_upload, node, taken.imported, _who(request))
        return JSONResponse(asdict(taken))

    return [
        *(deed(kind, verb) for kind, verbs in DEEDS.items() for verb in verbs),
        Call(
            "POST", f"{ROOT}/echo/{{name}}", "Ask a peer or target whether it is there.", echo, record(EchoResult)
        ),
        Call(
            "POST", UPLOAD_PATH, "One DICOM file or zip as the body, as if it had been sent.", upload, record(Uploaded),
            body="application/octet-stream", refusals=(507,),
        ),
    ]  # fmt: skip


def _who(request: Request) -> Principal:
    who = principal_of(request)
    assert who is not None, "the guard lets nobody through without a name"
    return who


async def _reason(request: Request) -> str:
    body = await request.body()
    if not body:
        return ""
    try:
        content = json.loads(body)
    except ValueError:
        raise HTTPException(400, "the body is no JSON") from None
    reason = content.get("reason", "") if isinstance(content, dict) else None
    if not isinstance(reason, str) or len(reason) > REASON_LIMIT:
        raise HTTPException(400, f"reason is no text of up to {REASON_LIMIT} characters")
    return reason


def _plain(record_: Any) -> dict[str, Any]:
    """Return a frozen record as JSON, its times and those of all in it as ISO 8601."""
    return {name: _ready(name, getattr(record_, name)) for name in _names_of(record_.__class__)}


@cache
def _names_of(kind: type) -> tuple[str, ...]:
    return tuple(one.name for one in fields(kind))


def _ready(name: str, value: Any) -> Any:
    if value is None or isinstance(value, float):
        # Counters of roles are no records of ours: there only numbers can be times.
        return iso(value) if is_time(name) else value
    if isinstance(value, str | int):
        return value
    if isinstance(value, list | tuple):
        return [_ready("", inner) for inner in value]
    if isinstance(value, Mapping):
        return {key: _ready(key, inner) for key, inner in value.items()}
    return _plain(value)
