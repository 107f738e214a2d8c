"""What an expression may name: attributes of the DICOM dictionary (PS3.6), and what the node knows besides."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from ctnode.words import LungStatus, Verdict, VolumeStatus


class WhenError(ValueError):
    """An expression that cannot be meant: what is wrong, and at which character (from 1)."""

    def __init__(self, message: str, source: str, at: int) -> None:
        word = source[at : at + 30].split()[0] if source[at:].strip() else "the end"
        super().__init__(f"at character {at + 1} ({word}): {message}")
        self.at = at


class Kind(StrEnum):
    """What values of a name are."""

    TEXT = "text"
    NUMBER = "number"
    DATE = "date"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Named:
    """One name of the vocabulary.

    Parameters
    ----------
    kind
        Type of each value.
    is_list
        Whether there may be several values.
    choices
        Every text that can occur; empty: any.
    is_result
        Whether it is known only after the pipeline.
    tag, vr
        Of a DICOM attribute; 0 and ``""`` for what the node knows itself.
    """

    kind: Kind
    is_list: bool = False
    choices: tuple[str, ...] = ()
    is_result: bool = False
    tag: int = 0
    vr: str = ""


# The numbers of `right`, `left` and `both` in measurements.json.
MEASURES: Final = (
    "volume_ml", "mean_hu", "median_hu", "sd_hu", "skewness", "kurtosis", "perc5_hu", "perc10_hu", "perc15_hu",
    "perc50_hu", "perc85_hu", "perc95_hu", "laa950_pct", "laa910_pct", "laa856_pct", "haa_pct", "mass_g",
)  # fmt: skip
SIDES: Final = ("right", "left", "both")


def _node_names() -> dict[str, Named]:
    text, number = Named(Kind.TEXT), Named(Kind.NUMBER)
    found = {
        "sender": text,
        "calling_ae": text,
        "called_ae": text,
        "door": text,
        "instances": number,
        "ct_instances": number,
        "revision": number,
        "verdict": Named(Kind.TEXT, choices=tuple(Verdict)),
        "status": Named(Kind.TEXT, choices=tuple(VolumeStatus), is_result=True),
        "lungs": Named(Kind.TEXT, choices=tuple(LungStatus), is_result=True),
        "issues": Named(Kind.TEXT, is_list=True, is_result=True),
    }
    for side in SIDES:
        found.update({f"{side}.{name}": Named(Kind.NUMBER, is_result=True) for name in MEASURES})
    return found


NODE_NAMES: Final[Mapping[str, Named]] = MappingProxyType(_node_names())

_KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UI", "UR", "UT"), Kind.TEXT),
        # Ages are compared in years (PS3.5 6.2: nnnD, nnnW, nnnM, nnnY).
        **dict.fromkeys(("AS", "DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"), Kind.NUMBER),
        "DA": Kind.DATE,
        "TM": Kind.TIME,
    }
)
# Single values longer than what the header scanner keeps cannot be compared honestly; these stand behind the pixels.
_LAST_TAG: Final = 0x7FDFFFFF


@lru_cache(maxsize=512)
def look_up(word: str) -> Named | str:
    """Return what a name stands for, or why it stands for nothing."""
    known = NODE_NAMES.get(word)
    if known is not None:
        return known
    # Imported here: a node without routes needs no dictionary in its every process.
    from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_dict, tag_for_keyword

    tag = tag_for_keyword(word)
    if tag is None:
        near = difflib.get_close_matches(word, [*NODE_NAMES, *keyword_dict], n=1, cutoff=0.6)
        return f"no such attribute of PS3.6 and no such fact{f'; did you mean {near[0]}?' if near else ''}"
    # "US or SS" and the like: whichever it is, it is a number.
    vr = dictionary_VR(tag).split(" or ")[0]
    kind = _KINDS.get(vr)
    if kind is None or tag > _LAST_TAG or tag < 0x00080000:
        return f"an attribute of VR {vr} has no value to compare here"
    return Named(kind, is_list=dictionary_VM(tag) != "1", tag=tag, vr=vr)
