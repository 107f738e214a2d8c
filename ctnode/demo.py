"""The demonstration: one node, one chest CT by real C-STORE, one second node that receives the result."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from ctnode.archive import catalog, outbox, timeline
from ctnode.archive.database import Database
from ctnode.archive.header import read_meta
from ctnode.archive.layout import Layout
from ctnode.ops.role import read_reports
from ctnode.wire.sender import Destination, Outcome, send
from ctnode.words import CtnodeError, DeliveryState, ExitCode, RevisionState, Unavailable

QUIET_S: Final = 2
START_S: Final = 60.0
WORK_S: Final = 600.0
POLL_S: Final = 0.1
STOP_S: Final = 60.0
SLICE_MM: Final = 4.0
_ENDED: Final = frozenset({RevisionState.DONE, RevisionState.FAILED, RevisionState.KEPT})
_ON_THE_WAY: Final = frozenset({DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.RETRY})

_CONFIG: Final = """[node]
ae_title = "{title}"
port = 0
[storage]
root = "data"
reserve_mb = 100
[web]
port = 0
[completion]
quiet_s = {quiet_s}
"""
_TARGET: Final = """[[targets]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
"""


@dataclass(frozen=True, slots=True)
class _Site:
    """One of the two nodes of the demonstration."""

    folder: Path
    config_file: Path
    layout: Layout


def show(directory: Path | None, *, keep: bool, slices: int) -> int:
    """Run the demonstration and say where everything lies; returns the exit code.

    Raises
    ------
    Unavailable
        If a node does not start.
    """
    place = Path(tempfile.mkdtemp(prefix="ctnode-demo-"))
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        with _timed(seconds, "make the images"):
            files = _files_of(directory) if directory is not None else _synthetic_chest(place / "sent", slices)
        click.echo(f"images: {len(files)} files in {directory or place / 'sent'}")
        with _timed(seconds, "start two nodes"):
            pacs = _site(place / "pacs", "PACS", "")
            for role in ("keep", "receive"):
                stack.enter_context(_running(pacs, role))
            pacs_port = _port(pacs)
            node = _site(place / "node", "CTNODE", _TARGET.format(port=pacs_port))
            stack.enter_context(_running(node, "run"))
            port = _port(node)
        click.echo(f"node: CTNODE at 127.0.0.1:{port}; its results go to PACS at 127.0.0.1:{pacs_port}")
        with _timed(seconds, "push by C-STORE"):
            sent = _push(Destination("node", "CTNODE", "127.0.0.1", port), files)
        click.echo(f"pushed: {sent} of {len(files)} acknowledged, each durable before its 0000H")
        with Database(node.layout.database, readonly=True) as index:
            found = _follow(index, seconds)
            arrived = _await_deliveries(index, found, seconds)
            _say(node, pacs, index, found, seconds)
        if keep:
            _stay(port, _page(node))
    is_good = sent == len(files) and arrived and all(series.state is not RevisionState.FAILED for series in found)
    return ExitCode.OK if is_good else ExitCode.FINDINGS


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - began


def _synthetic_chest(folder: Path, slices: int) -> list[Path]:
    from ctnode.ct.phantom import chest
    from ctnode.ct.phantom_dicom import write_series

    folder.mkdir(parents=True)
    spacing_mm = SLICE_MM * 60 / max(slices, 1)
    voxels, _, grid = chest((slices, 512, 512), (spacing_mm, 0.75, 0.75))
    stamp = time.time_ns()
    return write_series(folder, voxels, grid, study_uid=f"2.25.{stamp}", series_uid=f"2.25.{stamp + 1}")


def _files_of(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if path.is_file() and _is_part_10(path)]


def _is_part_10(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            return read_meta(file.read(1 << 16)) is not None
        except CtnodeError:
            return False


def _site(folder: Path, title: str, more: str) -> _Site:
    folder.mkdir()
    config_file = folder / "config.toml"
    config_file.write_text(_CONFIG.format(title=title, quiet_s=QUIET_S) + more, encoding="utf-8")
    root = folder / "data"
    return _Site(folder, config_file, Layout(root, root / "results"))


@contextmanager
def _running(site: _Site, role: str) -> Iterator[None]:
    """Run a command of ctnode for the time of the block; its log goes to a file beside its configuration."""
    with (site.folder / f"{role}.log").open("wb") as log_file:
        command = [sys.executable, "-P", "-m", "ctnode", "--config", str(site.config_file), role]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(site: _Site) -> int:
    """Wait until the node listens and is ready, and return its port."""

    def look() -> int | None:
        reports = {report.role: report for report in read_reports(site.layout.run)}
        listener, keeper = reports.get("receive"), reports.get("keep")
        if listener is None or keeper is None or {listener.state, keeper.state} != {"ready"}:
            return None
        return int(listener.counters["port"])

    port = _poll(look, START_S)
    if port is None:
        raise Unavailable("a node of the demonstration does not start", hint=f"see the logs in {site.folder}")
    return port


def _poll(look: Callable[[], int | None], limit_s: float) -> int | None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(POLL_S)
    return None


def _push(destination: Destination, files: Sequence[Path]) -> int:
    sent = 0
    with click.progressbar(length=len(files), label="push", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        for result in send(destination, "DEMO", files, START_S):
            sent += result.outcome is Outcome.SENT
            bar.update(1)
    return sent


def _follow(index: Database, seconds: dict[str, float]) -> tuple[catalog.Series, ...]:
    """Tell each change of state until every series has ended."""
    began, told = time.monotonic(), dict[int, RevisionState]()
    while True:
        found = catalog.listing(index, limit=1000)
        for series in found:
            if told.get(series.id) is not series.state:
                told[series.id] = series.state
                click.echo(
                    f"  {time.monotonic() - began:5.1f} s  {series.modality} {series.name[-24:]}: {series.state}"
                )
        if (found and all(series.state in _ENDED for series in found)) or time.monotonic() - began > WORK_S:
            break
        time.sleep(POLL_S)
    for series in found:
        at = {entry.kind: entry.at for entry in timeline.read(index, series.id)}
        if "complete" in at and "done" in at:
            seconds["wait until complete"] = max(seconds.get("wait until complete", 0.0), at["complete"] - at["opened"])
            seconds["process"] = seconds.get("process", 0.0) + at["done"] - at["attempt"]
    return found


def _await_deliveries(index: Database, found: Sequence[catalog.Series], seconds: dict[str, float]) -> bool:
    with _timed(seconds, "deliver to the second node"):
        _poll(lambda: None if any(d.state in _ON_THE_WAY for d in _deliveries(index, found)) else 1, START_S)
    return all(delivery.state is DeliveryState.SENT for delivery in _deliveries(index, found))


def _deliveries(index: Database, found: Sequence[catalog.Series]) -> list[outbox.Delivery]:
    return [delivery for series in found for delivery in outbox.of_series(index, series.id)]


def _say(node: _Site, pacs: _Site, index: Database, found: Sequence[catalog.Series], seconds: dict[str, float]) -> None:
    for series in found:
        folder = node.layout.result_directory(series.study, series.uid, series.split, series.revision)
        done = [entry.text for entry in timeline.read(index, series.id) if entry.kind == "done"]
        click.echo(f"\n{series.modality} {series.name}: {series.state} {series.reason}".rstrip())
        for line in done[-1:]:
            click.echo(f"  {line}")
        for file in sorted(folder.glob("*")):
            click.echo(f"  {file}  {file.stat().st_size / 1e6:.2f} MB")
    for delivery in _deliveries(index, found):
        click.echo(f"\n{delivery.kind} to {delivery.target}: {delivery.state}")
    for file in sorted(pacs.layout.root.rglob("*.dcm")):
        click.echo(f"  arrived as {file}")
    click.echo("\nseconds by stage")
    for stage, spent in seconds.items():
        click.echo(f"  {stage:<28} {spent:6.1f}")
    click.echo(f"\neverything lies in {node.folder.parent}; look further with")
    click.echo(f"  ctnode --config {node.config_file} series list")
    click.echo("research use only, not a medical device")


def _page(site: _Site) -> str:
    """Return where the page of a node is, empty if it has none."""
    found = [report.counters.get("port") for report in read_reports(site.layout.run) if report.role == "web"]
    return f"http://127.0.0.1:{found[0]}" if found and found[0] else ""


def _stay(port: int, page: str) -> None:
    where = f", its page at {page}" if page else ""
    click.echo(f"the node runs on at 127.0.0.1:{port}{where}; Ctrl-C ends it")
    try:
        signal.pause()
    except KeyboardInterrupt:
        click.echo("")
