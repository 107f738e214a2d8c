"""Read-only DICOMweb: QIDO-RS and WADO-RS over what the node holds and what it published (PS3.18 10).

Files are sent as they are kept and never decoded here: whatever needs a full parser or a decoder is done by the
openers. Everything longer than one frame is streamed.
"""

from __future__ import annotations

import functools
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ctnode.web import wado
from ctnode.web.attributes import Headers
from ctnode.web.context import WebNode
from ctnode.web.deeds import note_access
from ctnode.web.holdings import Holdings, Instance
from ctnode.web.media import ANYTHING, Media, Multipart, Part, accepted, covers
from ctnode.web.openers import Openers, Unrenderable
from ctnode.web.qido import BadQuery, Found, Level, Search, parse_query
from ctnode.words import Unavailable

DICOM: Final = "application/dicom"
JSON: Final = "application/dicom+json"
OCTETS: Final = "application/octet-stream"
# Pictures and headers of patients are not to lie in a cache.
PRIVATE: Final = {"Cache-Control": "no-store"}

_Handler = Callable[[Request], Response]


def dicomweb_routes(node: WebNode) -> list[Route]:
    """Return the routes below the root of the service."""
    service = _Service(node)
    study, series = "/studies/{study}", "/studies/{study}/series/{series}"
    instance = f"{series}/instances/{{instance}}"
    routes: list[tuple[str, _Handler]] = [
        ("/studies", functools.partial(service.search, level="studies")),
        ("/series", functools.partial(service.search, level="series")),
        ("/instances", functools.partial(service.search, level="instances")),
        (f"{study}/series", functools.partial(service.search, level="series")),
        (f"{study}/instances", functools.partial(service.search, level="instances")),
        (f"{series}/instances", functools.partial(service.search, level="instances")),
        *((f"{level}/metadata", service.metadata) for level in (study, series, instance)),
        *((level, service.retrieve) for level in (study, series, instance)),
        *((f"{level}/thumbnail", service.thumbnail) for level in (study, series, instance)),
        (f"{instance}/rendered", service.rendered),
        (f"{instance}/frames/{{frames}}", service.frames),
        (f"{instance}/frames/{{frames}}/rendered", service.rendered),
        (f"{instance}/frames/{{frames}}/thumbnail", service.thumbnail),
        (f"{instance}/bulkdata/{{tag}}", service.bulk_data),
    ]
    return [Route(path, _answering(handler), methods=["GET"]) for path, handler in routes]


def _answering(handler: _Handler) -> _Handler:
    """Let a handler raise: each error becomes JSON with its status."""

    def endpoint(request: Request) -> Response:
        try:
            return handler(request)
        except BadQuery as error:
            return fault(400, str(error))
        except Unrenderable as error:
            return fault(error.status, error.why)
        except (Unavailable, sqlite3.OperationalError):
            return fault(503, "the index cannot be read now; try again")
        except FileNotFoundError:
            return fault(404, "the file of the object is gone")

    return endpoint


def fault(status: int, why: str) -> JSONResponse:
    """Return an error of the service."""
    headers = dict(PRIVATE) | ({"Retry-After": "5"} if status == 503 else {})
    return JSONResponse({"error": why}, status, headers)


