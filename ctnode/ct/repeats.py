"""Several images at one position, or several passes over one range (R4).

The same pixels count once; others are told apart by headers, or refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.tag import BaseTag

from ctnode.ct.dataset import NATIVE
from ctnode.ct.decode import stored_values
from ctnode.ct.encapsulated import codestream
from ctnode.ct.geometry import depths_mm
from ctnode.ct.source import DISCRIMINATORS, Frame, read_header
from ctnode.ct.volume import in_space, placement_of
from ctnode.words import Issue, Refusal, Severity


def names_of(frames: Iterable[Frame], *, most: int = 100) -> str:
    """Return the names of images for an issue; of very many, the first."""
    names = [frame.name for frame in frames]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ": " + ", ".join(names[:most]) + more


# Values that differ between the images of one pass too, so that they alone do not make two of what is one even stack.
_TIMES: Final = frozenset({"AcquisitionTime", "ContentTime"})

# So many pairs of headers are compared for an issue.
_MOST_COMPARED: Final = 50


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
    dropped: list[Frame] = []
    for place in places:
        for frame in place[1:]:
            # One pair that differs is enough; of ten phases nobody wants all pairs decoded.
            if not _alike(frame, place[0]):
                return _split(places)
            dropped.append(frame)
    kept = tuple(place[0] for place in places)
    issues = _note_dropped(dropped, kept)
    return _passes(kept, issues) or [(kept, None, issues)]


def _note_dropped(dropped: Sequence[Frame], kept: Iterable[Frame]) -> tuple[Issue, ...]:
    if not dropped:
        return ()
    text = f"{len(dropped)} images repeat a position with the same pixels; left out{names_of(dropped)}"
    others = {frame.sop_uid: frame for frame in kept if frame.sop_uid}
    twins = [(frame, others[frame.sop_uid]) for frame in dropped if frame.sop_uid in others]
    differing = sorted(set().union(*(_differing(*twin) for twin in twins[:_MOST_COMPARED])))
    if differing:
        text += f"; under the same SOP Instance UID these attributes differ: {', '.join(differing)}"
    return (Issue("DUPLICATE_SLICE", Severity.INFO, text),)


def _differing(one: Frame, other: Frame) -> set[str]:
    """Return the names of the attributes that differ, never their values."""
    first, second = read_header(one), read_header(other)
    tags = {*first.keys(), *second.keys()}
    return {keyword_for_tag(tag) or str(tag) for tag in tags if not _same_element(first, second, tag)}


def _same_element(first: Dataset, second: Dataset, tag: BaseTag) -> bool:
    try:
        return bool(first.get(tag) == second.get(tag))
    except Exception:  # noqa: BLE001 - pydicom raises whatever it likes on hostile bytes; what cannot be read is not the same
        return False


def _alike(one: Frame, other: Frame) -> bool:
    # Two tables are not compared: images that have one differ, unless their files are the same.
    if _meaning(one) == _meaning(other) and not one.has_lut and _same_pixels(one, other):
        return True
    if one.sop_uid and (one.sop_uid, one.index) == (other.sop_uid, other.index):
        raise Refusal(f"one SOP Instance UID names images with different pixels: {one.sop_uid}", code="AMBIGUOUS")
    return False


def _same_pixels(one: Frame, other: Frame) -> bool:
    if one.transfer_syntax == other.transfer_syntax and one.transfer_syntax not in NATIVE:
        # The same codestream needs no decoder.
        return codestream(one) == codestream(other) or np.array_equal(stored_values(one), stored_values(other))
    return np.array_equal(stored_values(one), stored_values(other))


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
            split.append((part[0], why, _note_dropped(part[1], part[0])))
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


def _passes(frames: Sequence[Frame], dropped: tuple[Issue, ...], *, least: int = 4) -> list[Part] | None:
    """Split images of several passes over one range whose slices lie between each other, None where there is one pass.

    Together they would be a stack that was never scanned. They are told apart only where each pass is an even stack of
    its own; where all of them are one even stack too, times alone do not count.
    """
    is_even = _is_even(frames)
    for index, keyword in enumerate(DISCRIMINATORS):
        groups: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            groups[frame.discriminators[index]].append(frame)
        if len(groups) < 2 or min(map(len, groups.values())) < least or (is_even and keyword in _TIMES):
            continue
        ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), len(item[0]), item[0]))
        if _overlap([group for _, group in ordered]) and all(_is_even(group) for _, group in ordered):
            return [
                (tuple(group), ("OTHER_ACQUISITION", f"{keyword} {value or 'missing'}"), dropped if place == 0 else ())
                for place, (value, group) in enumerate(ordered)
            ]
    return None


def _is_even(frames: Sequence[Frame]) -> bool:
    try:
        issues = placement_of(in_space(frames)).issues
    except Refusal:
        return False
    return all(issue.severity is Severity.INFO or issue.code == "TILT" for issue in issues)


def _overlap(groups: Sequence[Sequence[Frame]], *, least_part: float = 0.5) -> bool:
    """Return whether any other group covers that part of the range of the first, or lies with it in the first."""
    first, *others = (_range_mm(group) for group in groups)
    return any(
        min(first[1], other[1]) - max(first[0], other[0]) >= least_part * min(first[1] - first[0], other[1] - other[0])
        for other in others
    )


def _range_mm(frames: Sequence[Frame]) -> tuple[float, float]:
    assert frames[0].orientation is not None
    depths = depths_mm(frames[0].orientation, np.array([frame.position_mm for frame in frames], dtype=np.float64))
    return float(depths.min()), float(depths.max())
