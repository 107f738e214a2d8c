"""Volumes beside those of other tools: which are right, and how long they take.

``python bench/volume.py errors`` makes the adversarial series of ``tests/adversarial.py`` (a ramp whose every voxel
says where it lies) and prints, for each and each tool, the largest difference from the ramp in HU at the places that
the tool's own affine claims: *ok* up to 1 HU, *refused* where the tool gave no volume, and in bold what is wrong
without a word. Of several volumes that a tool writes the best one counts, and padding under -1000 HU does not. With
``--syntaxes`` ctnode alone reads every series again in every lossless transfer syntax that can be written here.

``python bench/volume.py times [--slices 300] [--pairs 5]`` writes a chest of 512 x 512 pixels and measures whole
processes in turn: wall-clock seconds and peak resident memory (``wait4``).

* ctnode: ``ctnode process`` with ``ct.nii.gz`` and ``ct_iso.nii.gz``, and with ``ct.nii.gz`` alone;
* SimpleITK: ImageSeriesReader, Resample to 1 mm, WriteImage of both, compressed as ours and not at all;
* dcm2niix -z y -1: the native volume alone, at its fastest;
* the textbook: pydicom, stack, rescale, ``scipy.ndimage.zoom`` of order 3 to 1 mm; nothing written.

Tools that are not installed are left out (``pip install -e '.[bench]'``).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import UID

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import htj2k
from tests.adversarial import CASES, GRADIENT, Expectation

Answer = tuple[np.ndarray, np.ndarray, np.ndarray | None, str]  # voxels (z, y, x), LPS affine, padding, status
SILENT_HU = 1.0
PADDING_HU = -1000
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


# Tools --------------------------------------------------------------------------------------------------------------


def by_ctnode(place: Path) -> Iterator[Answer]:
    from ctnode.words import Refusal
    from tests.phantom_series import read

    try:
        volume = read(path for path in sorted(place.rglob("*")) if path.is_file())
    except Refusal:
        return
    yield volume.voxels, volume.grid.affine, volume.padding, str(volume.status)


def by_simpleitk(place: Path) -> Iterator[Answer]:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageSeriesReader()
    for uid in reader.GetGDCMSeriesIDs(str(place)):
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(place), uid))
        image = reader.Execute()
        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            continue
        affine = np.eye(4)
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        yield SimpleITK.GetArrayFromImage(image), affine, None, ""


def by_highdicom(place: Path) -> Iterator[Answer]:
    import highdicom

    datasets = [pydicom.dcmread(path) for path in sorted(place.rglob("*")) if path.is_file()]
    enhanced = [one for one in datasets if "PerFrameFunctionalGroupsSequence" in one]
    options = {"apply_real_world_transform": False, "apply_modality_transform": True}
    if enhanced:
        volumes = [highdicom.Image.from_dataset(one).get_volume(**options) for one in enhanced]
    else:
        volumes = [highdicom.get_volume_from_series(datasets, **options)]
    for volume in volumes:
        # Its array axes are slices, rows, columns, and its affine maps those.
        order = np.eye(4)[:, [2, 1, 0, 3]]
        yield volume.array, volume.affine @ order, None, ""


def _niftis(place: Path) -> Iterator[Answer]:
    import nibabel

    for path in sorted(place.rglob("*.nii*")):
        image = nibabel.load(path)
        if len(image.shape) >= 3:
            voxels = np.asanyarray(image.dataobj)
            for one in np.moveaxis(voxels.reshape(*voxels.shape[:3], -1), 3, 0):
                yield one.T, RAS @ image.affine, None, ""


def by_dicom2nifti(place: Path) -> Iterator[Answer]:
    import dicom2nifti

    with tempfile.TemporaryDirectory() as out:
        dicom2nifti.convert_directory(str(place), out, reorient=False)
        yield from _niftis(Path(out))


def program(name: str) -> str:
    """Return a program of this environment, activated or not, or of the system."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or name


def by_dcm2niix(place: Path) -> Iterator[Answer]:
    with tempfile.TemporaryDirectory() as out:
        command = [program("dcm2niix"), "-z", "n", "-o", out, str(place)]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=60)
        yield from _niftis(Path(out))


