"""Which images of a series form the volume, and why each of the others does not (rules R1 to R7).

Nothing disappears: whatever is left out is in an issue. Where two images claim one place with different pixels and
nothing in the headers tells them apart, there is no volume; images are never averaged and the last never wins.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ctnode.ct.repeats import names_of, one_per_position
from ctnode.ct.source import Frame, in_order
from ctnode.ct.volume import in_space, placement_of, unit_of
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


@dataclass(frozen=True, eq=False, slots=True)
class Candidate:
    """Images that form one volume, or would.

    Parameters
    ----------
    frames
        One for each position; all images of the group where they cannot be told apart.
    reason
        Why they are apart from the others: ``OTHER_GROUP`` or ``OTHER_ACQUISITION``, and in words.
    dropped
        What was left out inside this group.
    refusal
        Why there is no volume, None where headers promise one.
    shape, spacing_mm
        ``(z, y, x)`` of the volume; None where there is none.
    """

    frames: tuple[Frame, ...]
    reason: tuple[str, str]
    dropped: tuple[Issue, ...]
    refusal: Refusal | None
    shape: tuple[int, int, int] | None
    spacing_mm: tuple[float, float, float] | None

    @property
    def words(self) -> str:
        """Return what it is, for an issue."""
        first = self.frames[0]
        if self.refusal is not None or self.shape is None or self.spacing_mm is None:
            what = f"no volume ({'' if self.refusal is None else self.refusal.code})"
        else:
            what = "a volume of " + " x ".join(f"{step:.3g}" for step in reversed(self.spacing_mm)) + " mm voxels"
        return f"{len(self.frames)} images of {first.columns} x {first.rows} pixels, {what}: {self.reason[1]}"

    def as_json(self) -> dict[str, object]:
        """Return the geometry and the reason, for ``ct.json``."""
        return {
            "images": len(self.frames),
            "shape_zyx": None if self.shape is None else list(self.shape),
            "spacing_zyx_mm": None if self.spacing_mm is None else list(self.spacing_mm),
            "code": self.reason[0],
            "reason": self.reason[1],
            "refused": None if self.refusal is None else self.refusal.code,
        }


def choose(frames: Sequence[Frame], issues: list[Issue]) -> tuple[Frame, ...]:
    """Return the images of the main volume, one for each position; ``issues`` grows by all that was left out.

    Raises
    ------
    Refusal
        Codes of ``candidates``, and why the main group is no volume: ``AMBIGUOUS`` or a code of ``geometry.place``.
    """
    found = candidates(frames, issues)
    issues.extend(remarks(found, 0))
    if found[0].refusal is not None:
        raise found[0].refusal
    return found[0].frames


def remarks(found: Sequence[Candidate], index: int, *, converted: bool = False) -> list[Issue]:
    """Return what the volume ``index`` of ``found`` has to say of itself and of the others."""
    issues = list(found[index].dropped)
    for number, other in beside(found, index):
        what = f"volume {number} of this series" if converted else "left out"
        severity = (
            Severity.WARNING if other.refusal is not None and other.refusal.code == "AMBIGUOUS" else Severity.INFO
        )
        issues.append(Issue(other.reason[0], severity, f"{what}: {other.words}{names_of(other.frames)}"))
    return issues


def beside(found: Sequence[Candidate], index: int) -> list[tuple[int, Candidate]]:
    """Return the numbers (from 1) of all others than the volume ``index``, and why each is apart from it."""
    here = found[index].frames[0]
    return [(number, _compared(other, here)) for number, other in enumerate(found, 1) if number != index + 1]


def candidates(frames: Sequence[Frame], issues: list[Issue]) -> list[Candidate]:
    """Return all volumes that the images form, the main one first (rule R6); nothing is decoded but repeated images.

    Parameters
    ----------
    frames
        All readable images of the series; their order does not matter.
    issues
        Grows by one issue for each reason for which images are left out, also when a refusal follows.

    Raises
    ------
    Refusal
        Codes ``OWN_RESULT``, ``NO_CT_IMAGES``, ``NO_GEOMETRY``, ``AMBIGUOUS``.
    """
    images = _once(sorted(frames, key=in_order), issues)
    foreign = _leave_out(images, _own, Severity.INFO, issues)
    if images and not foreign:
        raise Refusal("a ctnode made all images of the series: results are never processed again", code="OWN_RESULT")
    images = _leave_out(foreign, _not_ct, Severity.INFO, issues)
    if not images:
        raise Refusal("the series holds no CT image that belongs to a volume", code="NO_CT_IMAGES")
    issues.extend(_missing_parts(images))
    placed = _leave_out(images, _without_place, Severity.WARNING, issues)
    if not placed:
        raise Refusal("no image says where it lies in the patient", code="NO_GEOMETRY")
    groups = _groups(placed)
    groups.sort(key=lambda group: (-len(group), _digest(group)))
    return sorted((candidate for group in groups for candidate in _candidates(group)), key=_rank)


def _compared(candidate: Candidate, main: Frame) -> Candidate:
    """Say in what the group of ``candidate`` differs from that of ``main``."""
    if candidate.reason[0] == "OTHER_ACQUISITION":
        return candidate
    first = candidate.frames[0]
    differences = [
        name
        for name, one, other in (
            ("frame of reference", first.frame_of_reference, main.frame_of_reference),
            ("matrix", (first.rows, first.columns), (main.rows, main.columns)),
            ("kind of image", first.image_type[:3], main.image_type[:3]),
            ("unit", unit_of(first), unit_of(main)),
            ("photometric interpretation", first.photometric, main.photometric),
            ("stack", first.stack, main.stack),
            ("orientation", first.orientation, main.orientation),
            ("pixel spacing", first.pixel_spacing_mm, main.pixel_spacing_mm),
        )
        if one != other
    ]
    return replace(candidate, reason=("OTHER_GROUP", f"another {', '.join(differences) or 'group'}"))


def _missing_parts(frames: Sequence[Frame], *, most_parts: int = 10000) -> Iterator[Issue]:
    """Look whether every part of a concatenation is here (rule R25); which frames it holds, nobody knows."""
    parts = {frame.concatenation for frame in frames if frame.concatenation is not None}
    for uid in sorted({part[0] for part in parts}):
        numbers = {part[1] for part in parts if part[0] == uid}
        total = max(max(part[2] for part in parts if part[0] == uid), *numbers)
        missing = sorted(set(range(1, min(total, most_parts) + 1)) - numbers)
        if missing:
            text = f"of {total} parts of a concatenation {len(missing)} are not here, the first is {missing[0]}"
            yield Issue("CONCATENATION_INCOMPLETE", Severity.WARNING, text)


def _once(frames: Sequence[Frame], issues: list[Issue]) -> list[Frame]:
    """Drop files that hold the same data set; refuse one SOP Instance UID for images at different places (R7)."""
    by_digest = {(frame.digest, frame.index): frame for frame in reversed(frames)}
    if len(by_digest) < len(frames):
        text = f"{len(frames) - len(by_digest)} images lie in data sets that are there already; used once"
        issues.append(Issue("DUPLICATE_FILE", Severity.INFO, text))
    kept = [frame for frame in frames if by_digest[frame.digest, frame.index] is frame]
    places: dict[tuple[str, int], set[Hashable]] = defaultdict(set)
    for frame in kept:
        if frame.sop_uid:
            places[frame.sop_uid, frame.index].add((frame.orientation, frame.position_mm))
    torn = [uid for (uid, _), found in places.items() if len(found) > 1]
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
        issues.append(Issue(code, severity, f"{len(group)} left out: {text}{names_of(group)}"))
    return kept


def _own(frame: Frame) -> tuple[str, str] | None:
    return ("OWN_RESULT", "made by a ctnode, never processed again") if frame.is_own else None


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


def _without_place(frame: Frame, *, farthest_mm: float = 1e6) -> tuple[str, str] | None:
    spacing = frame.pixel_spacing_mm
    if frame.orientation is None or frame.position_mm is None or spacing is None or min(spacing) <= 0:
        return "NO_GEOMETRY", "position, orientation or pixel spacing missing or senseless"
    # No patient is a kilometre from the origin, and 1e40 is infinity in the header of a NIfTI file.
    if max(map(abs, (*frame.position_mm, *spacing))) > farthest_mm or not any(frame.orientation):
        return "NO_GEOMETRY", "position, orientation or pixel spacing missing or senseless"
    if frame.frames > 1 and frame.sop_class not in MULTIFRAME_CT:
        return "NO_GEOMETRY", "several frames in a kind of image that says where one lies"
    return None


def _groups(frames: Sequence[Frame], *, tolerance: float = 1e-4) -> list[list[Frame]]:
    """Group by rule R1; orientation and spacing by distance, since rounding would cut groups at its own edges."""
    groups: list[list[Frame]] = []
    keys: list[tuple[Hashable, tuple[float, ...]]] = []
    for frame in frames:
        assert frame.orientation is not None
        assert frame.pixel_spacing_mm is not None
        sure = (
            frame.frame_of_reference, frame.rows, frame.columns, frame.photometric, unit_of(frame),
            frame.image_type[0], frame.image_type[2:3], frame.stack,
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


def _digest(frames: Sequence[Frame]) -> str:
    return hashlib.sha256("".join(f"{frame.digest}{frame.index}" for frame in frames).encode()).hexdigest()


def _rank(candidate: Candidate, *, least: int = 4) -> tuple[bool, bool, bool, int]:
    """Sort the main volume to the front.

    Neither a handful (a localizer that does not say so, R2) nor what is refused; original before derived; then the
    larger one (R6). Of equals the first stays first: groups come by digest, parts by the value that separates them.
    """
    frames = candidate.frames
    is_derived = frames[0].image_type[0] != "ORIGINAL"
    refused = candidate.refusal is not None
    return len(frames) < least, refused, is_derived, -len(frames)


def _candidates(group: Sequence[Frame]) -> list[Candidate]:
    """Return the volumes of one group, which differ in one header value, or its refusal."""
    reason = "OTHER_GROUP", "another group"
    try:
        parts = one_per_position(group)
    except Refusal as refusal:
        return [Candidate(tuple(group), reason, (), refusal, None, None)]
    found = []
    for frames, why, dropped in parts:
        try:
            grid = placement_of(in_space(frames)).grid
        except Refusal as refusal:
            found.append(Candidate(frames, why or reason, dropped, refusal, None, None))
        else:
            found.append(Candidate(frames, why or reason, dropped, None, grid.shape, grid.spacing_mm))
    return found
