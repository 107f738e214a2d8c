"""The pipeline of one series: named steps from files to a results folder, each timed, none of them guessing.

The caller gives an empty folder and publishes it; nothing here knows where results live. Bad data never raises: a
refusal becomes a report with status REFUSED and a ``ct.json`` that says why.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np

from ctnode import __version__
from ctnode.config import LungMask, Outputs, Pipeline
from ctnode.ct.grid import Grid, Volume
from ctnode.ct.select import Candidate, beside, candidates, remarks
from ctnode.ct.source import Frame, read_frames
from ctnode.ct.technique import descriptions
from ctnode.ct.values import PADDING_HU
from ctnode.ct.volume import build
from ctnode.flow.job import Job, Run, noop
from ctnode.flow.products import Products, write_products
from ctnode.ops.durable import fsync_directory
from ctnode.ops.process import peak_bytes
from ctnode.results.arrays import png_offset_hu
from ctnode.results.predecessors import name_predecessors
from ctnode.results.provenance import digests, versions
from ctnode.results.sidecar import write_json
from ctnode.words import Issue, LungStatus, Refusal, Severity, VolumeReport, VolumeStatus

# A series that is refused with one of these codes never was a volume; its report carries volume 0.
_NO_VOLUME: Final = frozenset({"NO_CT_IMAGES", "NO_FILES", "OWN_RESULT"})


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
    wanted: Outputs | None = None,
    lungs: LungMask | None = None,
) -> list[VolumeReport]:
    """Turn the files of one series, in any order, into the result files in ``out``; see ``Job`` for the rest.

    There is one report for each volume that was to be converted (``pipeline.volumes``), the main one first.
    """
    job = Job(study, series, revision, made_at, out, settings, on_step, wanted or Outputs(), lungs or LungMask())
    started = time.perf_counter()
    frames, faults = read_frames(files)
    return process_frames(frames, faults, job, read_s=time.perf_counter() - started)


def process_frames(
    frames: Sequence[Frame], faults: Sequence[Issue], job: Job, *, read_s: float = 0.0
) -> list[VolumeReport]:
    """Do the same for headers that are read already; ``read_s`` counts to the first step."""
    run = _Run(job, list(faults))
    run.seconds["select"] = read_s
    sources = [frame.digest for frame in frames]
    try:
        if not frames:
            raise Refusal("the series holds no readable image", code="NO_FILES")
        with run.step("select"):
            found = candidates(frames, run.issues)
    except Refusal as refusal:
        return [run.refused(refusal, sources)]
    wanted = len(found) if job.settings.volumes == "all" else 1
    general = list(run.issues)
    reports = []
    for index in range(wanted):
        if index:
            run = _Run(job, list(general), index + 1)
        run.issues.extend(remarks(found, index, converted=wanted > 1))
        run.others = [candidate for _, candidate in beside(found, index)]
        reports.append(_convert(run, found[index], sources))
    return reports


def _convert(run: _Run, candidate: Candidate, sources: Sequence[str]) -> VolumeReport:
    try:
        if candidate.refusal is not None:
            raise candidate.refusal
        with run.step("decode"):
            volume = build(candidate.frames, run.issues, sources)
    except Refusal as refusal:
        return run.refused(refusal, sources)
    return run.results(volume, len(sources))


def refuse(frames: Sequence[Frame], faults: Sequence[Issue], job: Job, refusal: Refusal) -> VolumeReport:
    """Write what a run that was cut short would have written, had it refused the series itself."""
    return _Run(job, list(faults)).refused(refusal, [frame.digest for frame in frames])


@dataclass(slots=True)
class _Run(Run):
    """A run and how it ends; ``others`` are the other volumes of the series."""

    others: Sequence[Candidate] = ()

    def refused(self, refusal: Refusal, sources: Sequence[str]) -> VolumeReport:
        self.issues.append(Issue(refusal.code, Severity.ERROR, str(refusal)))
        number = 0 if refusal.code in _NO_VOLUME else self.number
        with self.step("write"):
            own = {
                **self._provenance(VolumeStatus.REFUSED, self.issues),
                "volume": number,
                "input_digest": hashlib.sha256("\n".join(sorted(set(sources))).encode()).hexdigest(),
                "source_images": len(sources),
            }
            write_json(self.path("ct.json"), {**_SOFTWARE, "ctnode": own})
            self._sync()
        return replace(self._report(VolumeStatus.REFUSED, tuple(self.issues), LungStatus.NOT_RUN, ()), volume=number)

    def results(self, volume: Volume, sources: int) -> VolumeReport:
        products = write_products(self, volume)
        with self.step("write"):
            # First, for the side-car tells the digests of the files as they are published.
            name_predecessors(self.job.out, self.outputs, self.job.revision)
            # Before its own name is among the outputs: it cannot hold its own digest.
            sidecar = self._sidecar(volume, products, sources)
            write_json(self.path("ct.json"), sidecar)
            self._sync()
        issues = (*volume.issues, *products.issues)
        return self._report(volume.status, issues, products.lungs, products.reasons)

    def _sync(self) -> None:
        with os.scandir(self.job.out) as entries:
            paths = [entry.path for entry in entries]
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_directory(self.job.out)

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
            "volume": self.number,
            "other_volumes": [candidate.as_json() for candidate in self.others],
            "settings": {
                "pipeline": self.job.settings.model_dump(),
                "lungs": self.job.lungs.model_dump(),
                "outputs": self.job.wanted.model_dump(),
                "digest": self.job.settings_digest(),
            },
            "versions": versions(),
            "sha256": digests(self.job.out / name for name in self.outputs),
            "seconds": _rounded(self.seconds),
            "peak_rss_bytes": peak_bytes(),
        }

    def _sidecar(self, volume: Volume, products: Products, sources: int) -> dict[str, object]:
        own = {
            **self._provenance(volume.status, (*volume.issues, *products.issues)),
            "unit": volume.unit,
            "geometry": {
                "native": _geometry(volume.grid),
                **({} if products.grid is None else {"isotropic": _geometry(products.grid)}),
            },
            "dtype": str(volume.voxels.dtype),
            "padding_value": PADDING_HU,
            "padding_voxels": 0 if volume.padding is None else int(np.count_nonzero(volume.padding)),
            "input_digest": volume.input_digest,
            "source_images": sources,
            "lungs": {"status": str(products.lungs), "reasons": list(products.reasons)},
            # None: the values are no whole numbers that 16 bits hold, so slices.zip was not written.
            **({"png16": {"offset_hu": png_offset_hu(volume.voxels)}} if self.job.wanted.png16 else {}),
        }
        words = descriptions(volume.header) if self.job.wanted.descriptions else {}
        return {**volume.technique, **words, **_SOFTWARE, "ctnode": own}

    def _report(
        self, status: VolumeStatus, issues: tuple[Issue, ...], lungs: LungStatus, reasons: tuple[str, ...]
    ) -> VolumeReport:
        return VolumeReport(
            study=self.job.study,
            series=self.job.series,
            volume=self.number,
            status=status,
            issues=issues,
            lungs=lungs,
            reasons=reasons,
            directory=str(self.job.out),
            seconds=_rounded(self.seconds),
            peak_rss_bytes=peak_bytes(),
            outputs=tuple(sorted(self.outputs)),
        )


_SOFTWARE: Final = {"ConversionSoftware": "ctnode", "ConversionSoftwareVersion": __version__}


def _geometry(grid: Grid) -> dict[str, object]:
    return {
        "shape_zyx": list(grid.shape),
        "spacing_zyx_mm": list(grid.spacing_mm),
        "affine_lps_mm": grid.affine.tolist(),
    }


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}