TOOLS: dict[str, tuple[str, Callable[[Path], Iterator[Answer]]]] = {
    "ctnode": ("ctnode", by_ctnode),
    "SimpleITK": ("SimpleITK", by_simpleitk),
    "highdicom": ("highdicom", by_highdicom),
    "dicom2nifti": ("dicom2nifti", by_dicom2nifti),
    "dcm2niix": ("dcm2niix", by_dcm2niix),
}


def installed() -> list[str]:
    return [name for name, (module, _) in TOOLS.items() if importlib.util.find_spec(module)]


# Errors -------------------------------------------------------------------------------------------------------------


def difference(answer: Answer, expected: Expectation) -> float:
    """Return the largest difference from the ramp in HU."""
    voxels, affine, padding, _ = answer
    ijk = np.stack(np.meshgrid(*map(np.arange, voxels.shape), indexing="ij"), axis=-1)[..., ::-1]
    truth = (ijk @ affine[:3, :3].T + affine[:3, 3]) @ GRADIENT
    for point, value in expected.special.items():
        index = np.rint(np.linalg.solve(affine, (*point, 1.0))[:3]).astype(int)[::-1]
        if ((index >= 0) & (index < voxels.shape)).all():
            truth[tuple(index)] = value
    counted = voxels > PADDING_HU if padding is None else ~padding
    off = np.abs(voxels.astype(np.float64) - truth)[counted]
    return float(off.max()) if off.size else float("inf")


def flattened(place: Path) -> Path:
    """Move all files into one folder, since not every tool looks into folders."""
    files = sorted(path for path in place.rglob("*") if path.is_file())
    flat = place / "flat"
    flat.mkdir()
    for number, path in enumerate(files):
        path.rename(flat / f"{number:04d}_{path.name}")
    return flat


def answers_of(tool: str, names: list[str], syntax: str) -> None:
    """Print one JSON line for each case; run in a process of its own, since tools crash."""
    warnings.simplefilter("ignore")
    read = TOOLS[tool][1]
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            expected = CASES[name](Path(place))
            in_it = encode(Path(place), syntax) if syntax else 0
            flat = flattened(Path(place))
            try:
                errors = [(difference(answer, expected), answer[3]) for answer in read(flat)]
            except Exception:
                errors = []
            error, status = min(errors) if errors else (None, "REFUSED")
        line = {"case": name, "error": error, "status": status, "allowed": expected.worst_hu, "in_it": in_it}
        os.write(out, json.dumps(line).encode() + b"\n")


def ask(tool: str, names: list[str], syntax: str = "") -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    while rest := [name for name in names if name not in found]:
        command = [sys.executable, __file__, "answer", "--tool", tool, "--syntax", syntax, *rest]
        done = subprocess.run(command, capture_output=True, check=False)
        for line in done.stdout.splitlines():
            answer = json.loads(line)
            found[answer["case"]] = answer
        left = [name for name in names if name not in found]
        if left:
            found[left[0]] = {"case": left[0], "error": None, "status": f"crashed ({done.returncode})", "allowed": 0}
    return found


def is_silent(answer: dict[str, object]) -> bool:
    error = answer["error"]
    # Positions that were written with few digits allow more than half a unit, whoever reads them.
    limit = max(float(str(answer["allowed"])), 0.5 if answer["status"] == "EXACT" else SILENT_HU)
    return isinstance(error, float) and error > limit + 1e-3


def cell(answer: dict[str, object]) -> str:
    if answer["error"] is None:
        return "crash" if str(answer["status"]).startswith("crashed") else "refused"
    if is_silent(answer):
        return f"**{answer['error']:.4g}**"
    return {"EXACT": "exact", "REPAIRED": "repaired"}.get(str(answer["status"]), "ok")


def errors(names: list[str]) -> None:
    tools = installed()
    table = {tool: ask(tool, names) for tool in tools}
    print("| series | " + " | ".join(tools) + " |\n|---|" + "---|" * len(tools))
    for name in names:
        print(f"| {name.replace('_', ' ')} | " + " | ".join(cell(table[tool][name]) for tool in tools) + " |")
    silent = [sum(is_silent(table[tool][name]) for name in names) for tool in tools]
    no_volume = [sum(table[tool][name]["error"] is None for name in names) for tool in tools]
    print("| **silently wrong** | " + " | ".join(map(str, silent)) + " |")
    print("| no volume | " + " | ".join(map(str, no_volume)) + " |")


