"""Several images at one position: the same pixels count once, others are told apart by headers, or refused (R4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from ctnode.ct.decode import stored_values
from ctnode.ct.geometry import depths_mm
from ctnode.ct.source import DISCRIMINATORS, Frame
from ctnode.words import Issue, Refusal, Severity


def names_of(frames: Iterable[Frame], *, most: int = 100) -> str:
    """Return the names of images for an issue; of very many, the first."""
    names = [frame.name for frame in frames]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ": " + ", ".join(names[:most]) + more


def _positions(frames: Sequence[Frame], *, same_mm: float = 0.01) -> list[list[Frame]]:
    """Group images that lie at one place within ``same_mm``."""
    assert frames[0].orientation is not None
    points = np.array([frame.position_mm for frame in frames], dtype=np.float64)
    depths = depths_mm(frames[0].orientation, points)
    found: list[list[Frame]] = []
    last = -1
    for index in np.lexsort((np.arange(len(frames)), depths)):
        if last >= 0 and np.abs(points[index] - points[last]).max() <= same_mm:
            found[-1].append(frames[index])
        else:
            found.append([frames[index]])
            last = int(index)
    return found


# The images of a volume, what tells it from the others of its group, and what was left out of it.
Part = tuple[tuple[Frame, ...], tuple[str, str] | None, tuple[Issue, ...]]


def one_per_position(frames: Sequence[Frame]) -> list[Part]:
    """Return the volumes in ``frames``, images of one grid in one order of being: one image for each position.

    Raises
    ------
    Refusal
        Code ``AMBIGUOUS`` where images with different pixels lie at one place and no header value separates them.
    """
    places = _positions(frames)
    if len(places) == len(frames):
        return [(tuple(frames), None, ())]
    dropped: list[Frame] = []
    rest: list[list[Frame]] = []
    for place in places:
        kept = place[:1]
        for frame in place[1:]:
            if any(_alike(frame, other) for other in kept):
                dropped.append(frame)
            else:
                kept.append(frame)
        rest.append(kept)
    if all(len(place) == 1 for place in rest):
        return [(tuple(place[0] for place in rest), None, _note_dropped(dropped))]
    return _split(places)


def _note_dropped(dropped: Sequence[Frame]) -> tuple[Issue, ...]:
    if not dropped:
        return ()
    text = f"{len(dropped)} images repeat a position with the same pixels; left out{names_of(dropped)}"
    return (Issue("DUPLICATE_SLICE", Severity.INFO, text),)


def _alike(one: Frame, other: Frame) -> bool:
    same_values = _meaning(one) == _meaning(other)
    # Two tables are not compared: images that have one differ, unless their files are the same.
    return same_values and not one.has_lut and np.array_equal(stored_values(one), stored_values(other))


def _meaning(frame: Frame) -> tuple[object, ...]:
    """Return what stored values mean; padding modulo 2^16, since senders write it with either sign."""
    padding = tuple(None if end is None else end & 0xFFFF for end in (frame.padding, frame.padding_limit))
    bits = frame.signed, frame.bits_stored, frame.high_bit
    return frame.slope, frame.intercept, frame.has_lut, padding, bits


def _split(places: Sequence[Sequence[Frame]]) -> list[Part]:
    """Split repeated positions by the first header value that leaves one image for each (rule R4)."""
    frames = [frame for place in places for frame in place]
    for index, keyword in enumerate(DISCRIMINATORS):
        groups: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            groups[frame.discriminators[index]].append(frame)
        if len(groups) < 2:
            continue
        ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), len(item[0]), item[0]))
        parts = [_unique(group) for _, group in ordered]
        # A part that covers half of the positions or less is a piece of something, not a volume of its own.
        if any(part is None for part in parts) or 2 * len((parts[0] or ((), ()))[0]) <= len(places):
            continue
        split: list[Part] = []
        for (value, _), part in zip(ordered, parts, strict=True):
            assert part is not None
            why = ("OTHER_ACQUISITION", f"{keyword} {value or 'missing'}")
            split.append((part[0], why, _note_dropped(part[1])))
        return split
    repeated = [place for place in places if len(place) > 1]
    raise Refusal(
        f"{len(repeated)} positions hold different pixels and nothing tells the images apart, first"
        + names_of(repeated[0]),
        code="AMBIGUOUS",
    )


def _unique(group: Sequence[Frame]) -> tuple[tuple[Frame, ...], list[Frame]] | None:
    kept: list[Frame] = []
    dropped: list[Frame] = []
    for place in _positions(group):
        if any(not _alike(frame, place[0]) for frame in place[1:]):
            return None
        kept.append(place[0])
        dropped.extend(place[1:])
    return tuple(kept), dropped
