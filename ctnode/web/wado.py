"""The decisions of WADO-RS: which instances a path names, in which form frames go out, how a picture looks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from ctnode.web.holdings import Holdings, Instance
from ctnode.web.media import Media, Part, covers
from ctnode.web.openers import Answer, Openers, Unrenderable
from ctnode.web.qido import BadQuery

OCTETS: Final = "application/octet-stream"
_NATIVE: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
_JPEG: Final = "1.2.840.10008.1.2.4."
# PS3.18 table 8.7.3-4.
_TYPES: Final = {
    **dict.fromkeys((f"{_JPEG}50", f"{_JPEG}51", f"{_JPEG}57", f"{_JPEG}70"), "image/jpeg"),
    **dict.fromkeys((f"{_JPEG}80", f"{_JPEG}81"), "image/jls"),
    **dict.fromkeys((f"{_JPEG}90", f"{_JPEG}91"), "image/jp2"),
    **dict.fromkeys((f"{_JPEG}92", f"{_JPEG}93"), "image/jpx"),
    **dict.fromkeys((f"{_JPEG}201", f"{_JPEG}202", f"{_JPEG}203"), "image/jphc"),
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
_FUNCTIONS: Final = {"": "LINEAR", "linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}
_FRAMES_AT_ONCE: Final = 10_000
_LARGEST_SIDE: Final = 4096
_NUMBERS: Final = re.compile(r"[1-9][0-9]{0,6}(?:,[1-9][0-9]{0,6})*")


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """In which form frames go out: as stored or decoded, as which type, alone or in a multipart body."""

    is_stored: bool
    media_type: str
    is_single: bool


@dataclass(frozen=True, slots=True)
class Look:
    """How a picture looks: ``(center, width, function)``, ``(width, height)`` in pixels, quality of a JPEG."""

    window: tuple[float, float, str] | None
    viewport: tuple[int, int] | None
    quality: int


def named(holdings: Holdings, study: str, series: str, instance: str) -> list[Instance]:
    """Return the instances of a study, of a series of it, or one of them; empty where there are none."""
    if not series:
        found = holdings.study(study)
        return [one for held in holdings.series(found) for one in holdings.instances(held)] if found else []
    held = holdings.one_series(study, series)
    if held is None:
        return []
    if not instance:
        return list(holdings.instances(held))
    single = holdings.instance(held, instance)
    return [single] if single else []


def in_wanted_syntax(instances: Sequence[Instance], wanted: Sequence[Media]) -> tuple[list[Instance], list[str]]:
    """Return the instances in a transfer syntax that is accepted, and all syntaxes that there are.

    Without a word about it a client gets what is kept: nothing is transcoded here.
    """
    asked = {media.transfer_syntax for media in wanted}
    syntaxes = sorted({one.transfer_syntax for one in instances})
    if asked & {"", "*"}:
        return list(instances), syntaxes
    return [one for one in instances if one.transfer_syntax in asked], syntaxes


def frame_numbers(text: str) -> list[int]:
    """Return the frame numbers of a path, from 1 on.

    Raises
    ------
    BadQuery
        If it is no list of numbers.
    """
    if not _NUMBERS.fullmatch(text):
        raise BadQuery("frames are named by numbers from 1 on, with commas between them")
    numbers = [int(one) for one in text.split(",")]
    if len(numbers) > _FRAMES_AT_ONCE:
        raise BadQuery(f"not more than {_FRAMES_AT_ONCE} frames at once")
    return numbers


def choose_frames(stored: str, wanted: Sequence[Media], *, single: bool) -> FrameChoice | None:
    """Return the form of frames that the client likes best, None where it takes none that there is."""
    for media in wanted:
        alone = single and media.name not in ("multipart/related", "*/*")
        syntax = media.transfer_syntax
        if covers(media, OCTETS) and (syntax in ("*", stored) and syntax):
            return FrameChoice(True, OCTETS, alone)
        if covers(media, OCTETS) and syntax in ("", _NATIVE[0], _NATIVE[1]):
            return FrameChoice(False, OCTETS, alone)
        if (kind := _TYPES.get(stored)) and covers(media, kind) and syntax in ("", "*", stored):
            return FrameChoice(True, kind, alone)
    return None


def frame_part(openers: Openers, instance: Instance, number: int, choice: FrameChoice) -> Part:
    """Return one frame."""
    answer = openers.ask(do="frame", path=str(instance.path), index=number - 1, stored=choice.is_stored)
    kind = f"{choice.media_type}; transfer-syntax={answer.fields['transfer_syntax']}"
    return part_of(answer, instance, kind)


def part_of(answer: Answer, instance: Instance, content_type: str) -> Part:
    """Return what an opener gave: bytes, or a place in the file of the instance."""
    if "range" not in answer.fields:
        return Part(content_type, content=answer.content)
    offset, length = (int(number) for number in answer.fields["range"])
    if offset < 0 or length < 0 or offset + length > instance.path.stat().st_size:
        raise Unrenderable(406, "the pixels are shorter than the header promises")
    return Part(content_type, instance.path, offset, length)


def metadata_of(openers: Openers, instance: Instance, base_url: str) -> bytes:
    """Return the header of an instance as DICOM JSON; of one that cannot be opened what the index knows of it."""
    parts = (quote(part, safe="~") for part in (instance.study, instance.series, instance.sop_instance))
    url = "{}/studies/{}/series/{}/instances/{}".format(base_url, *parts)
    split = instance.series if "~" in instance.series else ""
    try:
        return openers.ask(do="metadata", path=str(instance.path), url=url, series=split).content
    except Unrenderable as refused:
        if refused.status == 503:
            raise
    known = {
        "00080016": instance.sop_class, "00080018": instance.sop_instance,
        "0020000D": instance.study, "0020000E": instance.series,
    }  # fmt: skip
    return json.dumps({tag: {"vr": "UI", "Value": [uid]} for tag, uid in known.items() if uid}).encode()


def picture_type(wanted: Sequence[Media]) -> str | None:
    """Return the type of picture that the client likes best, JPEG where it does not care (PS3.18 8.7.4)."""
    for media in wanted:
        for kind in ("image/jpeg", "image/png"):
            if covers(media, kind):
                return kind
    return None


def look_of(parameters: Mapping[str, str], viewport: str = "") -> Look:
    """Return how a picture shall look (PS3.18 8.3.5).

    Raises
    ------
    BadQuery
        If a parameter is not what the standard says.
    """
    unknown = sorted(set(parameters) - {"window", "viewport", "quality", "accept", "annotation"})
    if unknown:
        raise BadQuery(f"{unknown[0][:64]!r} is no parameter of a rendered resource")
    return Look(
        _window(parameters["window"]) if "window" in parameters else None,
        _viewport(parameters.get("viewport", viewport)),
        _quality(parameters.get("quality", "90")),
    )


def _window(text: str) -> tuple[float, float, str]:
    parts = text.split(",")
    try:
        center, width = float(parts[0]), float(parts[1])
        function = _FUNCTIONS[",".join(parts[2:]).strip().lower()]
    except (IndexError, KeyError, ValueError):
        raise BadQuery("window is center,width,function with linear, linear-exact or sigmoid") from None
    least = 1.0 if function == "LINEAR" else 0.0
    if not (math.isfinite(center) and math.isfinite(width)) or width < least or width == 0:
        raise BadQuery("a window needs a finite center and a width of at least 1 (linear) or over 0")
    return center, width, function


def _viewport(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise BadQuery("viewport is width,height in pixels; regions of the picture are not supported")
    width, height = map(int, parts)
    if not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
        raise BadQuery(f"a viewport has 1 to {_LARGEST_SIDE} pixels to a side")
    return width, height


def _quality(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:4]) <= 100):
        raise BadQuery("quality is a number from 1 to 100")
    return int(text)
