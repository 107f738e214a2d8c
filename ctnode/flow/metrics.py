"""What the node counts, for Prometheus: read from the index and from ``run/`` at the moment of the question.

Nothing is counted here, so the numbers are those of the database and survive a restart. Labels are bounded: peers and
targets by the names of the configuration, anybody else as ``unknown``, what the configuration has no longer as
``removed``.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from ctnode import __version__
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.archive.schema_metrics import WAIT_BOUNDS_S
from ctnode.archive.tallies import Books, Tally, read
from ctnode.config import Config
from ctnode.ops.role import RoleReport, read_reports
from ctnode.wire.certificates import certificate_files, days_left
from ctnode.wire.shared import STORE_BOUNDS_S
from ctnode.words import UNKNOWN_PEER, CtnodeError, DeliveryState, JobState, RevisionState, Verdict

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
REMOVED: Final = "removed"
_MEGABYTE: Final = 1 << 20
_Values = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Room:
    """What is left where files are written."""

    place: str
    free_bytes: int
    free_inodes: int


def exposition(config: Config, database: Database | None, *, now: float | None = None) -> bytes:
    """Return the metrics of a node in the text format of Prometheus.

    Parameters
    ----------
    config
        The configuration: names of peers and targets, marks of the storage, the place of the root.
    database
        A connection to the index, read only is enough; None where there is none yet.
    now
        Seconds since 1970 (default: the clock).
    """
    layout = Layout(config.root, config.results)
    books = read(database) if database is not None else None
    families = [
        *_node(read_reports(layout.run)),
        *_storage(config, layout),
        *(_index(books, config, time.time() if now is None else now) if books is not None else ()),
    ]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(families))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


# ------------------------------------------------------------------------------------------------ run/


def _node(reports: Sequence[RoleReport]) -> Iterator[Metric]:
    yield _gauge("ctnode_build_info", "The version that answers.", ("version",), {(__version__,): 1.0})
    roles: dict[tuple[str, ...], float] = defaultdict(float)
    ages: dict[tuple[str, ...], float] = {}
    for report in reports:
        roles[report.role, report.state] += 1
        ages[(report.role,)] = max(report.age_s, ages.get((report.role,), 0.0))
    yield _gauge("ctnode_roles", "Processes of the node by role and state.", ("role", "state"), roles)
    yield _gauge("ctnode_role_report_age_seconds", "Age of the oldest report of a role.", ("role",), ages)
    acceptor = next((report.counters for report in reports if report.role == "receive"), None)
    if acceptor is not None:
        yield from _port(acceptor)


def _port(counters: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield what the processes of the DICOM port have counted since their start."""
    seen = counters.get("associations", {})
    yield _gauge("ctnode_associations_open", "Associations that are open now.", (), {(): seen.get("open", 0)})
    yield _counter("ctnode_connections", "Connections accepted since the start.", (), {(): seen.get("total", 0)})
    yield _counter("ctnode_connections_refused", "Connections over a limit.", (), {(): seen.get("refused", 0)})
    for name, meaning, label in (
        ("ended", "Connections by how they ended.", "how"),
        ("cut", "Connections that were cut, by cause.", "cause"),
        ("instances", "Answers to C-STORE by status.", "status"),
    ):
        values: _Values = {(str(key),): float(value) for key, value in counters.get(name, {}).items()}
        family = {"ended": "ctnode_connections_ended", "cut": "ctnode_connections_cut", "instances": "ctnode_answers"}
        yield _counter(family[name], meaning, (label,), values)
    yield _counter("ctnode_received_bytes", "Bytes of data sets kept.", (), {(): counters.get("bytes", 0)})
    yield _store_seconds(counters.get("seconds", {}))
    is_ok = counters.get("storage", "ok") == "ok"
    yield _gauge("ctnode_storage_takes_instances", "1 while instances are taken, 0 else.", (), {(): float(is_ok)})
    days = counters.get("certificate_days")
    yield _gauge(
        "ctnode_certificate_days", "Days until the certificate in use ends.", (), {} if days is None else {(): days}
    )


def _store_seconds(by_peer: Mapping[str, Sequence[float]]) -> Metric:
    """Return the times from the first fragment of an instance to its answer; the last number is their sum."""
    family = HistogramMetricFamily(
        "ctnode_store_seconds", "From the first fragment of an instance to its answer.", labels=("peer",)
    )
    for peer, values in by_peer.items():
        *counts, total = values
        family.add_metric((peer,), _cumulated(STORE_BOUNDS_S, counts), total)
    return family