# Syntaxes -----------------------------------------------------------------------------------------------------------

AS_IT_IS = {
    "1.2.840.10008.1.2": "Implicit little endian",
    "1.2.840.10008.1.2.1": "Explicit little endian",
    "1.2.840.10008.1.2.2": "Explicit big endian",
    "1.2.840.10008.1.2.1.99": "Deflated",
}
COMPRESSED = {
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless, first order",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K",
}


BIG = "1.2.840.10008.1.2.2"


def encode(place: Path, syntax: str) -> int:
    """Write the files below ``place`` again in ``syntax``, one that cannot be written so stays; return how many are."""
    in_it = 0
    for path in sorted(place.rglob("*")):
        if not path.is_file():
            continue
        try:
            dataset = pydicom.dcmread(path)
            if "PixelData" not in dataset:
                continue
            if dataset.file_meta.TransferSyntaxUID == syntax:
                in_it += 1
                continue
            # Encoders take the low bits only, wherever HighBit says that the values lie.
            if syntax in COMPRESSED and dataset.HighBit != dataset.BitsStored - 1:
                continue
            was_big = dataset.file_meta.TransferSyntaxUID == BIG
            if dataset.file_meta.TransferSyntaxUID.is_compressed:
                dataset.decompress(generate_instance_uid=False)
            if syntax in ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"):
                _with_gdcm(path, dataset, syntax)
                in_it += 1
                continue
            if syntax in COMPRESSED:
                if was_big:
                    _swap(dataset)
                dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
                _compress(dataset, syntax)
            elif (syntax == BIG) != was_big:
                _swap(dataset)
            dataset.file_meta.TransferSyntaxUID = UID(syntax)
            changed = path.with_suffix(".new")
            pydicom.dcmwrite(
                changed, dataset, implicit_vr=syntax == "1.2.840.10008.1.2",
                little_endian=syntax != BIG, enforce_file_format=True,
            )  # fmt: skip
            changed.replace(path)
            in_it += 1
        except Exception:
            path.with_suffix(".new").unlink(missing_ok=True)
    return in_it


def _compress(dataset: pydicom.Dataset, syntax: str) -> None:
    if syntax == htj2k.HTJ2KLossless:
        htj2k.compress(dataset)
    else:
        dataset.compress(UID(syntax), generate_instance_uid=False)


def _swap(dataset: pydicom.Dataset) -> None:
    """Turn the bytes of what pydicom keeps as words without knowing their order."""

    def visit(_parent: pydicom.Dataset, element: pydicom.DataElement) -> None:
        if element.VR == "OW" and isinstance(element.value, bytes):
            element.value = np.frombuffer(element.value, "<u2").byteswap().tobytes()

    dataset.walk(visit)


def _with_gdcm(path: Path, dataset: pydicom.Dataset, syntax: str) -> None:
    import gdcm

    dataset.save_as(path)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path.with_suffix(".new")))
    assert writer.Write()
    # GDCM writes other headers than it reads (a rescale where there was none): only its pixels are taken.
    dataset.PixelData = pydicom.dcmread(path.with_suffix(".new")).PixelData
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.save_as(path)
    path.with_suffix(".new").unlink()


def syntaxes(names: list[str]) -> None:
    print("| transfer syntax | series in it | exact | repaired | refused | silently wrong |\n|---|---|---|---|---|---|")
    for uid, title in (AS_IT_IS | COMPRESSED).items():
        found = [answer for answer in ask("ctnode", names, uid).values() if answer.get("in_it")]
        counts = [sum(answer["status"] == status for answer in found) for status in ("EXACT", "REPAIRED", "REFUSED")]
        wrong = [str(answer["case"]) for answer in found if is_silent(answer)]
        print(
            f"| {title} | {len(found)} | {counts[0]} | {counts[1]} | {counts[2]} | {len(wrong)} {' '.join(wrong)} |",
            flush=True,
        )


# Times --------------------------------------------------------------------------------------------------------------

