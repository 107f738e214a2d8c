"""What the writers of results are given: one volume, what was found in it, whose it is and where its files go."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ctnode.config import Outputs, Pipeline
from ctnode.ct.grid import Grid, Volume
from ctnode.words import LungStatus

if TYPE_CHECKING:
    from ctnode.ct.lungs import Lungs
    from ctnode.ct.measure import Measurements


class Stage(IntEnum):
    """What has to be there before a writer can begin; each writer runs once, as soon as it is."""

    VOLUME = 1
    RESAMPLED = 2
    LUNGS = 3


@dataclass(frozen=True, eq=False, slots=True)
class Case:
    """One volume on its way to files; nothing in it may be changed by a writer.

    Parameters
    ----------
    volume
        In HU or what ``volume.unit`` says, LPS.
    wanted, settings
        What the operator wants written and computed.
    study, series, revision
        Whose results these are.
    made_at
        The only time that may stand in a file.
    settings_digest
        12 hex digits that change with any setting.
    folder
        Where files go; it appears under its final name when all of them are whole.
    number
        Counts the volumes of the series from 1.
    iso_grid
        The grid of ``ct_iso``, None if nothing is resampled.
    resampled
        ``(z, y, x)`` on ``iso_grid``; only there in the stage RESAMPLED, so that it is not held longer than needed.
    lungs, measurements
        From the stage LUNGS on; None where the lungs were not looked for.
    """

    volume: Volume
    wanted: Outputs
    settings: Pipeline
    study: str
    series: str
    revision: int
    made_at: datetime
    settings_digest: str
    folder: Path
    number: int = 1
    iso_grid: Grid | None = None
    resampled: npt.NDArray[np.int16] | npt.NDArray[np.float32] | None = None
    lungs: Lungs | None = None
    measurements: Measurements | None = None

    def path(self, name: str) -> Path:
        """Return the place of a file of this volume: ``ct_2.nii.gz`` for ``ct.nii.gz`` of the second."""
        return self.folder / numbered(name, self.number)

    @property
    def mask(self) -> Lungs | None:
        """Return the lungs if any were found, so that there is a mask to draw."""
        found = self.lungs is not None and self.lungs.status not in (LungStatus.NO_LUNGS, LungStatus.NOT_RUN)
        return self.lungs if found else None


def numbered(name: str, number: int) -> str:
    """Return the file name ``name`` of the volume ``number``: the first has it plain, others before the extension."""
    stem, dot, extension = name.partition(".")
    return name if number == 1 else f"{stem}_{number}{dot}{extension}"
