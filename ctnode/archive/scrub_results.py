"""Do the results still hold what was published? Every output is read and compared with what its ``ct.json`` says.

So is every object that is still owed to a destination with what it was when it was owed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ctnode.archive.database import Database
from ctnode.archive.findings import SIDECARS
from ctnode.archive.layout import Layout
from ctnode.archive.outbox import OPEN, ORIGINAL
from ctnode.archive.scrub import PIECE_BYTES, Pace, Scrubbed

STEP: Final = 100
_SIDECAR: Final = "ct.json"


def scrub_results(database: Database, layout: Layout, pace: Pace) -> Iterator[Scrubbed]:
    """Yield every file of the published results that a side-car names, by revision; reads only.

    A folder that is published anew, or deleted, while it is read is read again, or left out.
    """
    last = 0
    while rows := database.rows(
        "SELECT revisions.id, revisions.n, revisions.state, studies.uid AS study, series.uid, series.split,"
        " EXISTS (SELECT 1 FROM removals WHERE removals.revision_id = revisions.id) AS is_deleted,"
        " EXISTS (SELECT 1 FROM volumes WHERE volumes.revision_id = revisions.id) AS is_made"
        " FROM revisions JOIN series ON series.id = revisions.series_id JOIN studies ON studies.id = series.study_id"
        " WHERE revisions.id > ? ORDER BY revisions.id LIMIT ?",
        (last, STEP),
    ):
        last = rows[-1]["id"]
        for row in rows:
            folder = layout.result_directory(row["study"], row["uid"], row["split"], row["n"])
            name = f"results/{folder.relative_to(layout.results)}"
            if folder.is_dir():
                yield from _scrub_folder(folder, name, _owed(database, layout, row["id"], folder), pace)
            elif row["state"] == "DONE" and row["is_made"] and not row["is_deleted"] and _is_done(database, row["id"]):
                yield Scrubbed(name, 0, "the folder is gone")


def _is_done(database: Database, revision_id: int) -> bool:
    """Return whether a revision is still there and DONE: it may have been queued again or forgotten since."""
    row = database.execute("SELECT 1 FROM revisions WHERE id = ? AND state = 'DONE'", (revision_id,)).fetchone()
    return row is not None


def _owed(database: Database, layout: Layout, revision_id: int, folder: Path) -> dict[str, str]:
    """Return the digests of what is owed of a folder, by name."""
    prefix = f"{folder.relative_to(layout.results)}/"
    rows = database.execute(
        f"SELECT path, digest FROM deliveries WHERE revision_id = ? AND kind <> ? AND {OPEN}", (revision_id, ORIGINAL)
    ).fetchall()
    return {path.removeprefix(prefix): digest for path, digest in rows if path.startswith(prefix)}


def _scrub_folder(folder: Path, name: str, owed: Mapping[str, str], pace: Pace) -> list[Scrubbed]:
    found: list[Scrubbed] = []
    for _ in range(2):
        before = _sidecars(folder)
        found = list(_compare(folder, name, before, owed, pace))
        if all(not one.fault for one in found) or _sidecars(folder) == before:
            break
    return found if folder.is_dir() else []


def _sidecars(folder: Path) -> dict[str, bytes]:
    """Return the content of the side-cars of a folder; what cannot be read is empty."""
    content = {}
    for path in sorted(folder.glob("ct*.json")):
        if SIDECARS.fullmatch(path.name):
            try:
                content[path.name] = path.read_bytes()
            except OSError:
                content[path.name] = b""
    return content


def _compare(
    folder: Path, name: str, sidecars: Mapping[str, bytes], owed: Mapping[str, str], pace: Pace
) -> Iterator[Scrubbed]:
    if _SIDECAR not in sidecars:
        yield Scrubbed(f"{name}/{_SIDECAR}", 0, "the side-car is gone")
    for sidecar, content in sidecars.items():
        try:
            digests: dict[str, Any] = dict(json.loads(content)["ctnode"]["sha256"])
        except (ValueError, KeyError, TypeError):
            yield Scrubbed(f"{name}/{sidecar}", len(content), "the side-car cannot be read")
            continue
        yield Scrubbed(f"{name}/{sidecar}", len(content))
        for output, digest in digests.items():
            yield _scrub_one(folder / Path(output).name, f"{name}/{output}", digest, owed.get(output), pace)


def _scrub_one(file: Path, name: str, digest: str, owed: str | None, pace: Pace) -> Scrubbed:
    count = 0
    found = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while piece := opened.read(PIECE_BYTES):
                found.update(piece)
                count += len(piece)
                pace.note(len(piece))
    except OSError as error:
        return Scrubbed(name, count, f"cannot be read: {error.strerror}")
    if found.hexdigest() != digest:
        return Scrubbed(name, count, "it is not what was published")
    if owed is not None and found.hexdigest() != owed:
        return Scrubbed(name, count, "it is not what is owed to a destination")
    return Scrubbed(name, count)
