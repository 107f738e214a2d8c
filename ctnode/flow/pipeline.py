"""The pipeline of one series: named steps from files to a results folder, each timed, none of them guessing.

The caller gives an empty folder and publishes it; nothing here knows where results live. Bad data never raises: a
refusal becomes a report with status REFUSED and a ``ct.json`` that says why.
"""

from __future__ import annotations

import hashlib
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np

from ctnode import __version__
from ctnode.config import Pipeline
from ctnode.ct.grid import Grid, Volume
from ctnode.ct.lungs import Lungs, segment
from ctnode.ct.measure import measure
from ctnode.ct.resample import isotropic_grid, resample, resample_labels
from ctnode.ct.select import choose
from ctnode.ct.source import Frame, read_frames
from ctnode.ct.volume import HU, build
from ctnode.ops.durable import fsync_directory
from ctnode.results.nifti import write_nifti
from ctnode.results.png import write_lungs, write_preview
from ctnode.results.report import write_report
from ctnode.results.sidecar import write_json
from ctnode.words import Issue, LungStatus, Refusal, Severity, VolumeReport, VolumeStatus

STEPS: Final = ("select", "decode", "resample", "lungs", "measure", "write")

# A series that is refused with one of these codes never was a volume; its report carries volume 0.
_NO_VOLUME: Final = frozenset({"NO_CT_IMAGES", "NO_FILES"})


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
    """

    study: str
    series: str
    revision: int
    made_at: datetime
    out: Path
    settings: Pipeline
    on_step: Callable[[str], None] = noop


def process_series(
    files: Sequence[Path],
    *,
    study: str,
    series: str,
    revision: int,
    made_at: datetime,
    out: Path,
    settings: Pipeline,
    on_step: Callable[[str], None] = noop,
) -> VolumeReport:
    """Turn the files of one series, in any order, into the result files in ``out``; see ``Job`` for the rest."""
    job = Job(study, series, revision, made_at, out, settings, on_step)
    started = time.perf_counter()
    frames, faults = read_frames(files)
    return process_frames(frames, faults, job, read_s=time.perf_counter() - started)


def process_frames(frames: Sequence[Frame], faults: Sequence[Issue], job: Job, *, read_s: float = 0.0) -> VolumeReport:
    """Do the same for headers that are read already; ``read_s`` counts to the first step."""
    run = _Run(job, list(faults))
    run.seconds["select"] = read_s
    digests = [frame.digest for frame in frames]
    try:
        if not frames:
            raise Refusal("the series holds no readable image", code="NO_FILES")
        with run.step("select"):
            chosen = choose(frames, run.issues)
        with run.step("decode"):
            volume = build(chosen, run.issues, digests)
    except Refusal as refusal:
        return run.refused(refusal, digests)
    return run.results(volume, len(frames))


@dataclass(slots=True)
class _Run:
    """One series on its way: what was noticed, how long each step took, what is written."""

    job: Job
    issues: list[Issue]
    seconds: dict[str, float] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.job.on_step(name)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def path(self, name: str) -> Path:
        """Return the place of an output and list it."""
        self.outputs.append(name)
        return self.job.out / name

    def refused(self, refusal: Refusal, digests: Sequence[str]) -> VolumeReport:
        self.issues.append(Issue(refusal.code, Severity.ERROR, str(refusal)))
        with self.step("write"):
            own = {
                **self._provenance(VolumeStatus.REFUSED, self.issues),
                "input_digest": hashlib.sha256("\n".join(sorted(set(digests))).encode()).hexdigest(),
                "source_images": len(digests),
            }
            write_json(self.path("ct.json"), {**_SOFTWARE, "ctnode": own})
            self._sync()
        report = self._report(VolumeStatus.REFUSED, tuple(self.issues), LungStatus.NOT_RUN, ())
        return report if refusal.code not in _NO_VOLUME else _without_volume(report)

    def results(self, volume: Volume, sources: int) -> VolumeReport:
        iso_grid = isotropic_grid(volume.grid, self.job.settings.spacing_mm)
        with ThreadPoolExecutor(1) as beside:
            # Compression needs one core and releases the interpreter, so it runs beside the steps that follow.
            native = beside.submit(
                write_nifti, self.path("ct.nii.gz"), volume.voxels, volume.grid, description="CT in HU"
            )
            with self.step("resample"):
                iso_voxels = resample(volume.voxels, volume.grid, iso_grid)
            iso = beside.submit(
                write_nifti, self.path("ct_iso.nii.gz"), iso_voxels, iso_grid, description="CT in HU, isotropic"
            )
            # From here on only the writer holds the resampled volume, and lets it go when it is written.
            del iso_voxels
            with self.step("lungs"):
                lungs = _lungs(volume)
            if lungs.status is not LungStatus.NOT_RUN:
                self._measure(volume, lungs)
            with self.step("write"):
                write_preview(self.path("preview.png"), volume)
                if lungs.status not in (LungStatus.NOT_RUN, LungStatus.NO_LUNGS):
                    self._write_lungs(volume, lungs, iso_grid)
                native.result()
                iso.result()
                self.outputs.append("ct.json")
                self._sync()
        with self.step("write"):
            write_json(self.job.out / "ct.json", self._sidecar(volume, iso_grid, lungs, sources))
            self._sync()
        return self._report(volume.status, volume.issues, lungs.status, lungs.reasons)

    def _measure(self, volume: Volume, lungs: Lungs) -> None:
        with self.step("measure"):
            measurements = measure(volume, lungs)
        with self.step("write"):
            write_json(self.path("measurements.json"), measurements.as_json())
            write_report(
                self.path("report.dcm"), volume, lungs, measurements,
                study=self.job.study, series=self.job.series, revision=self.job.revision, made_at=self.job.made_at,
                settings_digest=self._settings_digest(),
            )  # fmt: skip

    def _write_lungs(self, volume: Volume, lungs: Lungs, iso_grid: Grid) -> None:
        what = "0 background, 1 right lung, 2 left lung, 3 airway"
        write_nifti(self.path("lungs.nii.gz"), lungs.labels, volume.grid, description=what)
        labels = resample_labels(lungs.labels, volume.grid, iso_grid)
        write_nifti(self.path("lungs_iso.nii.gz"), labels, iso_grid, description=what)
        write_lungs(self.path("lungs.png"), volume, lungs)

    def _sync(self) -> None:
        for entry in os.scandir(self.job.out):
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_directory(self.job.out)

    def _settings_digest(self) -> str:
        return hashlib.sha256(self.job.settings.model_dump_json().encode()).hexdigest()[:12]

    def _provenance(self, status: VolumeStatus, issues: Sequence[Issue]) -> dict[str, object]:
        return {
            "status": str(status),
            "issues": [
                {
                    "code": issue.code,
                    "severity": str(issue.severity),
                    "frames": list(issue.frames),
                    "action": issue.action,
                }
                for issue in issues
            ],
            "revision": self.job.revision,
            "settings": {"spacing_mm": self.job.settings.spacing_mm, "digest": self._settings_digest()},
            "seconds": _rounded(self.seconds),
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def _sidecar(self, volume: Volume, iso_grid: Grid, lungs: Lungs, sources: int) -> dict[str, object]:
        own = {
            **self._provenance(volume.status, volume.issues),
            "unit": volume.unit,
            "geometry": {"native": _geometry(volume.grid), "isotropic": _geometry(iso_grid)},
            "dtype": str(volume.voxels.dtype),
            "padding_voxels": 0 if volume.padding is None else int(np.count_nonzero(volume.padding)),
            "input_digest": volume.input_digest,
            "source_images": sources,
            "lungs": {"status": str(lungs.status), "reasons": list(lungs.reasons)},
        }
        return {**volume.technique, **_SOFTWARE, "ctnode": own}

    def _report(
        self, status: VolumeStatus, issues: tuple[Issue, ...], lungs: LungStatus, reasons: tuple[str, ...]
    ) -> VolumeReport:
        return VolumeReport(
            study=self.job.study,
            series=self.job.series,
            volume=1,
            status=status,
            issues=issues,
            lungs=lungs,
            reasons=reasons,
            directory=str(self.job.out),
            seconds=_rounded(self.seconds),
            peak_rss_bytes=peak_rss_bytes(),
            outputs=tuple(sorted(self.outputs)),
        )


_SOFTWARE: Final = {"ConversionSoftware": "ctnode", "ConversionSoftwareVersion": __version__}


def _without_volume(report: VolumeReport) -> VolumeReport:
    return VolumeReport(
        report.study, report.series, 0, report.status, report.issues, report.lungs, report.reasons, report.directory,
        report.seconds, report.peak_rss_bytes, report.outputs,
    )  # fmt: skip


def _lungs(volume: Volume) -> Lungs:
    if volume.unit == HU:
        return segment(volume)
    return Lungs(
        labels=np.zeros((0, 0, 0), dtype=np.uint8),
        status=LungStatus.NOT_RUN,
        reasons=(f"the values are in {volume.unit}, not HU",),
        quality={},
        threshold_hu=float("nan"),
    )


def _geometry(grid: Grid) -> dict[str, object]:
    return {
        "shape_zyx": list(grid.shape),
        "spacing_zyx_mm": list(grid.spacing_mm),
        "affine_lps_mm": grid.affine.tolist(),
    }


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


def peak_rss_bytes() -> int:
    """Return the largest resident memory this process ever had (Linux counts kibibytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
