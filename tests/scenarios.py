"""The scenarios of ``docs/scenarios.md``: what senders, operators and clocks do, played in a simulated node.

A line of a script is a time in seconds and an event. What it may say stands in ``_VERBS``; "1-4" are slices 2.5 mm
apart, A to Z are associations. Without further words a slice is of series 1, patient P1, a matrix of 4, all of one
study. Before the script may stand settings of ``[completion]``, a ``rule`` of ``[[completion_rules]]``, and into how
many pieces the sender itself cut its series.
"""

from __future__ import annotations

import json
import re
import struct
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ctnode.archive import revisions
from ctnode.archive.incoming import Incoming
from ctnode.archive.spool import Journal
from ctnode.config import CompletionRule
from tests.archive_root import CT, Image
from tests.simulation import EXPLICIT, STARTED, Clocks, Verdict, World, on_clocks

HOUR_S: Final = 3600.0
PAGE: Final = Path(__file__).parents[1] / "docs" / "scenarios.md"
_UNITS: Final = {"": 1.0, "h": HOUR_S}


@dataclass(frozen=True, slots=True)
class Scenario:
    """A story and what has to come of it.

    Parameters
    ----------
    words
        What it is about.
    script
        Lines of a time and an event.
    outcome
        One line for each revision: name, verdict, number of instances, time of the verdict, rule, state at the end.
    settings
        Of ``[completion]``.
    rules
        Of ``[[completion_rules]]``.
    pieces
        Into how many pieces the sender itself cut its series; more revisions are the node's fault.
    """

    words: str
    script: tuple[str, ...]
    outcome: tuple[str, ...]
    settings: Mapping[str, object]
    rules: tuple[CompletionRule, ...] = ()
    pieces: int = 1


