"""``report.dcm``: the page for PACS viewers."""

from pathlib import Path
from typing import Final

from ctnode.results.case import Case, Stage
from ctnode.results.report import write_report

AFTER: Final = Stage.LUNGS


def available(case: Case) -> bool:
    """Return whether the lungs were looked for; that there are none is reported too."""
    return case.measurements is not None


def write(case: Case) -> tuple[Path, ...]:
    """Write ``report.dcm``."""
    assert case.lungs is not None
    assert case.measurements is not None
    path = case.path("report.dcm")
    write_report(
        path,
        case.volume,
        case.lungs,
        case.measurements,
        study=case.study,
        series=case.series,
        revision=case.revision,
        made_at=case.made_at,
        settings_digest=case.settings_digest,
    )
    return (path,)