# --------------------------------------------------------------------------------------------- storage


def _storage(config: Config, layout: Layout) -> Iterator[Metric]:
    rooms = [_room(name, place) for name, place in (("root", layout.root), ("results", layout.results))]
    there = [room for room in rooms if room is not None]
    yield _gauge(
        "ctnode_disk_free_bytes", "Free bytes.", ("place",), {(room.place,): room.free_bytes for room in there}
    )
    yield _gauge(
        "ctnode_inodes_free", "Free inodes; none where the file system counts none.", ("place",),
        {(room.place,): room.free_inodes for room in there if room.free_inodes >= 0},
    )  # fmt: skip
    marks = config.storage
    yield _gauge(
        "ctnode_disk_reserve_bytes", "Mark under which nothing is taken.", (), {(): marks.reserve_mb * _MEGABYTE}
    )
    yield _gauge("ctnode_inodes_reserve", "Mark under which nothing is taken.", (), {(): marks.reserve_inodes})
    ends: dict[tuple[str, ...], float] = {}
    for name, file in certificate_files(config):
        # One that cannot be read is said by `doctor` and [[notify]].
        with suppress(CtnodeError):
            ends[(name,)] = days_left(file, name)
    yield _gauge("ctnode_certificate_file_days", "Days until another certificate in use ends.", ("file",), ends)


def _room(name: str, place: os.PathLike[str]) -> Room | None:
    try:
        found = os.statvfs(place)
    except OSError:
        return None
    return Room(name, found.f_bavail * found.f_frsize, found.f_favail if found.f_files else -1)


# ----------------------------------------------------------------------------------------------- index


def _index(books: Books, config: Config, now: float) -> Iterator[Metric]:
    yield from _senders(books, frozenset(peer.name for peer in config.peers))
    yield from _series(books)
    yield from _jobs(books, now)
    yield from _deliveries(books, frozenset(target.name for target in config.targets), now)
    yield _by_state(books, "commitments", DeliveryState, "Storage commitment reports by state.")
    counters = books.counters
    yield _gauge("ctnode_quarantine_files", "Files in quarantine.", (), {(): counters.get("quarantine.FAILED", 0)})
    yield _counter(
        "ctnode_conflicts", "Instances with a UID in use and other bytes.", (), {(): counters.get("conflicts", 0)}
    )


def _senders(books: Books, peers: frozenset[str]) -> Iterator[Metric]:
    def named(name: str) -> str:
        return name if name in peers or name in {"", UNKNOWN_PEER} else REMOVED

    who = ("peer", "door")
    for tally, family, meaning in (
        ("instances", "ctnode_instances", "Instances in the index, by sender."),
        ("bytes", "ctnode_instance_bytes", "Bytes of their data sets."),
        ("duplicates", "ctnode_duplicates", "Identical resends that were dropped."),
        ("association_seconds", "ctnode_association_seconds", "Duration of associations that have ended."),
    ):
        yield _counter(family, meaning, who, _summed(books.sums(tally), 2, named))
    yield _counter(
        "ctnode_associations", "Associations that have ended.", (*who, "how"),
        _summed(books.sums("associations"), 3, named),
    )  # fmt: skip
    yield _counter(
        "ctnode_statuses", "Answers to C-STORE in associations that have ended.", (*who, "status"),
        _summed(books.sums("statuses"), 3, named),
    )  # fmt: skip


def _series(books: Books) -> Iterator[Metric]:
    yield _by_state(books, "revisions", RevisionState, "Revisions of series by state.")
    verdicts = {(str(verdict),): 0.0 for verdict in Verdict} | _summed(books.sums("verdicts"), 1)
    yield _counter("ctnode_verdicts", "Verdicts on the completeness of series.", ("verdict",), verdicts)
    family = HistogramMetricFamily(
        "ctnode_verdict_wait_seconds", "From the last instance of a series to its verdict.", labels=("verdict",)
    )
    totals = _summed(books.sums("wait_seconds"), 1)
    counted = _summed(books.sums("waits"), 2)
    bounds = [str(bound) for bound in WAIT_BOUNDS_S]
    for (verdict,), total in sorted(totals.items()):
        counts = [counted.get((verdict, bound), 0.0) for bound in (*bounds, "+Inf")]
        family.add_metric((verdict,), _cumulated(WAIT_BOUNDS_S, counts), total)
    yield family