SIMPLEITK = """
import sys
import SimpleITK
reader = SimpleITK.ImageSeriesReader()
reader.SetFileNames(reader.GetGDCMSeriesFileNames(sys.argv[1]))
image = reader.Execute()
old, size = image.GetSpacing(), image.GetSize()
new = [max(1, round(count * step)) for count, step in zip(size, old)]
iso = SimpleITK.Resample(image, new, SimpleITK.Transform(), SimpleITK.sitkLinear, image.GetOrigin(), (1.0, 1.0, 1.0),
                         image.GetDirection(), -1024, image.GetPixelID())
SimpleITK.WriteImage(image, sys.argv[2] + "/ct.nii.gz")
SimpleITK.WriteImage(iso, sys.argv[2] + "/ct_iso.nii.gz")
"""

TEXTBOOK = """
import sys
from pathlib import Path
import numpy as np
import pydicom
import scipy.ndimage
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
"""

VOLUMES_ONLY = {"CTNODE_OUTPUTS__LUNGS": "false", "CTNODE_OUTPUTS__PREVIEW": "false"}


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command; return seconds and peak resident MiB of the largest of its processes."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:4]} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def times(slices: int, pairs: int, syntax: str, only_ours: bool) -> None:
    from pydicom.uid import ExplicitVRLittleEndian

    from ctnode.ct.phantom import chest
    from ctnode.ct.phantom_dicom import write_series

    with tempfile.TemporaryDirectory() as place:
        source, out = Path(place, "in"), Path(place, "out")
        source.mkdir()
        voxels, _, grid = chest((slices, 512, 512), (300.0 / slices, 0.7, 0.7))
        study = "1.2.826.0.1.3680043.8.498.9"
        written = syntax or ExplicitVRLittleEndian
        write_series(source, voxels, grid, study_uid=study, series_uid=f"{study}.1", transfer_syntax=written)
        del voxels
        process = [sys.executable, "-m", "ctnode", "process", str(source), "--out", str(out)]
        commands = {
            "ctnode, both": (process, VOLUMES_ONLY),
            "SimpleITK, both": ([sys.executable, "-c", SIMPLEITK, str(source), str(out)], {}),
            "SimpleITK, both as .nii": (
                [sys.executable, "-c", SIMPLEITK.replace(".gz", ""), str(source), str(out)],
                {},
            ),
            "ctnode, ct.nii.gz": (process, VOLUMES_ONLY | {"CTNODE_OUTPUTS__ISO": "false"}),
            "dcm2niix, ct.nii.gz": ([program("dcm2niix"), "-z", "y", "-1", "-o", str(out), str(source)], {}),
            "textbook, nothing written": ([sys.executable, "-c", TEXTBOOK, str(source)], {}),
            "ctnode, everything": (process, {}),
        }
        missing = [name for name in ("SimpleITK", "dcm2niix") if name not in installed()]
        rows: dict[str, list[tuple[float, float]]] = {
            name: []
            for name in commands
            if name.split(",")[0] not in missing and (name.startswith("ctnode") or not only_ours)
        }
        print(f"{slices} slices of 512 x 512, {UID_NAMES.get(syntax, 'uncompressed')}, {os.cpu_count()} cores")
        for _ in range(pairs):
            for name in rows:
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                rows[name].append(measured(*commands[name]))
        print("| process | seconds (median) | least | peak MiB |\n|---|---|---|---|")
        for name, found in rows.items():
            seconds = [one[0] for one in found]
            peak = max(one[1] for one in found)
            print(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {peak:.0f} |")
        for ours, theirs in (
            ("ctnode, both", "SimpleITK, both"),
            ("ctnode, ct.nii.gz", "dcm2niix, ct.nii.gz"),
            ("ctnode, both", "textbook, nothing written"),
        ):
            if theirs in rows:
                ratios = [a[0] / b[0] for a, b in zip(rows[ours], rows[theirs], strict=True)]
                print(f"{ours} / {theirs}: {statistics.median(ratios):.2f} (median of pairs)")


UID_NAMES = AS_IT_IS | COMPRESSED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("errors", "times", "answer"))
    parser.add_argument("names", nargs="*", help="cases (default: all)")
    parser.add_argument("--syntaxes", action="store_true", help="ctnode over every lossless transfer syntax")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--syntax", default="", help="transfer syntax of the chest that is measured")
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    names = options.names or list(CASES)
    if options.what == "answer":
        answers_of(options.tool, names, options.syntax)
    elif options.what == "times":
        times(options.slices, options.pairs, options.syntax, options.only_ours)
    elif options.syntaxes:
        syntaxes(names)
    else:
        errors(names)


if __name__ == "__main__":
    main()
