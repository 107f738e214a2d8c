"""Reading from the index what the headers of a series say of how many images there should be."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from ctnode.archive.database import Database
from ctnode.archive.rows import instances
from ctnode.words import Acquisition, Concatenation, Content

_COLUMNS: Final = (
    "is_current, instance_number, position_mm, is_localizer, acquisition, images_in_acquisition, concatenation,"
    " in_concatenation, concatenation_total, frames"
)


def of_series(database: Database, series_id: int) -> Content:
    """Return what the headers of a series' current instances say, out of its rows; no file is read."""
    positions, numbers = [], []
    stated: dict[int | None, int] = {}
    held: dict[int | None, int] = defaultdict(int)
    parts: dict[str, set[int]] = defaultdict(set)
    totals: dict[str, int] = {}
    multiframes = all_frames = 0
    for (
        is_current, number, position_mm, is_localizer, acquisition, images, concatenation, part, total, frames,
    ) in instances(database, series_id, _COLUMNS):  # fmt: skip
        if not is_current:
            continue
        # A localizer has its number in the same order, though no place in the volume.
        if number is not None:
            numbers.append(number)
        if frames > 1:
            multiframes, all_frames = multiframes + 1, all_frames + frames
        if concatenation and part is not None:
            parts[concatenation].add(part)
            if total is not None:
                totals[concatenation] = max(total, totals.get(concatenation, 0))
        if is_localizer:
            continue
        if position_mm is not None:
            positions.append(position_mm)
        held[acquisition] += frames
        if images is not None:
            stated[acquisition] = max(images, stated.get(acquisition, 0))
    return Content(
        positions_mm=tuple(positions),
        numbers=tuple(numbers),
        acquisitions=tuple(
            _acquisition(database, series_id, number, images, held[number]) for number, images in stated.items()
        ),
        concatenations=tuple(Concatenation(uid, totals.get(uid), tuple(sorted(parts[uid]))) for uid in sorted(parts)),
        multiframes=multiframes,
        frames=all_frames,
    )


def _acquisition(database: Database, series_id: int, number: int | None, stated: int, held: int) -> Acquisition:
    in_study = held
    if held < stated and number is not None:
        # Several series may share one acquisition: reconstructions, or energies.
        (in_study,) = database.execute(
            "SELECT coalesce(sum(frames), 0) FROM instances WHERE series_id IN"
            " (SELECT id FROM series WHERE study_id = (SELECT study_id FROM series WHERE id = ?))"
            " AND acquisition = ? AND is_current AND NOT is_localizer",
            (series_id, number),
        ).fetchone()
    return Acquisition(number, stated, held, in_study)
