"""``ctnode status --watch``: the node at a glance, anew each second; lines instead of a screen where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ctnode.archive.database import Database
from ctnode.config import Config
from ctnode.flow.glance import Glance, look

REFRESH_S: Final = 1.0
# Where it goes into a file, once in so many seconds is enough.
LINE_S: Final = 10.0


def watch(config: Config, database: Database) -> None:
    """Show the node until Ctrl-C."""
    console = Console()
    if not console.is_terminal:
        for glance, before in _glances(config, database, LINE_S):
            click.echo(line(glance, before))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for glance, before in _glances(config, database, REFRESH_S):
            live.update(screen(glance, before), refresh=True)


def _glances(config: Config, database: Database, every_s: float) -> Iterator[tuple[Glance, Glance | None]]:
    before: Glance | None = None
    due_s = time.monotonic()
    while True:
        glance = look(config, database)
        yield glance, before
        before = glance
        due_s = max(due_s + every_s, time.monotonic())
        time.sleep(max(0.0, due_s - time.monotonic()))


def line(glance: Glance, before: Glance | None) -> str:
    """Return a glance as one line of names and values."""
    instances, megabytes = glance.rates(before)
    at = datetime.fromtimestamp(glance.at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    owed = " ".join(f"{one.name}={one.waiting}" for one in glance.destinations)
    disks = " ".join(f"{disk.place}={disk.free_mb}MB" for disk in glance.disks)
    problems = "; ".join(problem.what for problem in glance.problems) or "none"
    return (
        f"{at} associations={glance.associations} instances/s={instances:.1f} MB/s={megabytes:.1f}"
        f" waiting={glance.waiting} queued={glance.queued} running={glance.running} oldest={glance.oldest_s:.0f}s"
        f" owed: {owed or 'nothing'} free: {disks} problems: {problems}"
    )


def screen(glance: Glance, before: Glance | None) -> RenderableType:
    """Return a glance for a terminal; words say what colours only stress."""
    title = f"ctnode  {datetime.fromtimestamp(glance.at).astimezone():%Y-%m-%d %H:%M:%S}  (Ctrl-C ends)\n"
    facts = _table(_facts(glance, before))
    if not glance.problems:
        return Group(Text(title, style="bold"), facts, Text("\nno problems", style="green"))
    problems = _table((problem.what, problem.command) for problem in glance.problems)
    head = Text(f"\n{len(glance.problems)} problems", style="bold red")
    return Group(Text(title, style="bold"), facts, head, problems)


def _facts(glance: Glance, before: Glance | None) -> Iterator[tuple[str, str]]:
    instances, megabytes = glance.rates(before)
    yield "roles", "  ".join(f"{role} {count}" for role, count in sorted(glance.roles.items())) or "none"
    yield "receiving", f"{glance.associations} associations, {instances:.1f} images/s, {megabytes:.1f} MB/s"
    yield "waiting", f"{glance.waiting} series are not complete yet"
    oldest = f", the oldest is due for {_span(glance.oldest_s)}" if glance.queued else ""
    yield "queue", f"{glance.queued} wait, {glance.running} run{oldest}"
    for worker in glance.workers:
        busy = "idle" if worker.job is None else f"job {worker.job} for {_span(worker.running_s)}"
        yield "worker", f"{worker.pid}: {busy}"
    for one in glance.destinations:
        state = "paused" if one.is_paused else f"FAILS for {_span(one.failing_s)}" if one.failing_s else "well"
        since = f", the oldest for {_span(one.oldest_s)}" if one.waiting else ""
        yield "destination", f"{one.name}: {state}, {one.waiting} wait{since}, {one.dead} given up"
    for disk in glance.disks:
        yield "disk", f"{disk.place}: {disk.free_mb} MB free, refuses under {disk.reserve_mb} MB"


def _table(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, words in rows:
        # As texts: no bracket in them is a word of the terminal's.
        table.add_row(Text(name), Text(words))
    return table


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
