"""``python -m tests.mutate --files 2000 --seed N``: ``ctnode process`` over DICOM files that are not as they should be.

Real files, those that pydicom ships and the ramp phantom are mutated: bytes, tags, VRs, lengths, nesting, and values
that make no sense. Each case is a folder with one to eight files under UIDs of its own; a hundred files at a time go
to one ``ctnode process``. Each case has to end in results or in a refusal that says why, within limits of memory and
time, without a traceback; what is written has to be whole, and a volume of the ramp whose geometry and rescale were
left alone has to be the ramp.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.tag import Tag

from tests.phantom_series import GRADIENT, grid, write_ramp

BATCH_FILES = 100
MEMORY_MB = 1536
TIMEOUT_S = 60.0
BATCH_TIMEOUT_S = 900.0
WORST_HU = 1.0
LARGEST_SOURCE_BYTES = 2 << 20
# What may not be the answer to any file: each would be a fault of ours.
OUR_FAULTS = {"INTERNAL_ERROR", "OUT_OF_MEMORY", "OUT_OF_TIME"}
WORDS = {"EXACT", "REPAIRED", "REFUSED"}
GEOMETRY = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "RescaleSlope",
    "RescaleIntercept", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "SamplesPerPixel", "PhotometricInterpretation", "RescaleType", "ModalityLUTSequence",
)  # fmt: skip

Mutation = Callable[[bytes, random.Random], bytes]


# On bytes -----------------------------------------------------------------------------------------------------------


def header_end(data: bytes) -> int:
    """Return about where the pixels begin, else the end."""
    place = data.rfind(b"\xe0\x7f\x10\x00")
    return place if place > 132 else len(data)


def flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 40))):
        changed[rng.randrange(min(len(data), header_end(data) + 16))] = rng.randrange(256)
    return bytes(changed)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def delete(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(132, max(133, header_end(data)))
    return data[:place] + data[place + rng.choice((1, 2, 4, 8, 100)) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(132, max(133, header_end(data)))
    return data[:place] + rng.randbytes(rng.choice((1, 2, 4, 8, 100))) + data[place:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(132, max(133, header_end(data)))
    piece = data[begin : begin + rng.choice((8, 64, 1000))]
    return data[:begin] + piece * rng.choice((1, 2, 50)) + data[begin:]


VRS = re.compile(rb"(AE|AS|AT|CS|DA|DS|DT|FD|FL|IS|LO|LT|OB|OW|PN|SH|SL|SQ|SS|ST|TM|UI|UL|UN|US|UT)[\x00-\xff]{2}")


def _elements(data: bytes) -> list[int]:
    return [match.start() for match in VRS.finditer(data, 132, header_end(data) + 8)]


def length(data: bytes, rng: random.Random) -> bytes:
    places = _elements(data)
    if not places:
        return flip(data, rng)
    place = rng.choice(places) + 2
    wrong = rng.choice((0, 1, 3, 0xFF, 0xFFFE, 0xFFFF))
    return data[:place] + struct.pack("<H", wrong) + data[place + 2 :]


def pixel_length(data: bytes, rng: random.Random) -> bytes:
    place = header_end(data) + 8
    wrong = rng.choice((0, 1, 7, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF))
    return data[:place] + struct.pack("<I", wrong) + data[place + 4 :]


def representation(data: bytes, rng: random.Random) -> bytes:
    places = _elements(data)
    if not places:
        return flip(data, rng)
    place = rng.choice(places)
    return data[:place] + rng.choice((b"SQ", b"UN", b"OW", b"DS", b"XX", b"\0\0", b"UI", b"AT")) + data[place + 2 :]


def syntax(data: bytes, rng: random.Random) -> bytes:
    """Claim another transfer syntax than the one that was used."""
    wrong = rng.choice(("1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5",
                        "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80",
                        "1.2.840.10008.1.2.4.201", "1.2.3.4"))  # fmt: skip
    place = data.find(b"\x02\x00\x10\x00UI")
    if place < 0:
        return flip(data, rng)
    size = struct.unpack_from("<H", data, place + 6)[0]
    text = wrong.encode() + b"\0" * (len(wrong) % 2)
    return data[: place + 6] + struct.pack("<H", len(text)) + text + data[place + 8 + size :]


def nest(data: bytes, rng: random.Random) -> bytes:
    """Put up to 5,000 sequences into each other before the pixels, closed or not, by the encoding of the file."""
    depth = rng.choice((3, 60, 990, 5000))
    implicit = b"1.2.840.10008.1.2\0" in data[:400]
    open_one = (
        b"\xd0\x7f\x10\x10" + (b"" if implicit else b"SQ\0\0") + b"\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    )
    close_one = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    place = header_end(data)
    closing = close_one * depth if rng.random() < 0.5 else b""
    return data[:place] + open_one * depth + closing + data[place:]


def pixels(data: bytes, rng: random.Random) -> bytes:
    """Damage encapsulated pixels; native ones would only become other pixels."""
    begin = header_end(data) + 12
    if data[begin - 4 : begin] != b"\xff\xff\xff\xff" or begin >= len(data):
        return length(data, rng)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 4, 100))):
        changed[rng.randrange(begin, min(len(data), begin + rng.choice((64, 400, len(data)))))] = rng.randrange(256)
    return bytes(changed)


# On values ----------------------------------------------------------------------------------------------------------

NUMBERS = ("nan", "inf", "-inf", "1e308", "-1", "0", "1e-30", "", "abc", "-2.5", "001.000000E+00", "99999999999999")
VALUES: dict[str, tuple[object, ...]] = {
    "Rows": (0, 1, 20000, 65535),
    "Columns": (0, 1, 20000, 65535),
    "NumberOfFrames": ("0", "-1", "1000000000", "2"),
    "BitsAllocated": (0, 1, 8, 12, 32, 64),
    "BitsStored": (0, 1, 17, 65535),
    "HighBit": (0, 31, 65535),
    "PixelRepresentation": (1, 7),
    "SamplesPerPixel": (0, 3, 65535),
    "PhotometricInterpretation": ("RGB", "PALETTE COLOR", "YBR_FULL_422", ""),
    "PixelPaddingValue": (0, 65535),
    "ImageType": ("", "ORIGINAL", ["DERIVED", "SECONDARY", "MPR"]),
    "WindowCenter": NUMBERS,
    "WindowWidth": NUMBERS,
    "SliceThickness": NUMBERS,
    "RescaleSlope": NUMBERS,
    "RescaleIntercept": NUMBERS,
    "SOPInstanceUID": ("", "..", "x" * 100),
    "SOPClassUID": ("", "1.2.3", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.7"),
    "FrameOfReferenceUID": ("", "1.2"),
    "AcquisitionDateTime": ("99999999999999", "x"),
    "SpecificCharacterSet": ("", "ISO_IR 9999", "ISO 2022 IR 87"),
}


def value(data: bytes, rng: random.Random) -> bytes:
    def change(dataset: Dataset) -> None:
        keyword = rng.choice([*VALUES, "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"])
        if keyword in VALUES:
            setattr(dataset, keyword, rng.choice(VALUES[keyword]))
            return
        count = {"PixelSpacing": 2, "ImagePositionPatient": 3, "ImageOrientationPatient": 6}[keyword]
        new = list(dataset.get(keyword) or ["1"] * count)
        for _ in range(rng.choice((1, count))):
            new[rng.randrange(len(new))] = rng.choice(NUMBERS)
        setattr(dataset, keyword, new[: rng.choice((count, count, 1))])

    return rewritten(data, rng, change)


def huge(data: bytes, rng: random.Random) -> bytes:
    def change(dataset: Dataset) -> None:
        dataset.Rows = dataset.Columns = 20000

    return rewritten(data, rng, change)


def removed(data: bytes, rng: random.Random) -> bytes:
    def change(dataset: Dataset) -> None:
        for tag in rng.sample(list(dataset.keys()), min(len(dataset), rng.choice((1, 3)))):
            del dataset[tag]

    return rewritten(data, rng, change)


def strange(data: bytes, rng: random.Random) -> bytes:
    def change(dataset: Dataset) -> None:
        tag = rng.choice([*dataset.keys(), Tag(rng.randrange(0x0008, 0x7FE0), rng.randrange(0x10000))])
        dataset.add_new(tag, "UN", rng.randbytes(rng.choice((0, 1, 7, 1000))))

    return rewritten(data, rng, change)


def rewritten(data: bytes, rng: random.Random, change: Callable[[Dataset], None]) -> bytes:
    """Return the data set as pydicom writes it after a change; where it cannot, flipped bytes."""
    with tempfile.SpooledTemporaryFile() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.write(data)
        file.seek(0)
        mode = pydicom.config.settings.writing_validation_mode, pydicom.config.settings.reading_validation_mode
        pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
        pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
        try:
            dataset = pydicom.dcmread(file, force=True)
            change(dataset)
            file.seek(0)
            file.truncate()
            dataset.save_as(file)
            file.seek(0)
            return file.read()
        except Exception:
            return flip(data, rng)
        finally:
            (pydicom.config.settings.writing_validation_mode, pydicom.config.settings.reading_validation_mode) = mode


MUTATIONS: tuple[Mutation, ...] = (
    flip, truncate, delete, insert, repeat, length, pixel_length, representation, syntax, nest, pixels, value, value,
    value, huge, removed, strange,
)  # fmt: skip


# Cases --------------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A folder of files; ``ramp`` says that the volume, if there is one, has to be the ramp."""

    place: Path
    kinds: list[str]
    files: int
    ramp: bool = False


