"""From a volume to the files that were asked for; whatever takes long to import is imported when it is needed."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ctnode.config import Outputs, Pipeline
from ctnode.ct.grid import Grid, Volume
from ctnode.ct.volume import HU, UNMEASURABLE
from ctnode.flow.job import Run
from ctnode.ops.durable import write_durable
from ctnode.results.nifti import write_nifti
from ctnode.results.sidecar import write_json
from ctnode.words import Issue, LungStatus, Severity

if TYPE_CHECKING:
    from ctnode.ct.lungs import Lungs


@dataclass(frozen=True, slots=True)
class Products:
    """What was made beside the files.

    Parameters
    ----------
    lungs, reasons
        The status of the lungs, with what speaks against OK.
    grid
        That of ``ct_iso``, None if nothing was resampled.
    png_offset_hu
        What was added to HU in ``slices.zip``, None if it was not written.
    issues
        Why something that is wanted was not made.
    """

    lungs: LungStatus
    reasons: tuple[str, ...]
    grid: Grid | None
    png_offset_hu: int | None
    issues: tuple[Issue, ...] = ()


def preload(wanted: Outputs) -> None:
    """Import the modules that ``write_products`` will need for ``wanted``."""
    modules = []
    if wanted.iso or wanted.array != "none":
        modules += ["scipy.sparse", "ctnode.ct.resample"]
    if wanted.lungs:
        modules += ["ctnode.ct.lungs", "ctnode.ct.measure", "ctnode.results.report"]
    if wanted.preview or wanted.lungs:
        modules.append("ctnode.results.png")
    for name in modules:
        importlib.import_module(name)


def write_products(run: Run, volume: Volume) -> Products:
    """Write everything that is wanted of ``volume`` but ``ct.json``."""
    with ThreadPoolExecutor(1) as beside:
        # Compression needs one core and releases the interpreter, so it runs beside the steps that follow.
        waiting = [
            beside.submit(write_nifti, run.path("ct.nii.gz"), volume.voxels, volume.grid, description="CT in HU")
        ]
        issues: list[Issue] = []
        grid = _grid(run, volume, issues)
        if grid is not None:
            _resample(run, volume, grid, lambda task: waiting.append(beside.submit(task)))
        lungs = _lungs(run, volume, grid)
        offset_hu = _pictures(run, volume)
        with run.step("write"):
            for task in waiting:
                task.result()
    return Products(*lungs, grid, offset_hu, tuple(issues))


def _grid(run: Run, volume: Volume, issues: list[Issue], *, most_voxels: int = 1 << 30) -> Grid | None:
    """Return the grid of ``ct_iso`` if anything on it is wanted and a machine can hold it."""
    if not run.job.wanted.iso and run.job.wanted.array == "none":
        return None
    grid = target_grid(volume.grid, run.job.settings)
    if math.prod(grid.shape) <= most_voxels:
        return grid
    text = f"not resampled: {' x '.join(map(str, grid.shape))} voxels are more than {most_voxels}"
    issues.append(Issue("RESAMPLED_TOO_LARGE", Severity.INFO, text))
    return None


def _resample(run: Run, volume: Volume, grid: Grid, write: Callable[[Callable[[], None]], None]) -> None:
    """Hand the resampled volume to the writer, which alone holds it from then on."""
    from ctnode.ct.resample import resample
    from ctnode.results.arrays import write_normalised

    wanted = run.job.wanted
    with run.step("resample"):
        voxels = resample(volume.voxels, volume.grid, grid, method=run.job.settings.interpolation)
    if wanted.iso:
        what = "CT in HU, isotropic" if len(set(np.round(grid.spacing_mm, 6))) == 1 else "CT in HU, resampled"
        write(partial(write_nifti, run.path("ct_iso.nii.gz"), voxels, grid, description=what))
    if wanted.array != "none" and volume.unit == HU:
        run.outputs.append(run.named("ct_norm.json"))
        write(
            partial(
                write_normalised, run.path("ct_norm.npy"), voxels, grid,
                dtype=wanted.array, clip_hu=wanted.array_clip_hu, mean=wanted.array_mean,
            )
        )  # fmt: skip


def _lungs(run: Run, volume: Volume, grid: Grid | None) -> tuple[LungStatus, tuple[str, ...]]:
    """Segment, measure and write the lungs if they are wanted; return their status and reasons."""
    if not run.job.wanted.lungs:
        return LungStatus.NOT_RUN, ("not wanted (outputs.lungs)",)
    if volume.unit != HU:
        return LungStatus.NOT_RUN, (f"the values are in {volume.unit}, not HU",)
    if run.number > 1:
        return LungStatus.NOT_RUN, ("lungs are looked for in the main volume of a series",)
    reasons = tuple(issue.action for issue in volume.issues if issue.code in UNMEASURABLE)
    if reasons:
        return LungStatus.NOT_RUN, reasons
    with run.step("lungs"):
        from ctnode.ct.lungs import segment

        lungs = segment(volume, run.job.lungs)
    if lungs.status is not LungStatus.NOT_RUN:
        _measure(run, volume, lungs)
    if lungs.status not in (LungStatus.NOT_RUN, LungStatus.NO_LUNGS):
        with run.step("write"):
            _write_lungs(run, volume, lungs, grid)
    return lungs.status, lungs.reasons


def _measure(run: Run, volume: Volume, lungs: Lungs) -> None:
    from ctnode.ct.measure import measure
    from ctnode.results.report import write_report

    with run.step("measure"):
        measurements = measure(volume, lungs)
    with run.step("write"):
        write_json(run.path("measurements.json"), measurements.as_json())
        if measurements.histogram is not None:
            write_json(run.path("histogram.json"), measurements.histogram.as_json())
            write_durable(run.path("histogram.csv"), measurements.histogram.as_csv().encode("ascii"), mode=0o644)
        write_report(
            run.path("report.dcm"), volume, lungs, measurements,
            study=run.job.study, series=run.job.series, revision=run.job.revision, made_at=run.job.made_at,
            settings_digest=run.job.settings_digest(),
        )  # fmt: skip


def _pictures(run: Run, volume: Volume) -> int | None:
    with run.step("write"):
        if run.job.wanted.preview:
            from ctnode.results.png import write_preview

            write_preview(run.path("preview.png"), volume, choice=run.job.wanted.window)
        if run.job.wanted.png16:
            from ctnode.results.arrays import png_offset_hu, write_png_slices

            offset_hu = png_offset_hu(volume.voxels)
            if offset_hu is not None:
                write_png_slices(run.path("slices.zip"), volume.voxels, offset_hu)
                return offset_hu
    return None


def _write_lungs(run: Run, volume: Volume, lungs: Lungs, iso_grid: Grid | None) -> None:
    from ctnode.results.png import write_lungs

    what = "0 background, 1 right lung, 2 left lung, 3 airway"
    write_nifti(run.path("lungs.nii.gz"), lungs.labels, volume.grid, description=what)
    if lungs.structures is not None:
        inside = "dense inside: 1 the right lung, 2 the left lung"
        write_nifti(run.path("lungs_structures.nii.gz"), lungs.structures, volume.grid, description=inside)
    if run.job.wanted.iso and iso_grid is not None:
        from ctnode.ct.resample import resample_labels

        one_hot = run.job.settings.labels == "one-hot"
        labels = resample_labels(lungs.labels, volume.grid, iso_grid, one_hot=one_hot)
        write_nifti(run.path("lungs_iso.nii.gz"), labels, iso_grid, description=what)
    write_lungs(run.path("lungs.png"), volume, lungs)


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
