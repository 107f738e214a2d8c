"""``preview.png``: the whole stack at a glance."""

from pathlib import Path
from typing import Final

from ctnode.results.case import Case, Stage
from ctnode.results.png import write_preview

AFTER: Final = Stage.VOLUME


def available(_case: Case) -> bool:
    """Return True: every volume has a preview."""
    return True


def write(case: Case) -> tuple[Path, ...]:
    """Write ``preview.png``."""
    path = case.path("preview.png")
    write_preview(path, case.volume, choice=case.wanted.window)
    return (path,)