def read_page(page: Path = PAGE) -> tuple[Scenario, ...]:
    """Return the scenarios of the page."""
    found = re.findall(
        r"^\*\*(.+?)\*\*\n\n```\n(.+?)\n```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return tuple(read_scenario(words, block) for words, block in found)


def read_scenario(words: str, block: str) -> Scenario:
    """Return the scenario of one block of the page."""
    lines = [" ".join(line.split()) for line in block.splitlines()]
    settings = tomllib.loads("\n".join(line for line in lines if re.match(r"\w+ = ", line)))
    pieces, rule = settings.pop("pieces", 1), settings.pop("rule", None)
    return Scenario(
        words,
        tuple(line for line in lines if line[0].isdigit()),
        tuple(line.removeprefix("=> ") for line in lines if line.startswith("=> ")),
        settings,
        () if rule is None else (CompletionRule(name="rule", **rule),),
        pieces,
    )


def numbers(text: str) -> list[int]:
    """Return the slices of a list such as ``1-4,7``."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def seconds(text: str) -> float:
    """Return a time such as ``2.5`` or ``24h`` in seconds."""
    return float(text.rstrip("h")) * _UNITS["h" if text.endswith("h") else ""]


# --------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Arrival:
    """A new instance, or the end of an association (``series`` is empty); ``split`` counts what shares a UID."""

    at_s: float
    series: str
    split: int
    association: str


class Play:
    """One scenario being played."""

    def __init__(self, place: Path, clocks: Clocks, rules: Iterable[CompletionRule] = (), **settings: object) -> None:
        self.clocks = clocks
        self.world = World(place, self.clocks, rules, **settings)
        self.journals: dict[str, Journal] = {}
        self.begun: dict[str, tuple[Incoming, Image]] = {}
        self.arrivals: list[Arrival] = []
        # When lists came, or somebody who can read them.
        self.told_s: list[float] = []
        self._kinds: dict[str, list[object]] = {}
        self._seen: set[Image] = set()

    def image(self, number: int, how: str) -> Image:
        """Return a slice, as the words after its number say."""
        changes: dict[str, object] = {}
        series = 1
        for pattern, change in (
            (r"of series (\d+)", lambda value: {"series": value}),
            (r"of study (\d+)", lambda value: {"study": f"1.2.{value}"}),
            (r"of patient (\w+)", lambda value: {"patient": value}),
            (r"with a matrix of (\d+)", lambda value: {"rows": int(value)}),
            (r"in another (frame) of reference", lambda _: {"frame": "1.2.99"}),
            (r"with other (pixels)", lambda _: {"pixels": b"\x09\x09\x09\x09"}),
            (
                r"as a (localizer)",
                lambda _: {"image_type": "ORIGINAL\\PRIMARY\\LOCALIZER", "frame": "1.2.98", "rows": 8},
            ),
            (r"of (\d+) images in acquisition", lambda value: {"more": _images_in_acquisition(value)}),
            (r"as parts of (\d+)", lambda value: {"more": _part(number, int(value))}),
            (r"as a report (page)", lambda _: {"sop_class": "1.2.840.10008.5.1.4.1.1.7", "modality": "OT"}),
        ):
            found = re.search(pattern, how)
            if found is not None:
                changes |= change(found.group(1))
        series = int(str(changes.pop("series", 1)))
        return Image(
            f"1.2.3.{series}.{number}",
            series=f"1.2.3.{series}",
            number=str(number),
            position=2.5 * number,
            **changes,  # type: ignore[arg-type]
        )

    def names(self, text: str, how: str = "") -> list[str]:
        return [self.image(number, how).sop for number in numbers(text)]

    def note(self, image: Image, association: str) -> None:
        """Remember an arrival; what came before to the byte is none."""
        if image in self._seen:
            return
        self._seen.add(image)
        kinds = self._kinds.setdefault(image.series, [])
        kind = (image.patient, image.frame, image.rows)
        if kind not in kinds:
            kinds.append(kind)
        self.arrivals.append(Arrival(self.clocks.passed_s, image.series, kinds.index(kind) + 1, association))

    # What the verbs do.

    def opens(self, who: str, title: str) -> None:
        self.journals[who] = self.world.open(title or "SENDER")

    def sends(self, who: str, what: str, how: str) -> None:
        for number in numbers(what):
            image = self.image(number, how)
            self.world.put(self.journals[who], image)
            self.note(image, who)

    def begins(self, who: str, what: str, how: str) -> None:
        image = self.image(int(what), how)
        incoming = self.journals[who].receive(transfer_syntax=EXPLICIT, sop_class=CT, sop_instance=image.sop)
        incoming.write(image.encode())
        self.begun[who] = (incoming, image)

    def ends_slice(self, who: str) -> None:
        incoming, image = self.begun.pop(who)
        incoming.commit()
        self.note(image, who)

    def closes(self, who: str, how: str) -> None:
        if who in self.begun:
            self.begun.pop(who)[0].discard()
        self.journals.pop(who).close(_ENDS[how])
        self.arrivals.append(Arrival(self.clocks.passed_s, "", 0, who))

    def comes(self, what: str, how: str) -> None:
        for number in numbers(what):
            who = f"its own {len(self.arrivals)}"
            self.opens(who, "")
            self.sends(who, str(number), how)
            self.closes(who, "releases")

    def step_begins(self, name: str) -> None:
        self.world.step(f"1.9.{name or 1}", "IN PROGRESS", "", ())

    def step_ends(self, name: str, status: str, what: str, how: str) -> None:
        series = self.image(1, how).series
        self.told_s.append(self.clocks.passed_s)
        self.world.step(f"1.9.{name or 1}", status.upper(), series, self.names(what, how) if what else ())

    def commitment(self, what: str, how: str) -> None:
        names = [name for part, series in re.findall(rf"{_LIST}( of series \d+)?", f"{what}{how}")
                 for name in self.names(part, series)]  # fmt: skip
        self.told_s.append(self.clocks.passed_s)
        self.world.ask_commitment(f"1.8.{len(self.told_s)}", names)

    def available(self, what: str, how: str) -> None:
        self.told_s.append(self.clocks.passed_s)
        self.world.notify(f"1.7.{len(self.told_s)}", self.image(1, how).series, self.names(what, how))

    def answers(self, what: str) -> None:
        self.told_s.append(self.clocks.passed_s)
        assert self.world.answer(self.names(what)), "the archive was not asked"

    def operator(self, what: str) -> None:
        if what == "holds":
            revisions.hold(self.world.others, 1, "look first")
        elif what == "releases":
            revisions.release(self.world.others, 1)
        else:
            revisions.tell_complete(self.world.others, 1)

    def keeper(self, what: str) -> None:
        if what in {"stops", "restarts"}:
            self.world.stop()
        if what in {"starts", "restarts"}:
            self.told_s.append(self.clocks.passed_s)
            self.world.start()

    def hangs(self, length: str) -> None:
        self.world.hang(float(length))

    def clock(self, sign: str) -> None:
        self.clocks.set_by_s += HOUR_S if sign == "+" else -HOUR_S

    def clock_to(self, what: str) -> None:
        self.clocks.set_by_s = 60.0 - STARTED if what == "1970" else 0.0

    def summer_time(self) -> None:
        before, after = STARTED, self.clocks.time() + 1.0
        assert time.localtime(after).tm_hour - time.localtime(before).tm_hour == 2, "no change to summer time"

    def worker(self, what: str) -> None:
        if what == "takes the job":
            assert self.world.claim() is not None, "there is no job"
        else:
            self.world.finish()


_ENDS: Final = {
    "releases": "released",
    "aborts": "aborted",
    "vanishes": "lost",
    "is ended for its silence": "idle",
}
_LIST: Final = r"([\d,-]+)"
_VERBS: Final[tuple[tuple[str, Callable[..., None]], ...]] = (
    (r"([A-Z]) opens(?: from (PACS))?", Play.opens),
    (rf"([A-Z]) sends {_LIST}(.*)", Play.sends),
    (r"([A-Z]) begins (\d+)(.*)", Play.begins),
    (r"([A-Z]) ends it", Play.ends_slice),
    (rf"([A-Z]) ({'|'.join(_ENDS)})", Play.closes),
    (rf"{_LIST} come, each in an association of its own(.*)", Play.comes),
    (r"MPPS ?(\d*) begins", Play.step_begins),
    (rf"MPPS ?(\d*) (completed|discontinued)(?: with {_LIST})?(.*)", Play.step_ends),
    (rf"commitment is asked for {_LIST}(.*)", Play.commitment),
    (rf"availability is told of {_LIST}(.*)", Play.available),
    (rf"PACS answers that it holds {_LIST}", Play.answers),
    (r"the operator (holds|releases|completes)(?: it)?", Play.operator),
    (r"the keeper (stops|starts|restarts)", Play.keeper),
    (r"the keeper hangs for (\d+) s", Play.hangs),
    (r"the clock is set ([+-])1 h", Play.clock),
    (r"the clock is set to (1970|the right time)", Play.clock_to),
    (r"summer time has begun", Play.summer_time),
    (r"a worker (takes the job|finishes)", Play.worker),
)
_PACE: Final = re.compile(r"(.*?)([\d,-]+)(.*), one each ([\d.]+) s(.*)")


def events(script: Iterable[str]) -> Iterator[tuple[float, str]]:
    """Yield time and words of each event in order, a paced line as one event for each slice."""
    found: list[tuple[float, str]] = []
    for line in script:
        at, _, words = line.partition(" ")
        paced = _PACE.fullmatch(words)
        if paced is None:
            found.append((seconds(at), words))
            continue
        before, listed, after, pace, rest = paced.groups()
        for place, number in enumerate(numbers(listed)):
            found.append((seconds(at) + place * float(pace), f"{before}{number}{after}{rest}"))
    yield from sorted(found, key=lambda event: event[0])


def perform(play: Play, words: str) -> None:
    """Let one event happen.

    Raises
    ------
    ValueError
        If no verb fits the words.
    """
    for pattern, verb in _VERBS:
        found = re.fullmatch(pattern, words)
        if found is not None:
            verb(play, *(part or "" for part in found.groups()))
            play.world.stir()
            return
    raise ValueError(f"no verb fits: {words}")


def _images_in_acquisition(count: str) -> tuple[tuple[int, int, str, bytes | str], ...]:
    return ((0x20, 0x12, "IS", "1"), (0x20, 0x1002, "IS", count))


def _part(number: int, total: int) -> tuple[tuple[int, int, str, bytes | str], ...]:
    """Return what makes an instance a part of a concatenation (PS3.3 C.7.6.16.1.1)."""
    return (
        (0x20, 0x9161, "UI", "1.2.77"),
        (0x20, 0x9162, "US", struct.pack("<H", number)),
        (0x20, 0x9163, "US", struct.pack("<H", total)),
    )


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a scenario: its outcome in words, what must never be, and what was sent when."""

    outcome: tuple[str, ...]
    breaches: list[str]
    arrivals: list[Arrival]
    told_s: list[float]
    verdicts: list[Verdict]


def play(scenario: Scenario, place: Path) -> Played:
    """Play a scenario to its end."""
    run = None
    with on_clocks(clocks := Clocks()):
        try:
            run = Play(place, clocks, scenario.rules, **scenario.settings)
            for at, words in events(scenario.script):
                run.world.go(at)
                perform(run, words)
            run.world.settle()
            return Played(_outcome(run.world), run.world.breaches(), run.arrivals, run.told_s, run.world.verdicts)
        finally:
            if run is not None:
                for journal in run.journals.values():
                    journal.close("released")
                run.world.close()


def _outcome(world: World) -> tuple[str, ...]:
    """Return one line for each revision."""
    given = {(one.series, one.split, one.revision): one for one in world.verdicts}
    rows = world.others.execute(
        "SELECT series.uid, series.split, r.n, r.state, series.hold, series.flags, series.duplicates,"
        " r.n = (SELECT max(n) FROM revisions WHERE series_id = series.id),"
        " (SELECT count(*) FROM series AS other) FROM revisions AS r JOIN series ON series.id = r.series_id"
        " ORDER BY series.uid, series.split, r.n"
    ).fetchall()
    found = []
    for uid, split, n, state, hold, flags, duplicates, is_newest, count in rows:
        name = f"series {uid.rpartition('.')[2]}{f' split {split}' if split > 1 else ''} " if count > 1 else ""
        verdict = given.get((uid, split, n))
        words = "no verdict"
        if verdict is not None:
            words = f"{verdict.verdict} with {verdict.instances} at {verdict.at_s:.1f} by {verdict.rule}"
        more = [*json.loads(flags), f"held: {hold}" if hold else "", f"{duplicates} again" if duplicates else ""]
        found.append(", ".join([f"{name}r{n} {words}", state, *(text for text in more if text and is_newest)]))
    return tuple(found)
