"""``document.dcm``: the page of ``report.dcm`` as Encapsulated PDF."""

from pathlib import Path
from typing import Final

from ctnode.results.case import Case, Stage
from ctnode.results.document import write_document
from ctnode.results.objects import Origin

AFTER: Final = Stage.LUNGS


def available(case: Case) -> bool:
    """Return whether the lungs were looked for; that there are none is reported too."""
    return case.measurements is not None


def write(case: Case) -> tuple[Path, ...]:
    """Write ``document.dcm``."""
    assert case.lungs is not None
    assert case.measurements is not None
    path = case.path("document.dcm")
    origin = Origin(case.study, case.series, case.revision, case.made_at, case.settings_digest)
    write_document(path, case.volume, case.lungs, case.measurements, origin)
    return (path,)
