"""One run of the pipeline: what identifies it, how long each step took, what it has written so far."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from ctnode.config import LungMask, Outputs, Pipeline
from ctnode.results.case import numbered
from ctnode.words import Issue

STEPS: Final = ("select", "decode", "resample", "lungs", "measure", "write")


def noop(_step: str) -> None:
    """Report no step to anybody."""


@dataclass(frozen=True, slots=True)
class Job:
    """What identifies one run.

    Parameters
    ----------
    study, series, revision
        Whose results these are.
    made_at
        The only time that may stand in our DICOM objects, so that a re-run gives the same bytes.
    out
        An existing empty folder.
    settings
        What is computed.
    on_step
        Called with the name of each step when it begins.
    wanted
        Which results are written.
    lungs
        How lungs are segmented.
    """

    study: str
    series: str
    revision: int
    made_at: datetime
    out: Path
    settings: Pipeline
    on_step: Callable[[str], None] = noop
    wanted: Outputs = field(default_factory=Outputs)
    lungs: LungMask = field(default_factory=LungMask)

    def settings_digest(self) -> str:
        """Return 12 hex digits that change with any setting that results depend on."""
        settings = "".join(part.model_dump_json() for part in (self.settings, self.wanted, self.lungs))
        return hashlib.sha256(settings.encode()).hexdigest()[:12]


@dataclass(slots=True)
class Run:
    """One volume of a series on its way: what was noticed, how long each step took, what is written.

    ``number`` counts the volumes of the series from 1; from 2 on it stands in the names of the files.
    """

    job: Job
    issues: list[Issue]
    number: int = 1
    seconds: dict[str, float] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce a step and add its time to that of its name."""
        self.job.on_step(name)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def path(self, name: str) -> Path:
        """Return the place of an output and list it."""
        name = numbered(name, self.number)
        self.outputs.append(name)
        return self.job.out / name