@dataclass
class Outcome:
    """What became of all cases."""

    files: int = 0
    codes: collections.Counter[str] = field(default_factory=collections.Counter)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    peak_mb: float = 0.0


def folders(data: Path | None) -> list[list[Path]]:
    """Return the files of each folder that serves as a source."""
    roots = [Path(pydicom.__file__).parent / "data" / "test_files"]
    if data is not None:
        roots.append(data)
    found: dict[Path, list[Path]] = collections.defaultdict(list)
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.is_file() and 200 < path.stat().st_size < LARGEST_SOURCE_BYTES and path.suffix not in _NO_DICOM:
                found[path.parent].append(path)
    return [found[folder] for folder in sorted(found)]


_NO_DICOM = {".txt", ".md", ".nrrd", ".mha", ".json", ".py", ".zip", ".raw", ".cfg", ".gz"}


def cases(data: Path | None, ramp: list[Path], place: Path, files: int, rng: random.Random) -> Iterator[Case]:
    """Write and yield cases until ``files`` files are written."""
    sources = folders(data)
    number = written = 0
    while written < files:
        number += 1
        case = Case(place / f"{number:05d}", [], 0)
        case.place.mkdir(parents=True)
        if number % 4 == 0:
            chosen, case.ramp = ramp, True
        else:
            source = rng.choice(sources)
            begin = rng.randrange(len(source))
            chosen = source[begin : begin + rng.choice((1, 1, 1, 5))]
        mutated = rng.choice([{rng.randrange(len(chosen))}, set(range(len(chosen)))])
        mutation = rng.choice(MUTATIONS)
        case.kinds.append(mutation.__name__)
        # The same choices for each file of a case that mutates all: senseless in the same way, as a sender would be.
        seed = rng.getrandbits(32)
        for index, path in enumerate(chosen):
            content = path.read_bytes()
            if index in mutated:
                changed = mutation(content, random.Random(seed))
                case.ramp = case.ramp and _same_place(content, changed)
                content = changed
            (case.place / f"{index}.dcm").write_bytes(_own_uids(content, number))
            case.files += 1
        written += case.files
        yield case


