"""All writers of results together, and the whole of ``ctnode process`` beside the textbook that writes nothing.

``python bench/results.py [--slices 300] [--pairs 3] [--whole] [--only-ours]`` makes a synthetic chest of 512 x 512
pixels. First, in a process of its own, it reads, resamples, segments and measures it, and then runs every writer that
is available with the default configuration (the list is that of ``ctnode.results.writers``), as the pipeline does but
with nothing computed beside them, so that all of their time shows: wall-clock seconds, seconds of CPU, and the peak of
resident memory above what the process held before (volume, mask, resampled volume). Then each writer alone.

With ``--whole``: in turn ``ctnode process`` with every output and the textbook of ``bench/pipeline.py``, with seconds
and the peak of the memory of all processes of a run together (PSS, looked at every 50 ms).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.pipeline import TEXTBOOK

WRITERS = """
import dataclasses, json, resource, shutil, sys, time
from datetime import UTC, datetime
from pathlib import Path
from ctnode.config import Outputs, Pipeline
from ctnode.ct.lungs import segment
from ctnode.ct.measure import measure
from ctnode.ct.resample import resample
from ctnode.ct.select import candidates
from ctnode.ct.source import read_frames
from ctnode.ct.volume import build
from ctnode.flow.products import preload, target_grid
from ctnode.ops.process import peak_bytes, reset_peak
from ctnode.results.case import Case, Stage
from ctnode.results.writers import wanted_writers
from ctnode.results.writing import Writing

source, out = Path(sys.argv[1]), Path(sys.argv[2])
frames, _ = read_frames(sorted(source.iterdir()))
volume = build(candidates(frames, [])[0].frames, [], [frame.digest for frame in frames])
wanted, settings = Outputs(), Pipeline()
preload(wanted)
lungs = segment(volume)
grid = target_grid(volume.grid, settings)
case = Case(
    volume, wanted, settings, "1.2.3", "1.2.4", 1, datetime(2020, 1, 1, tzinfo=UTC), "0" * 12, out, 1, grid,
    lungs=lungs, measurements=measure(volume, lungs),
)
with_voxels = dataclasses.replace(case, resampled=resample(volume.voxels, volume.grid, grid))
of_stage = {Stage.VOLUME: case, Stage.RESAMPLED: with_voxels, Stage.LUNGS: case}

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def fresh():
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()

fresh()
before = resident()
reset_peak()
started, used = time.perf_counter(), time.process_time()
with Writing(wanted_writers(wanted)) as writing:
    for stage in Stage:
        writing.begin(stage, of_stage[stage])
    files = writing.finish()
wall, cpu, peak = time.perf_counter() - started, time.process_time() - used, peak_bytes()
alone = {}
for writer in wanted_writers(wanted):
    here = of_stage[writer.AFTER]
    if writer.available(here):
        begun, spent = time.perf_counter(), time.process_time()
        writer.write(here)
        alone[writer.__name__.rpartition(".")[2]] = (time.perf_counter() - begun, time.process_time() - spent)
sizes = sum(path.stat().st_size for path in files)
print(json.dumps({
    "wall_s": wall, "cpu_s": cpu, "above_mib": (peak - before) / 1048576, "held_mib": before / 1048576,
    "files": len(files), "mib": sizes / 1048576, "alone": alone,
}))
"""


class Watch(threading.Thread):
    """Looks at the memory of a process and all that it started."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self.peak_mib, self.ended = pid, 0.0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            self.peak_mib = max(self.peak_mib, sum(pss_kib(pid) for pid in family(self._pid)) / 1024)


def family(pid: int) -> list[int]:
    """Return ``pid`` and its descendants."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def measured(command: list[str]) -> tuple[float, float]:
    """Run a command; return seconds and the peak of the memory of all its processes in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watch = Watch(process.pid)
    watch.start()
    code = process.wait()
    took = time.perf_counter() - started
    watch.ended.set()
    watch.join()
    if code:
        raise SystemExit(f"{command[:4]} ended with {code}")
    return took, watch.peak_mib


def writers(source: Path, out: Path, runs: int) -> None:
    for number in range(runs):
        done = subprocess.run(
            [sys.executable, "-c", WRITERS, str(source), str(out)], check=True, capture_output=True, text=True
        )
        found = json.loads(done.stdout)
        print(
            f"run {number + 1}: all writers {found['wall_s']:.2f} s wall, {found['cpu_s']:.2f} s CPU, "
            f"{found['above_mib']:.0f} MiB above the {found['held_mib']:.0f} MiB held before; "
            f"{found['files']} files of {found['mib']:.0f} MiB"
        )
    for name, (wall, cpu) in sorted(found["alone"].items(), key=lambda item: -item[1][0]):
        print(f"    {name:14s} alone {wall:6.2f} s wall {cpu:6.2f} s CPU")


def whole(source: Path, out: Path, pairs: int, *, only_ours: bool) -> None:
    rows = []
    for pair in range(pairs):
        shutil.rmtree(out, ignore_errors=True)
        ours = measured([sys.executable, "-m", "ctnode", "process", str(source), "--out", str(out)])
        print(f"pair {pair + 1}: process, all outputs      {ours[0]:7.2f} s {ours[1]:7.0f} MiB", flush=True)
        if only_ours:
            continue
        textbook = measured([sys.executable, "-c", TEXTBOOK, str(source)])
        print(f"pair {pair + 1}: textbook, writes nothing  {textbook[0]:7.2f} s {textbook[1]:7.0f} MiB", flush=True)
        rows.append((ours[0] / textbook[0], ours[1] / textbook[1]))
    if rows:
        time_share, memory_share = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"median over pairs: {time_share:.2f} of the textbook's time with {memory_share:.2f} of its memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="measure ctnode process beside the textbook too")
    parser.add_argument("--only-ours", action="store_true", help="leave the textbook out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        source, out = Path(place, "in"), Path(place, "out")
        source.mkdir()
        voxels, _, grid = chest((options.slices, 512, 512), (300.0 / options.slices, 0.7, 0.7))
        study = "1.2.826.0.1.3680043.8.498.9"
        write_series(source, voxels, grid, study_uid=study, series_uid=f"{study}.1")
        del voxels
        print(f"{options.slices} slices of 512 x 512, {os.cpu_count()} cores")
        writers(source, out, options.pairs)
        if options.whole:
            whole(source, out, options.pairs, only_ours=options.only_ours)


if __name__ == "__main__":
    main()