class _Service:
    """What the handlers share."""

    def __init__(self, node: WebNode) -> None:
        self._node = node
        self._headers = Headers()
        self._openers = Openers(node.config.worker)

    def search(self, request: Request, *, level: Level) -> Response:
        """QIDO-RS."""
        if not any(covers(media, JSON) or covers(media, "application/json") for media in _wanted(request)):
            return fault(406, f"searches are answered as {JSON}")
        pairs = [(name, text) for name, text in request.query_params.multi_items() if name != "accept"]
        query = parse_query(pairs, level)
        study, series = request.path_params.get("study", ""), request.path_params.get("series", "")
        with self._node.open_database() as database:
            search = Search(Holdings(database, self._node.layout), self._headers, query, _base_url(request))
            if level == "studies":
                found: Found = search.studies()
            else:
                found = search.series(study) if level == "series" else search.instances(study, series)
        headers = dict(PRIVATE)
        if found.warnings:
            headers["Warning"] = ", ".join(f'299 ctnode "{text}"' for text in found.warnings)
        return Response(json.dumps(found.hits, allow_nan=False), media_type=JSON, headers=headers)

    def metadata(self, request: Request) -> Response:
        """WADO-RS metadata, instance by instance."""
        if not any(covers(media, JSON) or covers(media, "application/json") for media in _wanted(request)):
            return fault(406, f"metadata are sent as {JSON}")
        instances = self._named(request)
        base = _base_url(request)

        def body() -> Iterator[bytes]:
            before = b"["
            for instance in instances:
                yield before + wado.metadata_of(self._openers, instance, base)
                before = b",\n"
            yield b"]"

        return StreamingResponse(body(), media_type=JSON, headers=PRIVATE)

    def retrieve(self, request: Request) -> Response:
        """WADO-RS instances as they are kept, of a study, a series, or one."""
        instances = self._named(request)
        wanted = [media for media in _wanted(request) if covers(media, DICOM)]
        if not wanted:
            return fault(406, f'instances are sent as multipart/related; type="{DICOM}"')
        chosen, syntaxes = wado.in_wanted_syntax(instances, wanted)
        if not chosen:
            return fault(406, f"the objects are kept in {', '.join(syntaxes)}, and none of it is accepted")
        headers = dict(PRIVATE)
        if len(chosen) < len(instances):
            headers["Warning"] = '299 ctnode "objects in other transfer syntaxes are left out"'
        if wanted[0].name == DICOM and "instance" in request.path_params:
            part = Part(DICOM, chosen[0].path)
            headers["Content-Length"] = str(part.size())
            return StreamingResponse(part.blocks(), media_type=DICOM, headers=headers)
        parts = (
            Part(f"{DICOM}; transfer-syntax={one.transfer_syntax}", one.path, location=_url(base, one))
            for base in (_base_url(request),)
            for one in chosen
        )
        multipart = Multipart(parts, DICOM)
        status = 206 if len(chosen) < len(instances) else 200
        return StreamingResponse(iter(multipart), status, headers | {"Content-Type": multipart.content_type})

    def frames(self, request: Request) -> Response:
        """WADO-RS frames, as stored where that is accepted, else decoded."""
        (instance,) = self._named(request)
        numbers = wado.frame_numbers(request.path_params["frames"])
        choice = wado.choose_frames(instance.transfer_syntax, _wanted(request), single=len(numbers) == 1)
        if choice is None:
            return fault(406, f"frames are sent as {OCTETS}, or as stored in {instance.transfer_syntax}")
        parts = (wado.frame_part(self._openers, instance, number, choice) for number in numbers)
        # The first one tells whether there are any, while the status can still say so.
        first = next(parts)
        if choice.is_single:
            return StreamingResponse(
                first.blocks(),
                headers=PRIVATE
                | {
                    "Content-Type": first.content_type,
                    "Content-Length": str(first.size()),
                },
            )
        multipart = Multipart(itertools.chain((first,), parts), choice.media_type)
        return StreamingResponse(iter(multipart), headers=PRIVATE | {"Content-Type": multipart.content_type})

    def bulk_data(self, request: Request) -> Response:
        """WADO-RS bulk data."""
        (instance,) = self._named(request)
        wanted = [media for media in _wanted(request) if covers(media, OCTETS)]
        if not wanted:
            return fault(406, f"bulk data are sent as {OCTETS}")
        tag = request.path_params["tag"].upper()
        if len(tag) != 8 or any(digit not in "0123456789ABCDEF" for digit in tag):
            return fault(404, "bulk data are named by their tag")
        answer = self._openers.ask(do="bulk", path=str(instance.path), tag=tag)
        part = wado.part_of(answer, instance, OCTETS)
        if wanted[0].name == OCTETS:
            return StreamingResponse(part.blocks(), media_type=OCTETS, headers=PRIVATE)
        multipart = Multipart((part,), OCTETS)
        return StreamingResponse(iter(multipart), headers=PRIVATE | {"Content-Type": multipart.content_type})

    def rendered(self, request: Request) -> Response:
        """WADO-RS one frame as a picture."""
        (instance,) = self._named(request)
        return self._picture(request, instance)

    def thumbnail(self, request: Request) -> Response:
        """WADO-RS thumbnail: the middle instance of what is named, small."""
        instances = self._named(request)
        return self._picture(request, instances[len(instances) // 2], viewport="128,128")

    def _picture(self, request: Request, instance: Instance, *, viewport: str = "") -> Response:
        kind = wado.picture_type(_wanted(request))
        if kind is None:
            return fault(406, "pictures are sent as image/jpeg or image/png")
        number = wado.frame_numbers(request.path_params.get("frames", "1"))
        if len(number) != 1:
            return fault(400, "one frame makes one picture")
        look = wado.look_of(request.query_params, viewport)
        answer = self._openers.ask(
            do="rendered", path=str(instance.path), index=number[0] - 1, format=kind.removeprefix("image/").upper(),
            window=look.window, viewport=look.viewport, quality=look.quality,
        )  # fmt: skip
        return Response(answer.content, media_type=kind, headers=PRIVATE)

    def _named(self, request: Request) -> list[Instance]:
        """Return the instances that the path names.

        Raises
        ------
        Unrenderable
            404 if there are none.
        """
        study, series, one = (request.path_params.get(name, "") for name in ("study", "series", "instance"))
        with self._node.open_database() as database:
            found = wado.named(Holdings(database, self._node.layout), study, series, one)
        if not found:
            raise Unrenderable(404, "there is no such object")
        note_access(self._node, request, "DICOMweb", study, (instance.series for instance in found))
        return found


def _wanted(request: Request) -> list[Media]:
    """Return what is accepted: by the query parameter (PS3.18 8.3.3.1), else by the header."""
    text = request.query_params.get("accept") or request.headers.get("accept", "")
    return accepted(text) if text else [ANYTHING]


def _base_url(request: Request) -> str:
    url = request.url
    server = request.scope.get("server")
    netloc = url.netloc
    if server and url.port is None and url.hostname == server[0] and server[1] not in (None, 80, 443):
        # dicomweb-client leaves the port out of its Host header.
        netloc = f"{netloc}:{server[1]}"
    return f"{url.scheme}://{netloc}{request.scope.get('root_path', '')}"


def _url(base: str, one: Instance) -> str:
    study, series, sop_instance = (quote(part, safe="~") for part in (one.study, one.series, one.sop_instance))
    return f"{base}/studies/{study}/series/{series}/instances/{sop_instance}"
