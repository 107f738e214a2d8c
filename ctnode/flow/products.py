"""From a volume to the files that were asked for: what is computed here, and when each writer may begin."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ctnode.config import Outputs, Pipeline
from ctnode.ct.grid import Grid, Volume
from ctnode.ct.volume import HU, UNMEASURABLE
from ctnode.flow.job import Run
from ctnode.results.case import Case, Stage
from ctnode.results.writers import wanted_writers
from ctnode.results.writing import Writing
from ctnode.words import Issue, LungStatus, Severity


@dataclass(frozen=True, slots=True)
class Products:
    """What was made beside the files.

    Parameters
    ----------
    lungs, reasons
        The status of the lungs, with what speaks against OK.
    grid
        That of ``ct_iso``, None if nothing was resampled.
    issues
        Why something that is wanted was not made.
    """

    lungs: LungStatus
    reasons: tuple[str, ...]
    grid: Grid | None
    issues: tuple[Issue, ...] = ()


def preload(wanted: Outputs) -> None:
    """Import the modules that ``write_products`` will need for ``wanted``."""
    modules = []
    if _resampling(wanted):
        modules += ["scipy.sparse", "ctnode.ct.resample"]
    if wanted.lungs:
        modules += ["ctnode.ct.lungs", "ctnode.ct.measure"]
    for name in modules:
        importlib.import_module(name)
    wanted_writers(wanted)


def _resampling(wanted: Outputs) -> bool:
    """Return whether anything on the grid of ``ct_iso`` is wanted."""
    return wanted.iso or wanted.derived or wanted.array != "none"


def write_products(run: Run, volume: Volume) -> Products:
    """Write everything that is wanted of ``volume`` but ``ct.json``."""
    issues: list[Issue] = []
    grid = _grid(run, volume, issues)
    job = run.job
    case = Case(
        volume, job.wanted, job.settings, job.study, job.series, job.revision, job.made_at, job.settings_digest(),
        job.out, run.number, grid,
    )  # fmt: skip
    with Writing(wanted_writers(job.wanted)) as beside:
        beside.begin(Stage.VOLUME, case)
        if grid is not None:
            beside.begin(Stage.RESAMPLED, _resampled(run, case, grid))
        status, reasons, case = _lungs(run, case)
        with run.step("write"):
            beside.begin(Stage.LUNGS, case)
            run.outputs.extend(path.name for path in beside.finish())
    issues.extend(_remarks(case))
    return Products(status, reasons, grid, tuple(issues))


def _grid(run: Run, volume: Volume, issues: list[Issue], *, most_voxels: int = 1 << 30) -> Grid | None:
    """Return the grid of ``ct_iso`` if anything on it is wanted and a machine can hold it."""
    if not _resampling(run.job.wanted):
        return None
    grid = target_grid(volume.grid, run.job.settings)
    if math.prod(grid.shape) <= most_voxels:
        return grid
    text = f"not resampled: {' x '.join(map(str, grid.shape))} voxels are more than {most_voxels}"
    issues.append(Issue("RESAMPLED_TOO_LARGE", Severity.INFO, text))
    return None


def _resampled(run: Run, case: Case, grid: Grid) -> Case:
    """Return ``case`` with the resampled volume, which its writers alone are to hold."""
    from ctnode.ct.resample import resample

    with run.step("resample"):
        voxels = resample(case.volume.voxels, case.volume.grid, grid, method=case.settings.interpolation)
    return replace(case, resampled=voxels)


def _lungs(run: Run, case: Case) -> tuple[LungStatus, tuple[str, ...], Case]:
    """Segment and measure the lungs if they are wanted; return their status, reasons and ``case`` with them."""
    volume = case.volume
    if not case.wanted.lungs:
        return LungStatus.NOT_RUN, ("not wanted (outputs.lungs)",), case
    if volume.unit != HU:
        return LungStatus.NOT_RUN, (f"the values are in {volume.unit}, not HU",), case
    if case.number > 1:
        return LungStatus.NOT_RUN, ("lungs are looked for in the main volume of a series",), case
    reasons = tuple(issue.action for issue in volume.issues if issue.code in UNMEASURABLE)
    if reasons:
        return LungStatus.NOT_RUN, reasons, case
    with run.step("lungs"):
        from ctnode.ct.lungs import segment

        lungs = segment(volume, run.job.lungs)
    if lungs.status is LungStatus.NOT_RUN:
        return lungs.status, lungs.reasons, case
    with run.step("measure"):
        from ctnode.ct.measure import measure

        measurements = measure(volume, lungs)
    return lungs.status, lungs.reasons, replace(case, lungs=lungs, measurements=measurements)


def _remarks(case: Case) -> Iterator[Issue]:
    """Yield in what seg.dcm differs from the mask and from its source."""
    if case.mask is None or case.wanted.seg == "none":
        return
    from ctnode.results.objects import has_frame_of_reference
    from ctnode.results.seg import SAMPLED_BACK, is_mapped

    if not is_mapped(case.volume):
        text = f"{SAMPLED_BACK}, by the nearest voxels; seg.dcm is not voxel by voxel that of lungs.nii.gz"
        yield Issue("SEG_SAMPLED_BACK", Severity.INFO, text)
    if not has_frame_of_reference(case.volume.header):
        text = "the images have no FrameOfReferenceUID; seg.dcm has one that is derived from their series"
        yield Issue("FRAME_OF_REFERENCE_DERIVED", Severity.INFO, text)


def target_grid(grid: Grid, settings: Pipeline) -> Grid:
    """Return the grid of ``ct_iso``: of ``size`` where there is one, else of ``spacing_mm``, or the scan's own."""
    from ctnode.ct.resample import isotropic_grid, sized_grid, spaced_grid

    if settings.size:
        columns, rows, slices = settings.size
        return sized_grid(grid, (slices, rows, columns))
    if settings.spacing_mm == "keep":
        return grid
    if isinstance(settings.spacing_mm, tuple):
        columns_mm, rows_mm, slices_mm = settings.spacing_mm
        return spaced_grid(grid, (slices_mm, rows_mm, columns_mm))
    return isotropic_grid(grid, settings.spacing_mm)
