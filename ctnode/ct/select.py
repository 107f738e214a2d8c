"""Which images of a series form the volume, and why each of the others does not (rules R1 to R7).

Nothing disappears: whatever is left out is in an issue. Where two images claim one place with different pixels and
nothing in the headers tells them apart, there is no volume; images are never averaged and the last never wins.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final

import numpy as np

from ctnode.ct.decode import stored_values
from ctnode.ct.geometry import depths_mm
from ctnode.ct.source import DISCRIMINATORS, Frame
from ctnode.words import Issue, Refusal, Severity

CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
MULTIFRAME_CT: Final = frozenset({"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"})
SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"

# Values of ImageType that stand for pictures made of a volume, whose grey values are no samples of it.
_PICTURES: Final = frozenset(
    {"MIP", "MINIP", "MAXIP", "MAX_IP", "MIN_IP", "MNIP", "PROJECTION IMAGE", "VRT", "SSD", "3D", "REFORMATTED_3D",
     "SCREEN SAVE", "SCREENSAVE", "DOSEINFO", "DOSE_INFO", "PASTED", "SURFACE", "VOLUME RENDERING"}
)  # fmt: skip
_GREY: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})

# Tried last: virtual energies and material maps of one scan differ only here.
_IMAGE_TYPE_4: Final = "ImageType value 4"


def choose(frames: Sequence[Frame], issues: list[Issue]) -> tuple[Frame, ...]:
    """Return the images of the main volume, one for each position, in no particular order of space.

    Parameters
    ----------
    frames
        All readable images of the series; their order does not matter.
    issues
        Grows by one issue for each reason for which images are left out, also when a refusal follows.

    Raises
    ------
    Refusal
        Codes ``NO_CT_IMAGES``, ``MULTIFRAME_NOT_SUPPORTED``, ``NO_GEOMETRY``, ``AMBIGUOUS``.
    """
    images = _once(sorted(frames, key=lambda frame: (frame.sop_uid, frame.digest)), issues)
    images = _leave_out(images, _not_ct, Severity.INFO, issues)
    if not images:
        raise Refusal("the series holds no CT image that belongs to a volume", code="NO_CT_IMAGES")
    multiframe = [frame for frame in images if frame.sop_class in MULTIFRAME_CT or frame.frames > 1]
    if multiframe:
        raise Refusal(
            f"{len(multiframe)} of {len(images)} images are multi-frame, which cannot be read yet",
            code="MULTIFRAME_NOT_SUPPORTED",
            hint="send the series as single-frame CT images",
        )
    placed = _leave_out(images, _without_place, Severity.WARNING, issues)
    if not placed:
        raise Refusal("no image says where it lies in the patient", code="NO_GEOMETRY")
    groups = _groups(placed)
    groups.sort(key=_rank)
    for group in groups[1:]:
        text = f"{len(group)} images of another orientation, matrix, spacing, kind or frame of reference left out"
        issues.append(Issue("OTHER_GROUP", Severity.INFO, text + _names(group)))
    return _one_per_position(groups[0], issues)


def _names(frames: Iterable[Frame]) -> str:
    return ": " + ", ".join(frame.name for frame in frames)


def _once(frames: Sequence[Frame], issues: list[Issue]) -> list[Frame]:
    """Drop files that hold the same data set; refuse one SOP Instance UID for images at different places (R7)."""
    by_digest = {frame.digest: frame for frame in reversed(frames)}
    if len(by_digest) < len(frames):
        text = f"{len(frames) - len(by_digest)} files hold a data set that is there already; used once"
        issues.append(Issue("DUPLICATE_FILE", Severity.INFO, text))
    kept = [frame for frame in frames if by_digest[frame.digest] is frame]
    places: dict[str, set[Hashable]] = defaultdict(set)
    for frame in kept:
        if frame.sop_uid:
            places[frame.sop_uid].add((frame.orientation, frame.position_mm))
    torn = [uid for uid, found in places.items() if len(found) > 1]
    if torn:
        raise Refusal(f"one SOP Instance UID names images at different places: {', '.join(torn)}", code="AMBIGUOUS")
    return kept


def _leave_out(
    frames: Sequence[Frame], reason: Callable[[Frame], tuple[str, str] | None], severity: Severity, issues: list[Issue]
) -> list[Frame]:
    left: dict[tuple[str, str], list[Frame]] = defaultdict(list)
    kept = []
    for frame in frames:
        why = reason(frame)
        if why is None:
            kept.append(frame)
        else:
            left[why].append(frame)
    for (code, text), group in sorted(left.items(), key=lambda item: item[0]):
        issues.append(Issue(code, severity, f"{len(group)} left out: {text}{_names(group)}"))
    return kept


def _not_ct(frame: Frame) -> tuple[str, str] | None:
    if frame.sop_class == SECONDARY_CAPTURE:
        return "SECONDARY_CAPTURE", "secondary capture"
    if (
        frame.sop_class != CT_IMAGE
        and frame.sop_class not in MULTIFRAME_CT
        and (frame.sop_class or frame.modality != "CT")
    ):
        return "NOT_CT", "not a CT image"
    if frame.pixel_length < 0:
        return "NO_PIXELS", "without pixels"
    if frame.samples != 1 or frame.photometric not in _GREY:
        return "NOT_GREY", "colour, or not grey values"
    if "LOCALIZER" in frame.image_type[2:]:
        return "LOCALIZER", "localizer"
    if _PICTURES.intersection(frame.image_type):
        return "PICTURE", "a projection, rendering or screen shot"
    return None


def _without_place(frame: Frame) -> tuple[str, str] | None:
    spacing = frame.pixel_spacing_mm
    if frame.orientation is None or frame.position_mm is None or spacing is None or min(spacing) <= 0:
        return "NO_GEOMETRY", "position, orientation or pixel spacing missing or senseless"
    if not any(frame.orientation):
        return "NO_GEOMETRY", "position, orientation or pixel spacing missing or senseless"
    return None


def _groups(frames: Sequence[Frame], *, tolerance: float = 1e-4) -> list[list[Frame]]:
    """Group by rule R1; orientation and spacing by distance, since rounding would cut groups at its own edges."""
    groups: list[list[Frame]] = []
    keys: list[tuple[Hashable, tuple[float, ...]]] = []
    for frame in frames:
        assert frame.orientation is not None
        assert frame.pixel_spacing_mm is not None
        sure = (
            frame.frame_of_reference, frame.rows, frame.columns, frame.photometric, frame.rescale_type or "HU",
            frame.image_type[0], frame.image_type[2:3],
        )  # fmt: skip
        numbers = frame.orientation + frame.pixel_spacing_mm
        for key, group in zip(keys, groups, strict=True):
            if key[0] == sure and max(abs(a - b) for a, b in zip(key[1], numbers, strict=True)) <= tolerance:
                group.append(frame)
                break
        else:
            keys.append((sure, numbers))
            groups.append([frame])
    return groups


def _rank(group: Sequence[Frame], *, least: int = 4) -> tuple[bool, bool, int, str]:
    """Original before derived before a handful (a localizer that does not say so, R2), then the larger one (R6)."""
    digest = hashlib.sha256("".join(frame.digest for frame in group).encode()).hexdigest()
    return len(group) < least, group[0].image_type[0] != "ORIGINAL", -len(group), digest


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


def _one_per_position(frames: Sequence[Frame], issues: list[Issue]) -> tuple[Frame, ...]:
    places = _positions(frames)
    if len(places) == len(frames):
        return tuple(frames)
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
        _note_dropped(dropped, issues)
        return tuple(place[0] for place in rest)
    return _split(places, issues)


def _note_dropped(dropped: Sequence[Frame], issues: list[Issue]) -> None:
    if dropped:
        text = f"{len(dropped)} images repeat a position with the same pixels; left out{_names(dropped)}"
        issues.append(Issue("DUPLICATE_SLICE", Severity.INFO, text))


def _alike(one: Frame, other: Frame) -> bool:
    same_values = (one.slope, one.intercept, one.padding, one.padding_limit, one.signed, one.bits_stored) == (
        other.slope, other.intercept, other.padding, other.padding_limit, other.signed, other.bits_stored
    )  # fmt: skip
    return same_values and np.array_equal(stored_values(one), stored_values(other))


def _split(places: Sequence[Sequence[Frame]], issues: list[Issue]) -> tuple[Frame, ...]:
    """Split repeated positions by the first header value that leaves one image for each (rule R4)."""
    frames = [frame for place in places for frame in place]
    for index, keyword in enumerate((*DISCRIMINATORS, _IMAGE_TYPE_4)):
        groups: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            values = (*frame.discriminators, "\\".join(frame.image_type[3:4]))
            groups[values[index]].append(frame)
        if len(groups) < 2:
            continue
        dropped: list[Frame] = []
        ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), len(item[0]), item[0]))
        parts = [_unique(group, dropped) for _, group in ordered]
        # A part that covers half of the positions or less is a piece of something, not a volume of its own.
        if any(part is None for part in parts) or 2 * len(parts[0] or ()) <= len(places):
            continue
        _note_dropped(dropped, issues)
        for (value, _), part in zip(ordered[1:], parts[1:], strict=True):
            text = f"{len(part or ())} images with {keyword} {value or 'missing'} left out{_names(part or ())}"
            issues.append(Issue("OTHER_ACQUISITION", Severity.INFO, text))
        return tuple(parts[0] or ())
    repeated = [place for place in places if len(place) > 1]
    raise Refusal(
        f"{len(repeated)} positions hold different pixels and nothing tells the images apart, first"
        + _names(repeated[0]),
        code="AMBIGUOUS",
    )


def _unique(group: Sequence[Frame], dropped: list[Frame]) -> list[Frame] | None:
    kept: list[Frame] = []
    for place in _positions(group):
        if any(not _alike(frame, place[0]) for frame in place[1:]):
            return None
        kept.append(place[0])
        dropped.extend(place[1:])
    return kept