def _jobs(books: Books, now: float) -> Iterator[Metric]:
    yield _by_state(books, "jobs", JobState, "Jobs by state.")
    open_states = (JobState.QUEUED, JobState.RUNNING, JobState.RETRY)
    depth = sum(books.counters.get(f"jobs.{state}", 0) for state in open_states)
    yield _gauge("ctnode_queue_depth", "Jobs that wait or run.", (), {(): depth})
    age = 0.0 if books.oldest_job_at is None else max(0.0, now - books.oldest_job_at)
    yield _gauge("ctnode_queue_oldest_age_seconds", "For how long the oldest queued job is due.", (), {(): age})
    yield _counter(
        "ctnode_job_attempts", "Attempts at jobs by what they led to.", ("kind", "state"),
        _summed(books.sums("attempts"), 2),
    )  # fmt: skip
    yield _summary("ctnode_job_step_seconds", "Steps of finished jobs.", "step", books, "steps", "step_seconds")


def _deliveries(books: Books, targets: frozenset[str], now: float) -> Iterator[Metric]:
    def named(name: str) -> str:
        return name if name in targets else REMOVED

    yield _gauge(
        "ctnode_deliveries", "Objects owed to destinations, by state.", ("target", "state"),
        _summed(books.sums("deliveries"), 2, named),
    )  # fmt: skip
    yield _counter(
        "ctnode_delivery_attempts", "Attempts by what they led to and the family of the status.",
        ("target", "state", "status"), _summed(books.sums("delivery_attempts"), 3, named),
    )  # fmt: skip
    yield _summary(
        "ctnode_delivery_seconds", "From owing an object to its arrival.", "target", books, "delivered",
        "delivered_seconds", named,
    )  # fmt: skip
    oldest: dict[tuple[str, ...], float] = {}
    failing: dict[tuple[str, ...], float] = {}
    paused: dict[tuple[str, ...], float] = {}
    for lane, posted_at in books.lanes:
        # Before the @ stands the target; behind it whom it means.
        key = (named(lane.name.partition("@")[0]),)
        oldest[key] = max(oldest.get(key, 0.0), 0.0 if posted_at is None else now - posted_at)
        failing[key] = max(failing.get(key, 0.0), 0.0 if lane.failing_since is None else now - lane.failing_since)
        paused[key] = max(paused.get(key, 0.0), float((lane.paused_until or 0.0) > now))
    yield _gauge(
        "ctnode_delivery_oldest_age_seconds", "For how long the oldest object waits for a destination.", ("target",),
        oldest,
    )  # fmt: skip
    yield _gauge("ctnode_target_failing_seconds", "For how long a destination fails.", ("target",), failing)
    yield _gauge("ctnode_target_paused", "1 while an operator has paused a destination.", ("target",), paused)


# --------------------------------------------------------------------------------------------- families


def _gauge(name: str, meaning: str, labels: Sequence[str], values: _Values) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _counter(name: str, meaning: str, labels: Sequence[str], values: _Values) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _by_state(books: Books, table: str, states: Iterable[str], meaning: str) -> Metric:
    values: _Values = {(str(state),): float(books.counters.get(f"{table}.{state}", 0)) for state in states}
    return _gauge(f"ctnode_{table}", meaning, ("state",), values)


def _summary(
    name: str, meaning: str, label: str, books: Books, counts: str, sums: str, named: Callable[[str], str] = str
) -> Metric:
    family = SummaryMetricFamily(name, meaning, labels=(label,))
    totals = _summed(books.sums(sums), 1, named)
    for key, count in sorted(_summed(books.sums(counts), 1, named).items()):
        family.add_metric(key, round(count), totals.get(key, 0.0))
    return family


def _summed(tallies: Iterable[Tally], labels: int, named: Callable[[str], str] = str) -> dict[tuple[str, ...], float]:
    """Return sums by their labels; the first of these is a name that ``named`` may replace."""
    summed: dict[tuple[str, ...], float] = defaultdict(float)
    for tally in tallies:
        summed[(named(tally.labels[0]), *tally.labels[1:labels])] += tally.value
    return summed


def _cumulated(bounds: Sequence[float], counts: Sequence[float]) -> list[tuple[str, float]]:
    """Return the buckets of a histogram, each with all below it."""
    names = [*(str(bound) for bound in bounds), "+Inf"]
    return list(zip(names, accumulate(counts), strict=True))