def _own_uids(data: bytes, number: int) -> bytes:
    """Give study and series UIDs of the same length that no other case has."""
    for tag in (b"\x20\x00\x0d\x00", b"\x20\x00\x0e\x00"):
        place = data.find(tag)
        match = (
            re.match(rb"(?:UI..|..\0\0)([0-9.]{12,})", data[place + 4 : place + 76], re.DOTALL) if place > 0 else None
        )
        if match:
            old = match[1]
            data = data.replace(old, old[:-7] + b"%07d" % (number + 1000000), 1)
    return data


def _same_place(before: bytes, after: bytes) -> bool:
    def told(data: bytes) -> list[str] | None:
        from pydicom.filebase import DicomBytesIO

        try:
            dataset = pydicom.dcmread(DicomBytesIO(data), force=True)
            return [str(dataset.get(keyword)) for keyword in GEOMETRY] + [str(dataset.PixelData == before_pixels)]
        except Exception:
            return None

    from pydicom.filebase import DicomBytesIO

    before_pixels = pydicom.dcmread(DicomBytesIO(before)).PixelData
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = told(after)
        # What cannot be read cannot be used either, so then the rest has to be the ramp.
        return seen is None or seen == told(before)


# Judging ------------------------------------------------------------------------------------------------------------


def run(data: Path | None, files: int, seed: int, *, verbose: bool = False) -> Outcome:
    """Mutate ``files`` files and return what became of them."""
    outcome = Outcome()
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="ctnode-mutate-") as scratch:
        ramp = write_ramp(Path(scratch, "ramp"), grid())
        for number in range(-(-files // BATCH_FILES)):
            place = Path(scratch, f"batch{number}")
            made = list(cases(data, ramp, place, min(BATCH_FILES, files - number * BATCH_FILES), rng))
            _judge(made, place, Path(scratch, "out"), outcome, f"seed {seed} batch {number}")
            shutil.rmtree(place)
            if verbose:
                print(f"{outcome.files} files, peak {outcome.peak_mb:.0f} MB, {dict(outcome.statuses)}", flush=True)
    return outcome


def as_they_are(place: Path) -> Outcome:
    """Return what becomes of a folder that nobody mutated."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="ctnode-mutate-") as scratch:
        _judge([], place, Path(scratch, "out"), outcome, place.name)
    return outcome


def _judge(made: list[Case], place: Path, out: Path, outcome: Outcome, label: str) -> None:
    shutil.rmtree(out, ignore_errors=True)
    environment = os.environ | {"CTNODE_WORKER__MEMORY_MB": str(MEMORY_MB), "CTNODE_WORKER__TIMEOUT_S": str(TIMEOUT_S)}
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        command = [sys.executable, "-m", "ctnode", "process", str(place), "--out", str(out), "--json"]
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)
        deadline = time.monotonic() + BATCH_TIMEOUT_S
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                process.kill()
                outcome.faults.append(f"{label}: no end after {BATCH_TIMEOUT_S:g} s")
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        outcome.peak_mb = max(outcome.peak_mb, ended[2].ru_maxrss / 1024)
        stdout.seek(0)
        stderr.seek(0)
        lines, complaints = stdout.read().decode(), stderr.read().decode(errors="replace")
    if process.returncode not in (0, 1) or "Traceback" in complaints:
        outcome.faults.append(f"{label}: exit code {process.returncode}: {complaints[-2000:]}")
    outcome.files += sum(case.files for case in made)
    ramps = {case.place.name for case in made if case.ramp}
    by_number = {case.place.name: case for case in made}
    for line in lines.splitlines():
        report = json.loads(line)
        codes = [issue["code"] for issue in report["issues"]]
        outcome.codes.update(codes)
        outcome.statuses[report["status"]] += 1
        number = re.search(r"1(\d{6})$", report["series"])
        case = by_number.get(f"{int(number[1]):05d}") if number else None
        for fault in _faults(report, codes, case is not None and case.place.name in ramps):
            kinds = case.kinds if case else "?"
            outcome.faults.append(
                f"{label} case {case.place.name if case else '?'} {kinds}: {fault} {report['issues']}"
            )


def _faults(report: dict[str, object], codes: list[str], ramp: bool) -> Iterator[str]:
    if report["status"] not in WORDS:
        yield f"status {report['status']}"
    if OUR_FAULTS.intersection(codes):
        yield "a fault of ours"
    if report["status"] == "REFUSED" and not codes:
        yield "refused without a reason"
    if not report["dir"]:
        yield "no folder"
        return
    place = Path(str(report["dir"]))
    told = json.loads((place / "ct.json").read_text())
    if told["ctnode"]["status"] != report["status"]:
        yield "ct.json says something else"
    if report["status"] == "REFUSED":
        if {path.name for path in place.iterdir()} != {"ct.json"}:
            yield "refused, but with results"
        return
    if report["volume"] != 1:
        return
    yield from _volume_faults(str(report["status"]), place / "ct.nii.gz", ramp)


def _volume_faults(status: str, path: Path, ramp: bool) -> Iterator[str]:
    image = nibabel.load(path)
    voxels = np.asanyarray(image.dataobj)
    if not np.isfinite(image.affine).all() or not np.allclose(image.get_qform(), image.get_sform(), atol=1e-4):
        yield "an affine that cannot be"
    if not np.isfinite(voxels).all():
        yield "values that are no numbers"
    if ramp:
        ijk = np.stack(np.meshgrid(*map(np.arange, voxels.shape), indexing="ij"), axis=-1)
        lps = (ijk @ image.affine[:3, :3].T + image.affine[:3, 3]) @ np.diag([-1.0, -1.0, 1.0])
        worst = np.abs(voxels - lps @ GRADIENT).max()
        if worst > WORST_HU:
            yield f"{status}, but {worst:.1f} HU off the ramp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    data = Path(os.environ.get("CTNODE_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
    began = time.monotonic()
    outcome = run(data if data.is_dir() else None, options.files, options.seed, verbose=True)
    print(f"seed {options.seed}: {outcome.files} files in {time.monotonic() - began:.0f} s, {outcome.peak_mb:.0f} MB")
    print(dict(outcome.statuses))
    print(dict(outcome.codes.most_common()))
    for fault in outcome.faults:
        print("FAULT", fault)
    raise SystemExit(1 if outcome.faults else 0)


if __name__ == "__main__":
    main()
