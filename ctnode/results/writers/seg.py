"""``seg.dcm``: the lungs as DICOM Segmentation."""

from pathlib import Path
from typing import Final

from ctnode.results.case import Case, Stage
from ctnode.results.objects import Origin
from ctnode.results.seg import write_seg

AFTER: Final = Stage.LUNGS


def available(case: Case) -> bool:
    """Return whether lungs were found."""
    return case.mask is not None


def write(case: Case) -> tuple[Path, ...]:
    """Write ``seg.dcm``."""
    assert case.mask is not None
    path = case.path("seg.dcm")
    origin = Origin(case.study, case.series, case.revision, case.made_at, case.settings_digest)
    write_seg(path, case.volume, case.mask, origin, labelmap=case.wanted.seg == "labelmap")
    return (path,)
