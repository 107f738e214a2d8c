"""What an operator looks at: now, series, one series, deliveries, associations, what needs somebody."""

from __future__ import annotations

import time
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from ctnode.archive import associations, browse, catalog, jobs, outbox, rejections, revisions
from ctnode.archive.browse import Filter
from ctnode.archive.trouble import trouble
from ctnode.flow.why import why
from ctnode.web import results
from ctnode.web.context import WebNode
from ctnode.web.deeds import note_access
from ctnode.web.health import checks
from ctnode.web.overview import overview
from ctnode.web.rendering import Renderer
from ctnode.words import DeliveryState, RevisionState, Verdict

LIST_LIMIT: Final = 100
REFUSALS_SHOWN: Final = 20
DAY_S: Final = 86400.0


def filter_of(request: Request) -> Filter:
    """Return what a list is asked for; unknown states and verdicts fit nothing and are dropped."""
    asked = request.query_params
    state, verdict = asked.get("state", ""), asked.get("verdict", "")
    flag = asked.get("flag", "")
    return Filter(
        text=asked.get("q", "").strip()[:80],
        state=state if state in set(RevisionState) else "",
        verdict=verdict if verdict in set(Verdict) else "",
        modality=asked.get("modality", "").strip().upper()[:16],
        flag=flag if flag in {"held", "flagged"} else "",
    )


def key_of(request: Request, name: str, default: int) -> int:
    """Return a key of a list out of the address; anything else is the default."""
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else default


def page_routes(node: WebNode, renderer: Renderer) -> list[BaseRoute]:
    """Return the pages."""

    def now(request: Request) -> Response:
        with node.open_database() as database:
            seen = overview(node.config, node.layout, database)
            latest = browse.series(database, Filter(), limit=8)
        return renderer.page(request, "now.html", now=seen, rates=node.live.rates(), latest=latest.lines)

    def series_list(request: Request) -> Response:
        wanted = filter_of(request)
        with node.open_database() as database:
            page = browse.series(database, wanted, before=key_of(request, "before", browse.NEWEST))
            counters = database.counters()
        return renderer.page(
            request, "series_list.html", page=page, wanted=wanted, counters=counters, states=list(RevisionState),
            verdicts=list(Verdict),
        )  # fmt: skip

    def one_series(request: Request) -> Response:
        with node.open_database() as database:
            told = why(database, node.layout, catalog.by_id(database, request.path_params["series_id"]))
            attempts = {
                one.id: outbox.attempts(database, one.id)
                for chapter in told.chapters[-1:]
                for one in chapter.deliveries[:LIST_LIMIT]
                if one.attempt
            }
        folders = {chapter.n: results.folder_of(node.layout, told.series, chapter.n) for chapter in told.chapters}
        files = {n: results.listed(folder) for n, folder in folders.items()}
        parent = folders[told.series.revision].parent.relative_to(node.layout.results)
        return renderer.page(
            request, "series.html", told=told, prefix=f"{parent}/r", series=told.series, attempts=attempts, files=files,
            pictures={n: results.pictures(found) for n, found in files.items()},
            measured={n: results.measured(folders[n], found) for n, found in files.items()},
            descriptions=results.descriptions(folders[told.series.revision]), columns=results.SHOWN,
        )  # fmt: skip

    def result(request: Request) -> Response:
        with node.open_database() as database:
            record = catalog.by_id(database, request.path_params["series_id"])
        return result_file(node, request, record)

    def deliveries(request: Request) -> Response:
        asked = request.query_params
        target = asked.get("to", "")[:64] or None
        state = asked.get("state", "") if asked.get("state", "") in set(DeliveryState) else None
        after = key_of(request, "after", 0)
        with node.open_database() as database:
            seen = overview(node.config, node.layout, database)
            found = outbox.listed(database, target=target, state=state, after=after, limit=LIST_LIMIT)
        peers = [peer.name for peer in node.config.peers if peer.port is not None]
        return renderer.page(
            request, "deliveries.html", now=seen, found=found, target=target or "", state=state or "",
            states=list(DeliveryState), next=found[-1].id if len(found) == LIST_LIMIT else None, peers=peers,
        )  # fmt: skip

    def job_list(request: Request) -> Response:
        with node.open_database() as database:
            found = jobs.listing(database, limit=LIST_LIMIT)
            counters = database.counters()
        return renderer.page(request, "jobs.html", found=found, counters=counters)

    def association_list(request: Request) -> Response:
        calling = request.query_params.get("ae", "").strip()[:16] or None
        with node.open_database() as database:
            found = associations.listing(database, calling_ae=calling, since=0.0, limit=LIST_LIMIT)
        return renderer.page(request, "associations.html", found=found, calling=calling or "", rates=node.live.rates())

    def association(request: Request) -> Response:
        with node.open_database() as database:
            row = associations.show(database, request.path_params["name"])
            fed = [(catalog.find(database, one["series"], study=one["study"]).id, one) for one in row["series"][:200]]
        return renderer.page(
            request, "association.html", row=row, fed=fed, contexts=list(dict.fromkeys(map(tuple, row["accepted"])))
        )

    def problems(request: Request) -> Response:
        with node.open_database() as database:
            found = trouble(database)
            seen = overview(node.config, node.layout, database)
            series_of = {one.id: revisions.get(database, one.revision_id).series_id for one in found.dead_deliveries}
        since = time.time() - 7 * DAY_S
        turned_away = [one for one in rejections.read(node.layout.rejections) if one.at >= since]
        return renderer.page(
            request, "problems.html", found=found, now=seen, failing=[one for one in checks(node) if one.found],
            turned_away=turned_away[: -REFUSALS_SHOWN - 1 : -1], series_of=series_of,
        )  # fmt: skip

    def upload(request: Request) -> Response:
        return renderer.page(request, "upload.html", limit_mb=node.config.web.max_upload_mb, taken=None)

    return [
        Route("/", now),
        Route("/series", series_list),
        Route("/series/{series_id:int}", one_series),
        Route("/series/{series_id:int}/r{revision:int}/{name}", result),
        Route("/deliveries", deliveries),
        Route("/jobs", job_list),
        Route("/associations", association_list),
        Route("/associations/{name}", association),
        Route("/problems", problems),
        Route("/upload", upload),
    ]


def result_file(node: WebNode, request: Request, record: catalog.Series) -> Response:
    """Return the published file of the path: pictures to look at, everything else to keep; browsers store none of it.

    Raises
    ------
    NotFound
        If there is none of this name.
    """
    revision, name = request.path_params["revision"], request.path_params["name"]
    path = results.file_of(results.folder_of(node.layout, record, revision), name)
    note_access(node, request, "results", record.study, [record.uid])
    media = results.MEDIA.get(path.suffix, results.OTHER)
    kind = "inline" if path.suffix == ".png" else "attachment"
    headers = {"content-security-policy": "default-src 'none'; sandbox", "cache-control": "no-store"}
    return FileResponse(path, media_type=media, filename=name, content_disposition_type=kind, headers=headers)
