"""Writers at work: beside the computation while it runs, in two threads when it is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ctnode.results.case import Case, Stage
from ctnode.results.writers import Writer


class Writing:
    """Runs writers in a thread beside the computation; what that has not begun at the end is done by the caller."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = writers
        # Most of writing needs one core and releases the interpreter: one thread is enough while something is computed.
        self._pool = ThreadPoolExecutor(1)
        # A task leaves the queue when it begins, so that nobody else holds its case any more.
        self._tasks: deque[Callable[[], tuple[Path, ...]]] = deque()
        self._futures: list[Future[tuple[Path, ...]]] = []

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self._tasks.clear()
        self._pool.shutdown()

    def begin(self, stage: Stage, case: Case) -> None:
        """Hand ``case`` to the writers of ``stage`` that are available."""
        for writer in self._writers:
            if writer.AFTER is stage and writer.available(case):
                self._tasks.append(partial(writer.write, case))
                self._futures.append(self._pool.submit(self._next))

    def finish(self) -> list[Path]:
        """Return the paths of all files once they are written; an error of a writer is raised."""
        paths: list[Path] = []
        # From the end of the queue, while the thread goes on from its begin.
        while self._tasks:
            paths += self._next(last=True)
        for future in self._futures:
            paths += future.result()
        return paths

    def _next(self, *, last: bool = False) -> tuple[Path, ...]:
        try:
            task = self._tasks.pop() if last else self._tasks.popleft()
        except IndexError:
            return ()
        return task()
