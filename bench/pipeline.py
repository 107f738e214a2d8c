"""The whole pipeline beside the textbook one, each as a process of its own, in turn.

``python bench/pipeline.py [--slices 300] [--pairs 3]`` writes a synthetic chest of 512 x 512 pixels as DICOM files into
a temporary folder, then runs, alternating,

* ours: ``ctnode process`` with all results written, and
* the textbook: read with pydicom, stack, slope and intercept, ``scipy.ndimage.zoom`` of order 3 to 1 mm, threshold at
  -320 HU, labels and the largest component with scikit-image; nothing written.

and prints wall-clock seconds and peak resident memory (``ru_maxrss`` of ``wait4``) of each, and their ratios.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series

TEXTBOOK = """
import sys
from pathlib import Path
import numpy as np
import pydicom
import scipy.ndimage
from skimage import measure

slices = [pydicom.dcmread(path) for path in Path(sys.argv[1]).iterdir()]
slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
step = abs(slices[0].ImagePositionPatient[2] - slices[1].ImagePositionPatient[2])
image = np.stack([one.pixel_array for one in slices]).astype(np.int16)
for index, one in enumerate(slices):
    if one.RescaleSlope != 1:
        image[index] = (one.RescaleSlope * image[index].astype(np.float64)).astype(np.int16)
    image[index] += np.int16(one.RescaleIntercept)
spacing = np.array([step, *slices[0].PixelSpacing], dtype=np.float64)
shape = np.round(np.array(image.shape) * spacing)
image = scipy.ndimage.zoom(image, shape / image.shape, mode="nearest", order=3)
labels = measure.label(image > -320)
labels[labels == labels[0, 0, 0]] = 0
air = measure.label(image <= -320)
background = np.unique(np.concatenate([air[:, 0, 0], air[:, -1, -1]]))
air[np.isin(air, background)] = 0
counts = np.bincount(air.ravel())
counts[0] = 0
lungs = air == counts.argmax()
print("lung voxels", int(lungs.sum()))
"""


def measured(command: list[str]) -> tuple[float, float]:
    """Run a command; return seconds and peak resident MiB of the largest of its processes."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:4]} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only-ours", action="store_true", help="leave the textbook out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        source, out = Path(place, "in"), Path(place, "out")
        source.mkdir()
        spacing = (300.0 / options.slices, 0.7, 0.7)
        voxels, _, grid = chest((options.slices, 512, 512), spacing)
        study = "1.2.826.0.1.3680043.8.498.9"
        write_series(source, voxels, grid, study_uid=study, series_uid=f"{study}.1")
        del voxels
        ours_command = [sys.executable, "-m", "ctnode", "process", str(source), "--out", str(out)]
        rows = []
        print(f"{options.slices} slices of 512 x 512, {os.cpu_count()} cores")
        for pair in range(options.pairs):
            shutil.rmtree(out, ignore_errors=True)
            ours = measured(ours_command)
            print(f"pair {pair + 1}: ours      {ours[0]:7.2f} s {ours[1]:8.0f} MiB", flush=True)
            if options.only_ours:
                continue
            textbook = measured([sys.executable, "-c", TEXTBOOK, str(source)])
            print(f"pair {pair + 1}: textbook  {textbook[0]:7.2f} s {textbook[1]:8.0f} MiB", flush=True)
            rows.append((textbook[0] / ours[0], textbook[1] / ours[1]))
        if rows:
            faster, leaner = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"median over pairs: ours is {faster:.1f} times as fast with {1 / leaner:.2f} of the memory")


if __name__ == "__main__":
    main()
