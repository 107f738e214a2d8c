"""How far a long command is: a bar for who watches, a plain line now and then for who reads a log, nothing at first."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final, Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# What is over within so long needs no bar.
PATIENCE_S: Final = 2.0
LINE_S: Final = 10.0
LABEL_LIMIT: Final = 60


class Steps:
    """Shows on standard error how far a command is, from ``PATIENCE_S`` on; a context manager.

    Parameters
    ----------
    what
        What is done, such as ``verify``.
    unit
        What is counted, such as ``files``.
    is_quiet
        Shows nothing, for scripts.
    clock
        Seconds of any clock.
    """

    def __init__(
        self, what: str, unit: str, *, is_quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._unit = unit
        self._is_quiet = is_quiet
        self._has_viewer = sys.stderr.isatty()
        self._clock = clock
        self._next_s = clock() + PATIENCE_S
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def at(self, done: int, total: int | None = None, label: str = "") -> None:
        """Say how far it is; cheap enough for every step of a loop."""
        if self._is_quiet or self._clock() < self._next_s:
            return
        if self._has_viewer:
            self._draw(done, total, label)
        else:
            self._next_s = self._clock() + LINE_S
            of = f" of {total}" if total else ""
            click.echo(f"{self._what}: {done}{of} {self._unit}{f', {label}' if label else ''}", err=True)

    def _draw(self, done: int, total: int | None, label: str) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(self._what, total=None)
            self._bar.start()
        (task,) = self._bar.task_ids
        words = f"{self._what} {label[-LABEL_LIMIT:]}".rstrip()
        # Its brackets are not the terminal's.
        self._bar.update(task, description=words.replace("[", r"\["), completed=done, total=total)
