"""The lung segmentation beside the textbook one, each as a process of its own, in turn.

``python bench/lungs.py [--slices 300 1000] [--pairs 3] [--only-ours]`` makes two synthetic chests of 512 x 512 pixels
with a known truth, a slim one with small lungs (``ctnode.ct.phantom``) and an adult whose body fills the field of view,
with lungs of five and a half litres that touch, vessels, bowel gas and couch, and runs on each, alternating,

* ours: ``ctnode.ct.lungs.segment`` with the default settings, and
* the textbook: ``scipy.ndimage.zoom`` to 1 mm (of order 3, and of order 1), threshold at -320 HU, labels with
  scikit-image, the corner voxel as outside, per slice the largest solid kept and the rest filled, the largest pocket.

It prints wall-clock seconds and seconds of CPU of the segmentation alone (reading the volume and importing come
before), the peak of resident memory above what the process held with the volume loaded, and the Dice of both lungs
against the truth (of the textbook on its own 1 mm grid), then the ratios. With several counts of slices it shows
whether the cost is linear: seconds for 100 slices.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ctnode.ct.grid import Grid
from ctnode.ct.phantom import chest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.lung_chest import Chest
from tests.lung_phantoms import circle, scan, with_noise

Phantom = tuple[np.ndarray, np.ndarray, Grid]

COVERED_MM = 300.0
PIXEL_MM = 0.7
# The adult: a body of 375 mm in a field of view of 420 mm, painted in parts to hold few slices in float32. Of the usual
# pixels these make the finest work grid.
ADULT = Chest(fat=30.0, junction=0.8, colon_gas=True)
ADULT_PIXEL_MM = 0.82
PART_SLICES = 50
NOISE_HU = 18.0

COMMON = """
import json, sys, time
from pathlib import Path
import numpy as np
folder = Path(sys.argv[1])
voxels, truth = np.load(folder / "voxels.npy"), np.load(folder / "truth.npy")
affine = np.load(folder / "affine.npy")

def resident():
    # The peak of this program; that of getrusage starts with the peak of the process that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024

def dice(found, truth):
    return 2.0 * float(np.count_nonzero(found & truth)) / (np.count_nonzero(found) + np.count_nonzero(truth))

def told(wall, cpu, before, peak, score):
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "above_mib": peak - before, "dice": score}))
"""

OURS = (
    COMMON
    + """
from pydicom import Dataset
from ctnode.ct.grid import Grid, Volume
from ctnode.ct.lungs import segment
from ctnode.words import VolumeStatus
volume = Volume(
    voxels, Grid(voxels.shape, affine), None, "HU", VolumeStatus.EXACT, (), Dataset(), ("",) * len(voxels), "0" * 64
)
before, started, used = resident(), time.perf_counter(), time.process_time()
found = segment(volume)
wall, cpu, peak = time.perf_counter() - started, time.process_time() - used, resident()
told(wall, cpu, before, peak, dice((found.labels == 1) | (found.labels == 2), (truth == 1) | (truth == 2)))
"""
)

TEXTBOOK = (
    COMMON
    + """
import scipy.ndimage
from skimage import measure
order = int(sys.argv[2])
spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
before, started, used = resident(), time.perf_counter(), time.process_time()
factors = np.round(np.array(voxels.shape) * spacing) / voxels.shape
image = scipy.ndimage.zoom(voxels, factors, mode="nearest", order=order)
solid = np.array(image > -320, dtype=np.int8) + 1
labels = measure.label(solid)
solid[labels[0, 0, 0] == labels] = 2
for plane in solid:
    parts = measure.label(plane - 1)
    counts = np.bincount(parts.ravel())
    counts[0] = 0
    if counts.max() > 0:
        plane[parts != counts.argmax()] = 1
