"""What routes may ask about a series: its attributes, who sent it, what the verdict says, what the results say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.archive.revisions import Revision
from ctnode.archive.values import read_values
from ctnode.config import Route
from ctnode.config.when import Facts, Value, compile_when, names_of
from ctnode.config.when.names import MEASURES, SIDES, Named, look_up
from ctnode.words import BadInstance


def attributes_of(routes: Iterable[Route]) -> dict[str, Named]:
    """Return the DICOM attributes that routes ask for, by keyword."""
    words = {name.word for route in routes for one in route.conditions for name in names_of(compile_when(one))}
    known = {word: look_up(word) for word in sorted(words)}
    return {word: named for word, named in known.items() if isinstance(named, Named) and named.tag}


def of_file(path: Path, routes: Iterable[Route]) -> dict[str, tuple[Value, ...]]:
    """Return the attributes of one file that routes ask for; of a file that cannot be read, none."""
    wanted = attributes_of(routes)
    try:
        found = read_values(path, {named.tag: named.vr for named in wanted.values()}) if wanted else {}
    except (BadInstance, OSError):
        return {}
    return {word: found[named.tag] for word, named in wanted.items() if named.tag in found}


def of_series(
    database: Database,
    layout: Layout,
    revision: Revision,
    routes: Sequence[Route],
    reports: Sequence[Mapping[str, Any]] = (),
    measurements: Mapping[str, Any] | None = None,
) -> Facts:
    """Return the facts of a revision.

    The attributes are those of its first current image by InstanceNumber, localizers last; the sender is the one of
    the newest association that brought an instance.

    Parameters
    ----------
    database, layout, revision, routes
        What is asked about, and by whom.
    reports, measurements
        The lines of the pipeline for its volumes, and its ``measurements.json``; empty before it has run.
    """
    values: dict[str, tuple[Value, ...]] = {}
    row = database.execute(
        "SELECT path FROM instances WHERE series_id = ? AND is_current"
        " ORDER BY is_localizer, coalesce(instance_number, 1 << 40), id LIMIT 1",
        (revision.series_id,),
    ).fetchone()
    if row is not None:
        values.update(of_file(layout.store / row[0], routes))
    values.update(_from_index(database, revision))
    values.update(of_results(reports, measurements or {}))
    return Facts(values)


def _from_index(database: Database, revision: Revision) -> dict[str, tuple[Value, ...]]:
    (ct_instances,) = database.execute("SELECT ct_instances FROM series WHERE id = ?", (revision.series_id,)).fetchone()
    (frozen,) = database.execute("SELECT instances FROM revisions WHERE id = ?", (revision.id,)).fetchone()
    sender = database.row(
        "SELECT a.peer AS sender, a.calling_ae, a.called_ae, a.door FROM association_series AS fed"
        " JOIN associations AS a ON a.id = fed.association_id WHERE fed.series_id = ? AND fed.instances > 0"
        " ORDER BY a.id DESC LIMIT 1",
        (revision.series_id,),
    )
    texts = {**(sender or {}), "verdict": revision.verdict}
    return {
        **{word: (str(text),) for word, text in texts.items() if text},
        "instances": (float(len(json.loads(frozen))),),
        "ct_instances": (float(ct_instances),),
        "revision": (float(revision.n),),
    }


def of_results(reports: Sequence[Mapping[str, Any]], measurements: Mapping[str, Any]) -> dict[str, tuple[Value, ...]]:
    """Return what the pipeline has found out; the status is that of the main volume."""
    if not reports:
        return {}
    found: dict[str, tuple[Value, ...]] = {
        "status": (str(reports[0]["status"]),),
        "lungs": (str(reports[0]["lungs"]),),
        "issues": tuple(str(issue["code"]) for issue in reports[0]["issues"]),
    }
    for side in SIDES:
        numbers: object = measurements.get(side)
        for name in MEASURES:
            value = numbers.get(name) if isinstance(numbers, Mapping) else None
            if isinstance(value, (int, float)):
                found[f"{side}.{name}"] = (float(value),)
    return found
