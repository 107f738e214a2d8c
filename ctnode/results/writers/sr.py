"""``sr.dcm``: the numbers as DICOM SR; it points at ``seg.dcm`` by UIDs that are known before that is written."""

from pathlib import Path
from typing import Final

from ctnode.results.case import Case, Stage
from ctnode.results.objects import Origin
from ctnode.results.sr import write_sr

AFTER: Final = Stage.LUNGS


def available(case: Case) -> bool:
    """Return whether there are numbers and a segmentation to point at."""
    measured = case.measurements is not None and case.measurements.both is not None
    return measured and case.mask is not None and case.wanted.seg != "none"


def write(case: Case) -> tuple[Path, ...]:
    """Write ``sr.dcm``."""
    assert case.measurements is not None
    path = case.path("sr.dcm")
    origin = Origin(case.study, case.series, case.revision, case.made_at, case.settings_digest)
    write_sr(path, case.volume, case.measurements, origin, labelmap=case.wanted.seg == "labelmap")
    return (path,)
