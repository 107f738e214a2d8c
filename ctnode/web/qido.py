"""QIDO-RS: searching studies, series and instances (PS3.18 10.6).

The index knows UIDs, modalities and counts; all else stands in the headers, which are read with the bounded scanner
while candidates are walked, newest first. A walk ends after some seconds, and the answer then says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ctnode.web.attributes import Headers, Values, as_json, matches, tag_of
from ctnode.web.holdings import Holdings, Instance, Series, Study

Level = Literal["studies", "series", "instances"]
Hit = dict[int, Values]

_STUDY: Final = 0x0020000D
_SERIES: Final = 0x0020000E
_SOP_INSTANCE: Final = 0x00080018
_SOP_CLASS: Final = 0x00080016
_MODALITY: Final = 0x00080060
_MODALITIES: Final = 0x00080061
_AVAILABILITY: Final = 0x00080056
_URL: Final = 0x00081190
_STUDY_SERIES: Final = 0x00201206
_STUDY_INSTANCES: Final = 0x00201208
_SERIES_INSTANCES: Final = 0x00201209

# What each level answers without being asked (PS3.18 tables 10.6.3-3 to 10.6.3-5), as far as it stands in headers.
STUDY_TAGS: Final = frozenset(
    {0x00080020, 0x00080030, 0x00080050, 0x00080090, 0x00080201, 0x00081030, 0x00100010, 0x00100020, 0x00100030,
     0x00100040, 0x00200010}
)  # fmt: skip
SERIES_TAGS: Final = frozenset({0x00080021, 0x0008103E, 0x00180015, 0x00200011, 0x00400244, 0x00400245})
INSTANCE_TAGS: Final = frozenset({0x00200013, 0x00280008, 0x00280010, 0x00280011, 0x00280100})
_COUNTED: Final = frozenset({_MODALITIES, _STUDY_SERIES, _STUDY_INSTANCES})
# What comes from the index or is made for the answer, so that no header has the say.
_COMPUTED: Final = _COUNTED | {
    _STUDY, _SERIES, _SOP_INSTANCE, _SOP_CLASS, _MODALITY, _AVAILABILITY, _URL, _SERIES_INSTANCES,
}  # fmt: skip
# Attributes of which a query may only ask at their own level or below.
_BELOW_STUDY: Final = SERIES_TAGS | {_SERIES, _MODALITY, _SERIES_INSTANCES}
_BELOW_SERIES: Final = INSTANCE_TAGS | {_SOP_INSTANCE, _SOP_CLASS}
_ALL: Final = STUDY_TAGS | {
    0x00080060, 0x00080070, 0x00080080, 0x00081010, 0x00081090, 0x00101010, 0x00180050, 0x00180060, 0x00181030,
    0x00181210, 0x00185100, 0x00200012, 0x00200032, 0x00200037, 0x00200052, 0x00280030, 0x00280101, 0x00281050,
    0x00281051, 0x00281052, 0x00281053,
}  # fmt: skip
LARGEST_LIMIT: Final = 10_000
SEARCH_S: Final = 5.0


class BadQuery(Exception):
    """The query cannot be answered as it stands."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for: values by tag, attributes to be answered too, the part of the list, what was ignored."""

    wanted: dict[int, str]
    include: frozenset[int] = frozenset()
    limit: int = LARGEST_LIMIT
    offset: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """The answer, and what a client has to know about it."""

    hits: list[dict[str, Any]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()


def parse_query(pairs: Iterable[tuple[str, str]], level: Level) -> Query:
    """Return the query of the parameters of a URL.

    Raises
    ------
    BadQuery
        For an attribute that does not exist or stands on a lower level, or a number that is none.
    """
    wanted: dict[int, str] = {}
    include: set[int] = set()
    numbers = {"limit": LARGEST_LIMIT, "offset": 0}
    warnings: tuple[str, ...] = ()
    for name, text in pairs:
        if name in numbers:
            if not (text.isascii() and text.isdigit() and len(text) < 10):
                raise BadQuery(f"{name} is no whole number from 0 on")
            numbers[name] = int(text)
        elif name == "includefield":
            include |= _included(text)
        elif name == "fuzzymatching":
            if text.lower() == "true":
                warnings = ("fuzzymatching is not supported; only literal matching has been performed",)
        else:
            tag = _asked(name, level)
            if tag in wanted and wanted[tag] != text:
                raise BadQuery(f"{name[:64]} is asked for twice")
            wanted[tag] = text.strip(" \0")
    limit = min(numbers["limit"], LARGEST_LIMIT)
    return Query(wanted, frozenset(include), limit, numbers["offset"], warnings)


def _asked(name: str, level: Level) -> int:
    tag = tag_of(name)
    if tag is None:
        raise BadQuery(f"{name[:64]!r} is no attribute that can be searched for")
    lower = {"studies": _BELOW_STUDY | _BELOW_SERIES, "series": _BELOW_SERIES, "instances": frozenset[int]()}[level]
    if tag in lower:
        raise BadQuery(f"{name[:64]} is no attribute of {level}; search on the level below")
    return tag


def _included(text: str) -> set[int]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if "all" in names:
        return set(_ALL)
    # PS3.18 10.6.1.2: what is not supported is left out of the answer.
    return {tag for tag in map(tag_of, names) if tag is not None}


class Search:
    """One search."""

    def __init__(self, holdings: Holdings, headers: Headers, query: Query, base_url: str) -> None:
        self._holdings = holdings
        self._headers = headers
        self._query = query
        self._base_url = base_url
        self._asked = frozenset(query.include | query.wanted.keys())
        self._extra = self._asked - _COMPUTED
        self._until = time.monotonic() + SEARCH_S

    def studies(self) -> Found:
        """Search studies."""
        # Without conditions the index itself passes over what stands before the part that is asked for.
        skip = 0 if any(self._query.wanted.values()) else self._query.offset
        return self._collect((self._of_study(study) for study in self._studies(skip)), skipped=skip)

    def series(self, study: str = "") -> Found:
        """Search series, of one study where it is named."""
        return self._collect(hit for _, hit in self._series(study))

    def instances(self, study: str = "", series: str = "") -> Found:
        """Search instances, of one study or series where they are named."""
        return self._collect(
            self._of_instance(one, instance, above)
            for one, above in self._series(study, series)
            if _fits(self._query.wanted, above)
            for instance in self._instances(one)
        )

    def _collect(self, hits: Iterable[Hit], *, skipped: int = 0) -> Found:
        query = self._query
        found: list[dict[str, Any]] = []
        warnings = query.warnings
        passed = skipped
        if query.limit == 0:
            return Found([], warnings)
        for hit in hits:
            if all(matches(tag, hit.get(tag, ()), text) for tag, text in query.wanted.items()):
                if passed < query.offset:
                    passed += 1
                elif len(found) == query.limit:
                    warnings += ("there are additional results that can be requested",)
                    break
                else:
                    found.append({f"{tag:08X}": as_json(tag, hit[tag]) for tag in sorted(hit)})
            if time.monotonic() > self._until:
                warnings += (f"the search ended after {SEARCH_S:g} seconds; there may be more: ask more narrowly",)
                break
        return Found(found, warnings)

    def _studies(self, skip: int = 0, uid: str = "") -> Iterator[Study]:
        named = uid or self._query.wanted.get(_STUDY, "")
        if named and "*" not in named:
            found = (self._holdings.study(one) for one in dict.fromkeys(named.replace("\\", ",").split(",")))
            return iter(sorted((one for one in found if one), key=lambda one: -one.id)[skip:])
        return self._holdings.studies(skip=skip)

    def _of_study(self, study: Study, held: list[Series] | None = None) -> Hit:
        series = self._holdings.series(study) if held is None else held
        first = next((one for one in series if not one.results), None)
        instance = first.first if first else None
        known: Hit = {
            _STUDY: (study.uid,),
            _AVAILABILITY: ("ONLINE",),
            _URL: (f"{self._base_url}/studies/{study.uid}",),
            _STUDY_SERIES: (len(series),),
            _STUDY_INSTANCES: (sum(one.count for one in series),),
        }
        # Without any the attribute is left out: one study with an empty one would take OHIF's whole list away.
        if modalities := tuple(dict.fromkeys(one.modality for one in series if one.modality)):
            known[_MODALITIES] = modalities
        tags = STUDY_TAGS | (self._extra - _BELOW_STUDY - _BELOW_SERIES)
        return self._read(instance, tags) | known

    def _series(self, study: str, series: str = "") -> Iterator[tuple[Series, Hit]]:
        """Yield the series with what is known of them and their study."""
        needs_study = not study or bool((STUDY_TAGS | _COUNTED) & self._asked)
        wanted = series or self._query.wanted.get(_SERIES, "")
        names = frozenset(wanted.replace("\\", ",").split(",")) if wanted and "*" not in wanted else None
        for found in self._studies(uid=study):
            held = self._holdings.series(found)
            chosen = [one for one in held if names is None or one.name in names]
            above = self._of_study(found, held) if needs_study and chosen else {_STUDY: (found.uid,)}
            for one in chosen:
                yield one, above | self._of_series(one)

    def _of_series(self, series: Series) -> Hit:
        known: Hit = {
            _STUDY: (series.study,),
            _SERIES: (series.name,),
            _MODALITY: (series.modality,),
            _AVAILABILITY: ("ONLINE",),
            _URL: (f"{self._base_url}/studies/{series.study}/series/{series.name}",),
            _SERIES_INSTANCES: (series.count,),
        }
        return self._read(series.first, SERIES_TAGS | (self._extra - _BELOW_SERIES)) | known

    def _instances(self, series: Series) -> Iterator[Instance]:
        wanted = self._query.wanted.get(_SOP_INSTANCE, "")
        if not wanted or "*" in wanted:
            return self._holdings.instances(series)
        named = (self._holdings.instance(series, one) for one in dict.fromkeys(wanted.replace("\\", ",").split(",")))
        return (one for one in named if one is not None)

    def _of_instance(self, series: Series, instance: Instance, above: Hit) -> Hit:
        url = f"{self._base_url}/studies/{series.study}/series/{series.name}/instances/{instance.sop_instance}"
        known: Hit = {
            _SOP_CLASS: (instance.sop_class,),
            _SOP_INSTANCE: (instance.sop_instance,),
            _AVAILABILITY: ("ONLINE",),
            _URL: (url,),
        }
        return above | self._read(instance, INSTANCE_TAGS | self._extra) | known

    def _read(self, instance: Instance | None, tags: frozenset[int]) -> Hit:
        """Return what the header says; an attribute that it lacks is answered empty, as the standard asks."""
        found = self._headers.read(instance.path, tags) if instance else {}
        return {tag: found.get(tag, ()) for tag in tags}


def _fits(wanted: dict[int, str], above: Hit) -> bool:
    """Return whether what is known of a series lets its instances match, so that their headers need not be read."""
    decided = _COUNTED | {_STUDY, _SERIES, _MODALITY, _SERIES_INSTANCES}
    return all(matches(tag, above[tag], text) for tag, text in wanted.items() if tag in decided and tag in above)
