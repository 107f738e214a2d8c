"""``ctnode process``: anything in, one results folder a series out; no node, no database, no configuration."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ctnode.archive.layout import path_part
from ctnode.config import Config
from ctnode.ct.source import Frame, in_order, read_file
from ctnode.flow.job import Job
from ctnode.flow.unpack import Found, Skipped, find, is_part10
from ctnode.flow.workshop import Workshop
from ctnode.ops.durable import fsync_directory
from ctnode.words import Issue, Refusal, Severity, Unavailable, VolumeReport

# Without a readable time in the source, a time that is nobody's: results must not depend on when they were made.
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DICOMDIR: Final = "1.2.840.10008.1.3.10"
_NOUID_LENGTH: Final = len("nouid-") + 32


@dataclass(frozen=True, slots=True)
class Progress:
    """How far ``process`` is.

    Parameters
    ----------
    phase
        ``read`` while files are looked at, ``series`` while results are made, ``skipped`` for each file left aside.
    done, total
        Files or series; the total of files is 0 as long as nobody knows it.
    label
        The series and the step inside it, or the file, with why it was skipped.
    """

    phase: str
    done: int
    total: int
    label: str


@dataclass(frozen=True, slots=True)
class _Series:
    study: str
    series: str
    frames: tuple[Frame, ...]
    faults: tuple[Issue, ...]


def quiet(_progress: Progress) -> None:
    """Tell nobody how far the work is."""


def process(
    paths: Sequence[Path],
    out: Path,
    config: Config,
    on_progress: Callable[[Progress], None] = quiet,
    workshop: Workshop | None = None,
) -> Iterator[VolumeReport]:
    """Process everything under ``paths`` into ``out/<study>/<series>/`` and yield one report a volume.

    Files that are no DICOM, DICOMDIRs and damaged zips are told to ``on_progress`` as ``skipped``. A file that begins
    as DICOM but cannot be read counts against each series of its folder, since it may have belonged to any of them.
    Results are made in ``workshop`` (default: one of its own, by the limits of ``config.worker``).

    Raises
    ------
    Unavailable
        If a folder that is no result of ours stands where a result has to go.
    """
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if workshop is None:
            workshop = stack.enter_context(Workshop(config.worker, config.outputs))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="ctnode-"))
        collected = _collect(paths, Path(scratch), on_progress)
        for number, series in enumerate(collected):

            def on_step(step: str, number: int = number, series: _Series = series) -> None:
                on_progress(Progress("series", number, len(collected), f"{series.series} {step}"))

            yield from _publish(series, out, config, on_step, workshop)
        on_progress(Progress("series", len(collected), len(collected), ""))


def _collect(paths: Sequence[Path], scratch: Path, on_progress: Callable[[Progress], None]) -> list[_Series]:
    groups: dict[tuple[str, str, str], list[Frame]] = defaultdict(list)
    folders: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    faults: dict[str, list[Issue]] = defaultdict(list)
    with ThreadPoolExecutor(2) as pool:
        for count, (found, read) in enumerate(pool.map(_read, find(paths, scratch)), start=1):
            if isinstance(read, tuple):
                study, uid = read[0].study_uid, read[0].series_uid
                key = study, uid, "" if study and uid else found.folder
                groups[key].extend(read)
                folders[key].add(found.folder)
                on_progress(Progress("read", count, 0, str(found.path)))
            else:
                if isinstance(read, Issue):
                    faults[found.folder].append(read)
                on_progress(Progress("skipped", count, 0, read.action if isinstance(read, Issue) else read.reason))
    used = {folder for found_in in folders.values() for folder in found_in}
    for folder in faults.keys() - used:
        groups["", "", folder] = []
        folders["", "", folder] = {folder}
    series = [
        _series(key, frames, [fault for folder in folders[key] for fault in faults.get(folder, ())])
        for key, frames in groups.items()
    ]
    return sorted(series, key=lambda one: (one.study, one.series))


def _read(found: Found | Skipped) -> tuple[Found, tuple[Frame, ...] | Issue | Skipped]:
    if isinstance(found, Skipped):
        return Found(Path(found.name), ""), Skipped(found.name, f"{found.name}: {found.reason}")
    try:
        frames = read_file(found.path)
    except Refusal as refusal:
        if is_part10(found.path):
            return found, Issue(refusal.code, Severity.WARNING, refusal.message)
        return found, Skipped(str(found.path), f"{found.path}: no DICOM")
    if frames[0].sop_class == _DICOMDIR:
        return found, Skipped(str(found.path), f"{found.path}: DICOMDIR")
    return found, frames


def _series(key: tuple[str, str, str], frames: Sequence[Frame], faults: Sequence[Issue]) -> _Series:
    # Named by content, so that the same files give the same name wherever they lie.
    parts = sorted(frame.digest for frame in frames) + sorted(fault.action for fault in faults)
    nameless = "nouid-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    ordered = sorted(frames, key=in_order)
    return _Series(
        study=key[0] or nameless,
        series=key[1] or nameless,
        frames=tuple(ordered),
        faults=tuple(sorted(faults, key=lambda fault: fault.action)),
    )


def made_at(frames: Iterable[Frame]) -> datetime:
    """Return the latest acquisition or content time of the images as UTC, else the epoch."""
    stamps = sorted(frame.taken_at for frame in frames if frame.taken_at)
    for stamp in reversed(stamps):
        try:
            return datetime.strptime(stamp, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            continue
    return EPOCH


def _publish(
    series: _Series, out: Path, config: Config, on_step: Callable[[str], None], workshop: Workshop
) -> list[VolumeReport]:
    """Make the results under a temporary name and give them their own in one step."""
    parent = out / _folder(series.study)
    final = parent / _folder(series.series)
    if final.exists() and not (final / "ct.json").is_file():
        raise Unavailable(f"{final} is no result of ctnode and is not replaced", hint="choose another --out")
    parent.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=parent))
    aside = work.with_name(work.name + ".old")
    try:
        work.chmod(0o755)
        job = Job(
            series.study, series.series, 1, made_at(series.frames), work, config.pipeline,
            wanted=config.outputs, lungs=config.lungs,
        )  # fmt: skip
        try:
            reports = workshop.run(series.frames, series.faults, job, on_step)
        except Refusal as refusal:
            # The child imports what makes results; this process only in this case.
            from ctnode.flow.pipeline import refuse

            for left in work.iterdir():
                left.unlink()
            reports = [refuse(series.frames, series.faults, job, refusal)]
        if any(report.outputs for report in reports):
            if final.exists():
                final.rename(aside)
            work.rename(final)
            fsync_directory(parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
    fsync_directory(out)
    return [dataclasses.replace(report, directory=str(final) if report.outputs else "") for report in reports]


def _folder(uid: str) -> str:
    return uid if uid.startswith("nouid-") and len(uid) == _NOUID_LENGTH else path_part(uid)
