"""The viewer: three planes of a published volume with its lungs, drawn by the browser from exact values.

The page gets planes of HU as they stand in the NIfTI of the results folder, and windows them itself by the formula of
PS3.3 C.11.2.1.2; nothing is decoded here, and nothing of DICOM is opened.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from isal import igzip
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ctnode.archive import catalog, findings
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout, parse_series_name
from ctnode.ct.window import PRESETS
from ctnode.results.canvas import COLOURS, NAMES
from ctnode.web.context import WebNode
from ctnode.web.cors import DICOMWEB
from ctnode.web.volumes import PLANES, Geometry, NoVolume, Volumes
from ctnode.words import NotFound

PRIVATE: Final = {"Cache-Control": "no-store"}
_NAME: Final = re.compile(r"(ct|ct_iso|lungs|lungs_iso)(_[1-9][0-9]?)?")
_VOLUME: Final = re.compile(r"ct(_[1-9][0-9]?)?\.nii\.gz")


@dataclass(frozen=True, slots=True)
class Shown:
    """One revision of a series that has something to show."""

    series: catalog.Series
    revision: int
    folder: Path
    findings: tuple[findings.Finding, ...]


def viewer_routes(node: WebNode) -> list[Route]:
    """Return the routes below the root of the viewer: ``/STUDY/SERIES`` or ``/ID`` is the page of a series."""
    viewer = _Viewer(node)
    return [
        Route("/{series_id:int}", viewer.page_of_row, methods=["GET"]),
        Route("/{study}/{series}", viewer.page, methods=["GET"]),
        Route("/{study}/{series}/r{revision:int}/{name}", viewer.geometry, methods=["GET"]),
        Route("/{study}/{series}/r{revision:int}/{name}/{plane}/{index:int}", viewer.plane, methods=["GET"]),
    ]


def _fault(status: int, why: str) -> JSONResponse:
    return JSONResponse({"error": why}, status, dict(PRIVATE))


class _Viewer:
    """What the handlers share."""

    def __init__(self, node: WebNode) -> None:
        self._node = node
        self._volumes = Volumes(node.layout.run, reserve_bytes=node.config.storage.reserve_mb << 20)
        environment = Environment(loader=PackageLoader("ctnode.web"), autoescape=True, undefined=StrictUndefined)
        self._template = environment.get_template("viewer.html")

    def page(self, request: Request) -> Response:
        """Return the page of a series by its name; its volume begins to unpack while the browser reads it."""
        with self._node.open_database() as database:
            series = catalog.find(database, request.path_params["series"], study=request.path_params["study"])
            return self._page(request, self._shown(database, series, _asked_revision(request)))

    def page_of_row(self, request: Request) -> Response:
        """Return the page of a series by its row in the index."""
        with self._node.open_database() as database:
            series = catalog.by_id(database, request.path_params["series_id"])
            return self._page(request, self._shown(database, series, _asked_revision(request)))

    def _page(self, request: Request, shown: Shown) -> Response:
        about = self._about(shown)
        text = self._template.render(
            series=shown.series,
            revision=shown.revision,
            findings=shown.findings,
            about=json.dumps(about),
            has_volume=bool(about["volumes"]),
            presets=list(enumerate(PRESETS.values(), 1)),
            labels=[{"key": key, "name": NAMES[key]} for key in COLOURS],
            root=request.scope.get("root_path", ""),
        )
        return HTMLResponse(text, headers=dict(PRIVATE))

    def geometry(self, request: Request) -> Response:
        """Return where the voxels of a volume lie, and how its planes are asked for."""
        try:
            geometry = self._volumes.open(self._path(request)).geometry
        except NoVolume as error:
            return _fault(404, str(error))
        return JSONResponse(_as_json(geometry), headers=dict(PRIVATE))

    def plane(self, request: Request) -> Response:
        """Return the values of a plane, row by row, little endian, in the type that the geometry names."""
        plane = request.path_params["plane"]
        if plane not in PLANES:
            return _fault(404, "planes are axial, coronal or sagittal")
        try:
            values = self._volumes.open(self._path(request)).plane(plane, request.path_params["index"])
        except NoVolume as error:
            return _fault(404, str(error))
        content, headers = values.tobytes(), dict(PRIVATE)
        # A mask is nearly all one value; CT is noise, which takes longer to pack than to send.
        if values.dtype.itemsize == 1 and "gzip" in request.headers.get("accept-encoding", ""):
            content, headers["Content-Encoding"] = igzip.compress(content, 1), "gzip"
        return Response(content, media_type="application/octet-stream", headers=headers)

    def _path(self, request: Request) -> Path:
        """Return the file that a path names, without asking the index: planes come many times a second."""
        study, series, name = (request.path_params[key] for key in ("study", "series", "name"))
        if not _NAME.fullmatch(name):
            raise NoVolume("there is no such volume")
        return _folder(self._node.layout, study, series, request.path_params["revision"]) / f"{name}.nii.gz"

    def _shown(self, database: Database, series: catalog.Series, revision: int | None) -> Shown:
        """Return the revision that is asked for, else the newest with a published folder."""
        rows = database.rows("SELECT id, n FROM revisions WHERE series_id = ? ORDER BY n DESC", (series.id,))
        for row in rows:
            folder = _folder(self._node.layout, series.study, series.name, row["n"])
            if row["n"] == revision or (revision is None and folder.is_dir()):
                return Shown(series, row["n"], folder, findings.of_revision(database, row["id"]))
        if revision is not None:
            raise NotFound(f"series {series.name} has no revision {revision}")
        return Shown(series, series.revision, Path(), ())

    def _about(self, shown: Shown) -> dict[str, Any]:
        """Return what the script has to know: the volumes with their grids, the presets, names and colours of labels.

        The first grid comes with its geometry, which makes it unpack while the browser still reads the page.
        """
        names = frozenset(path.name for path in shown.folder.glob("*.nii.gz")) if shown.folder.name else frozenset()
        endings = sorted((found[1] or "" for name in names if (found := _VOLUME.fullmatch(name))), key=_number)
        volumes = [{"number": _number(ending), "grids": _grids(names, ending)} for ending in endings]
        geometry = None
        if endings:
            try:
                geometry = _as_json(self._volumes.open(shown.folder / f"ct{endings[0]}.nii.gz").geometry)
            except NoVolume:
                volumes = []
        study, name = quote(shown.series.study, safe=""), quote(shown.series.name, safe="~")
        return {
            "base": f"{study}/{name}/r{shown.revision}",
            "originals": f"{DICOMWEB}/studies/{study}/series/{name}",
            "volumes": volumes,
            "geometry": geometry,
            "presets": [{"name": one.name, "center": one.center_hu, "width": one.width_hu} for one in PRESETS.values()],
            "labels": {str(key): {"name": NAMES[key], "colour": COLOURS[key]} for key in COLOURS},
        }


def _number(ending: str) -> int:
    return int(ending[1:] or 1)


def _grids(names: frozenset[str], ending: str) -> list[dict[str, str]]:
    """Return the grids of a volume: the names of its CT and of its lungs, where it has any."""
    return [
        {
            "name": words,
            "ct": f"ct{grid}{ending}",
            "lungs": f"lungs{grid}{ending}" if f"lungs{grid}{ending}.nii.gz" in names else "",
        }
        for grid, words in (("", "as scanned"), ("_iso", "resampled"))
        if f"ct{grid}{ending}.nii.gz" in names
    ]


def _asked_revision(request: Request) -> int | None:
    asked = request.query_params.get("revision", "")
    if asked and not (asked.isascii() and asked.isdigit() and len(asked) < 10):
        raise HTTPException(400, "a revision is a number")
    return int(asked) if asked else None


def _folder(layout: Layout, study: str, name: str, revision: int) -> Path:
    uid, split = parse_series_name(name)
    return layout.result_directory(study, uid, split, revision)


def _as_json(geometry: Geometry) -> dict[str, Any]:
    return {
        "shape": geometry.shape,
        "matrix": geometry.matrix,
        "spacing": geometry.spacing_mm,
        "tilt": round(geometry.tilt_deg, 2),
        "type": geometry.dtype.name,
    }