lungs = 1 - (solid - 1)
labels = measure.label(lungs, background=0)
counts = np.bincount(labels.ravel())
counts[0] = 0
found = labels == counts.argmax()
wall, cpu, peak = time.perf_counter() - started, time.process_time() - used, resident()
wanted = scipy.ndimage.zoom(np.uint8((truth == 1) | (truth == 2)), factors, mode="nearest", order=0).astype(bool)
told(wall, cpu, before, peak, dice(found, wanted))
"""
)


def slim(slices: int) -> Phantom:
    """Return voxels, truth and grid of the chest of the package's own phantom."""
    return chest((slices, 512, 512), (COVERED_MM / slices, PIXEL_MM, PIXEL_MM))


def adult(slices: int) -> Phantom:
    """Return voxels, truth and grid of a chest as large as a patient's; -1024 outside the circle of reconstruction."""
    step_mm = COVERED_MM / slices
    half_mm = 511 / 2 * ADULT_PIXEL_MM
    affine = np.diag([ADULT_PIXEL_MM, ADULT_PIXEL_MM, step_mm, 1.0])
    affine[:3, 3] = -half_mm, -half_mm, -160.0
    voxels = np.empty((slices, 512, 512), dtype=np.int16)
    truth = np.empty(voxels.shape, dtype=np.uint8)
    for first in range(0, slices, PART_SLICES):
        part = slice(first, min(slices, first + PART_SLICES))
        here = affine.copy()
        here[2, 3] += first * step_mm
        grid = Grid((part.stop - first, 512, 512), here)
        made = scan(ADULT, grid)
        voxels[part], truth[part] = with_noise(made.hu, NOISE_HU, seed=first), made.labels
        outside = circle(grid)
        voxels[part][outside], truth[part][outside] = -1024, 0
    return voxels, truth, Grid(voxels.shape, affine)


PATIENTS: dict[str, Callable[[int], Phantom]] = {"slim": slim, "adult": adult}


def run(code: str, *arguments: str) -> dict[str, float]:
    """Run one method in a process of its own and return its numbers."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    numbers: dict[str, float] = json.loads(done.stdout)
    return numbers


def line(name: str, numbers: dict[str, float]) -> str:
    return (
        f"{name:18s} {numbers['wall_s']:7.2f} s wall {numbers['cpu_s']:7.2f} s CPU "
        f"{numbers['above_mib']:7.0f} MiB above the volume   Dice {numbers['dice']:.4f}"
    )


def compare(patient: str, slices: int, pairs: int, *, only_ours: bool) -> float:
    """Print all runs with ``slices`` of ``patient`` and return the median seconds of ours."""
    with tempfile.TemporaryDirectory() as place:
        voxels, truth, grid = PATIENTS[patient](slices)
        for name, array in (("voxels", voxels), ("truth", truth), ("affine", grid.affine)):
            np.save(Path(place, name), array)
        size = voxels.nbytes / 1048576
        del voxels, truth
        print(f"\n{patient}, {slices} slices of 512 x 512, a volume of {size:.0f} MiB, {os.cpu_count()} cores")
        seconds, ratios = [], {3: [], 1: []}
        for _ in range(pairs):
            ours = run(OURS, place)
            seconds.append(ours["wall_s"])
            print(line("ours", ours), flush=True)
            for order in () if only_ours else (3, 1):
                other = run(TEXTBOOK, place, str(order))
                print(line(f"textbook, order {order}", other), flush=True)
                ratios[order].append((other["wall_s"] / ours["wall_s"], other["above_mib"] / ours["above_mib"]))
        for order, rows in ratios.items():
            if rows:
                faster, leaner = (statistics.median(column) for column in zip(*rows, strict=True))
                print(f"median: {faster:.1f} times as fast as order {order} with {1 / leaner:.2f} of its memory")
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, nargs="+", default=[300])
    parser.add_argument("--patients", choices=PATIENTS, nargs="+", default=list(PATIENTS))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only-ours", action="store_true", help="leave the textbook out")
    options = parser.parse_args()
    for patient in options.patients:
        medians = {
            count: compare(patient, count, options.pairs, only_ours=options.only_ours) for count in options.slices
        }
        if len(medians) > 1:
            print("\nseconds for 100 slices: " + ", ".join(f"{n}: {100 * s / n:.2f}" for n, s in medians.items()))


if __name__ == "__main__":
    main()
