"""``measurements.json``, and ``histogram.json`` and ``histogram.csv`` where there are lungs."""

from pathlib import Path
from typing import Final

from ctnode.ops.durable import write_durable
from ctnode.results.case import Case, Stage
from ctnode.results.sidecar import write_json

AFTER: Final = Stage.LUNGS


def available(case: Case) -> bool:
    """Return whether the lungs were looked for."""
    return case.measurements is not None


def write(case: Case) -> tuple[Path, ...]:
    """Write numbers, status and reasons."""
    assert case.measurements is not None
    paths = [case.path("measurements.json")]
    write_json(paths[0], case.measurements.as_json())
    histogram = case.measurements.histogram
    if histogram is not None:
        paths += [case.path("histogram.json"), case.path("histogram.csv")]
        write_json(paths[1], histogram.as_json())
        write_durable(paths[2], histogram.as_csv().encode("ascii"), mode=0o644)
    return tuple(paths)
