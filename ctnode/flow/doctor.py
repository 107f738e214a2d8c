"""What ``doctor`` looks at: each finding says what was examined, what was found, and what to do."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from ctnode.archive import alerts, invariants, lanes, verified
from ctnode.archive.database import Database, journal_mode
from ctnode.archive.layout import Layout
from ctnode.archive.suspect import marked
from ctnode.archive.timeline import iso
from ctnode.config import Config
from ctnode.ops.role import read_reports
from ctnode.wire.certificates import WARN_DAYS, certificate_files, client_context, days_left, read_material
from ctnode.words import CtnodeError

SHOWN: Final = 20
STALE_S: Final = 10.0
_NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"})
_DECODERS: Final = {
    "JPEG, JPEG Lossless": "gdcm",
    "JPEG 2000, HTJ2K": "openjpeg",
    "RLE": "rle",
    "JPEG-LS": "jpeg_ls",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    is_good: bool
    hint: str = ""


def examine(config: Config) -> tuple[Finding, ...]:
    """Look at everything; reads only."""
    layout = Layout(config.root, config.results)
    return (*_environment(layout), *_decoders(), *_certificates(config), *_node(config, layout))


def _environment(layout: Layout) -> Iterator[Finding]:
    kind = _file_system(layout)
    yield Finding(
        "file system of the root",
        kind,
        kind not in _NETWORK_FILE_SYSTEMS,
        "SQLite needs a local disk: move storage.root",
    )
    mode = journal_mode()
    yield Finding("SQLite", f"{sqlite3.sqlite_version}, journal mode {mode}", is_good=True)


def _file_system(layout: Layout) -> str:
    place = os.path.realpath(layout.root)
    best, kind = "", "unknown"
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                _, where, what, *_ = line.split()
                inside = place == where or place.startswith(where.rstrip("/") + "/")
                if inside and len(where) >= len(best):
                    best, kind = where, what
    except OSError:
        return "unknown"
    return kind


def _decoders() -> Iterator[Finding]:
    for syntaxes, module in _DECODERS.items():
        try:
            __import__(module)
        except ImportError as error:
            yield Finding(
                f"decoder of {syntaxes}", str(error), is_good=False, hint="reinstall ctnode with its dependencies"
            )
        else:
            yield Finding(f"decoder of {syntaxes}", module, is_good=True)


def _certificates(config: Config) -> Iterator[Finding]:
    if config.tls.certificate:
        try:
            days = read_material(config.tls).days_left()
        except CtnodeError as error:
            yield Finding("certificate", error.message, is_good=False, hint=error.hint)
        else:
            found = f"{days:.0f} days left" if days > 0 else f"expired {-days:.0f} days ago"
            yield Finding(
                "certificate", found, days >= WARN_DAYS, "put a new one in its place, then reload with SIGHUP"
            )
    for name, file in certificate_files(config):
        try:
            days = days_left(file, name)
        except CtnodeError as error:
            yield Finding(name, error.message, is_good=False, hint=error.hint)
        else:
            found = f"{days:.0f} days left" if days > 0 else f"expired {-days:.0f} days ago"
            yield Finding(name, found, days >= WARN_DAYS, "put a new one in its place, then reload with SIGHUP")
    for target in config.targets:
        try:
            if target.tls:
                client_context(target)
        except CtnodeError as error:
            yield Finding(f"TLS to {target.name}", error.message, is_good=False, hint=error.hint)


def _node(config: Config, layout: Layout) -> Iterator[Finding]:
    if not layout.database.is_file():
        yield Finding("node", f"none at {config.root}", is_good=False, hint="start one with `ctnode run`")
        return
    room = os.statvfs(layout.root)
    free_mb = room.f_bavail * room.f_frsize >> 20
    yield Finding(
        "free space", f"{free_mb} MB, reserve {config.storage.reserve_mb} MB", free_mb > config.storage.reserve_mb,
        "free space: new associations are refused",
    )  # fmt: skip
    is_inode_poor = bool(room.f_files) and room.f_favail < config.storage.reserve_inodes
    yield Finding("free inodes", str(room.f_favail), not is_inode_poor, "free inodes: new associations are refused")
    distrust = marked(layout.run)
    yield Finding(
        "trust in the storage", distrust or "no sync has failed", not distrust,
        "look at the disk and the kernel's log; a restart of the receiver writes, syncs and reads back a probe",
    )  # fmt: skip
    yield from (_verification(layout, kind) for kind in verified.KINDS)
    roles = read_reports(layout.run)
    running = " ".join(sorted(role.role for role in roles)) or "none"
    yield Finding("roles", running, bool(roles), "start the node with `ctnode run`")
    for role in roles:
        if role.age_s > STALE_S:
            yield Finding(f"role {role.role}", f"silent for {role.age_s:.0f} s", is_good=False, hint="see its log")
        elif role.config not in {config.digest(), ""} and role.role != "receiver":
            hint = "reload with SIGHUP, or restart for keys that need it"
            yield Finding(f"role {role.role}", "runs with another configuration", is_good=False, hint=hint)
    with Database(layout.database, readonly=True) as database:
        yield from _index(database, layout, config.delivery.late_s)
        for channel in alerts.channels(database, [one.name for one in config.notify]):
            if channel.failures:
                found = f"not told {channel.failures} times: {channel.comment}"
                yield Finding(f"channel {channel.name}", found, is_good=False, hint="`ctnode notify test`")


def _verification(layout: Layout, kind: str) -> Finding:
    last = verified.last(layout, kind)
    if last is None:
        return Finding(f"verification of {kind}", "never, or not since something was forgotten", is_good=True)
    words = f"{iso(last.at)}: {last.files} files read, {last.differ} differ"
    hint = "put a copy back in its place if there is one; a series can be sent again, results made with requeue"
    return Finding(f"verification of {kind}", "; ".join((words, *last.faults)), not last.differ, hint)


def _index(database: Database, layout: Layout, late_s: float) -> Iterator[Finding]:
    for what, breaches, hint in (
        ("index file", invariants.check_integrity(database), "restore a backup, or `ctnode rebuild-index`"),
        ("files and rows", invariants.check_store(database, layout), "`ctnode rebuild-index` finds rows for all files"),
        ("what was deleted", invariants.check_removals(database, layout), "report this: it must not happen"),
        ("states", invariants.check_states(database), "report this: it must not happen"),
    ):
        found = list(islice(breaches, SHOWN))
        yield Finding(what, "; ".join(found) or "consistent", not found, hint)
    counters = database.counters()
    quarantined = counters.get("quarantine.FAILED", 0)
    yield Finding(
        "quarantine", f"{quarantined} files", not quarantined, "look at quarantine/ and the reasons in the index"
    )
    dead = counters.get("jobs.DEAD", 0)
    yield Finding("dead jobs", str(dead), not dead, "`ctnode jobs list --state DEAD`, then `ctnode jobs retry`")
    given_up = counters.get("deliveries.DEAD", 0)
    hint = "`ctnode deliveries list --state DEAD`, then `ctnode deliveries retry`"
    yield Finding("deliveries given up", str(given_up), not given_up, hint)
    for lane in lanes.every(database):
        late = lanes.backlog(database, lane.name, late_s).late
        if late:
            why = lane.comment or "paused, or slower than what comes"
            yield Finding(
                f"late for {lane.name}", f"{late} objects: {why}", is_good=False, hint="`ctnode deliveries list`"
            )
