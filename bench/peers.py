"""The receivers that the benchmarks compare, each started as its users start it, and what they use of the machine."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

START_S = 120.0
ORTHANC = "/usr/sbin/Orthanc"
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}

# linux/fs.h, and the flag of ext4 that chattr +T sets.
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _TOPDIR = 0x80086601, 0x40086602, 0x00020000

CTNODE_ROLE = """
import sys
from ctnode.archive.layout import Layout
from ctnode.config import load
from ctnode.flow.keeper import keep
from ctnode.ops import log
from ctnode.ops.role import Role
from ctnode.wire.acceptor import receive
config = load(environment={}, overrides={
    "storage.root": sys.argv[1], "node.port": 0, "receiver.processes": int(sys.argv[2]),
    "storage.reserve_mb": 0, "storage.reserve_inodes": 0, "receiver.max_associations": 900,
    "receiver.max_per_address": 900, "log.level": "error",
}).config
layout = Layout(config.root, config.results)
layout.create()
log.configure(config.log, role=sys.argv[3])
with Role(sys.argv[3], layout.run, config.digest()) as role:
    sys.exit(receive(config, role) if sys.argv[3] == "receive" else keep(config, role, lambda: config))
"""

PLAIN_PYNETDICOM = """
import sys
from pathlib import Path
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification
folder = Path(sys.argv[1])
def store(event):
    (folder / event.request.AffectedSOPInstanceUID).write_bytes(event.encoded_dataset())
    return 0x0000
entity = AE("PLAIN")
entity.maximum_associations = 64
entity.supported_contexts = AllStoragePresentationContexts
entity.add_supported_context(Verification)
entity.start_server(("127.0.0.1", int(sys.argv[2])), block=True, evt_handlers=[(evt.EVT_C_STORE, store)])
"""


class Absent(Exception):
    """A peer is not installed here."""


@dataclass(frozen=True)
class Serving:
    """A receiver that runs: its port, its processes, those of them that hold associations, and ctnode's root."""

    port: int
    pids: tuple[int, ...]
    receivers: tuple[int, ...]
    root: Path | None = None


def dcmtk_tool(name: str) -> str:
    """Return DCMTK's own program: pynetdicom installs scripts of the same names."""
    for folder in os.get_exec_path():
        program = Path(folder) / name
        if program.is_file() and b"dcmtk" in subprocess.run([program, "--version"], capture_output=True).stdout:
            return str(program)
    raise Absent(f"{name} (Debian package dcmtk)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not start")
        time.sleep(0.02)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(command: Sequence[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [str(part) for part in command],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def ctnode(folder: Path, processes: int = 2) -> Iterator[Serving]:
    root = folder / "root"

    def report(role: str) -> dict[str, object]:
        found = list((root / "run").glob(f"{role}-*.json"))
        return json.loads(found[0].read_text()) if found else {}

    def command(role: str) -> list[str | Path]:
        return [sys.executable, "-c", CTNODE_ROLE, root, str(processes), role]

    with running(command("keep")) as keeper:
        wait_for(lambda: report("keep").get("state") == "ready", keeper, "the keeper")
        with running(command("receive")) as process:
            wait_for(lambda: report("receive").get("state") == "ready", process, "ctnode")
            counters = report("receive")["counters"]
            assert isinstance(counters, dict)
            yield Serving(int(counters["port"]), (process.pid,), (*counters["receivers"],), root)


@contextmanager
def dcmtk(folder: Path) -> Iterator[Serving]:
    port = free_port()
    with running([dcmtk_tool("storescp"), "--fork", "-od", folder, str(port)]) as process:
        wait_for(lambda: answers(port), process, "storescp")
        yield Serving(port, (process.pid,), (process.pid,))


@contextmanager
def orthanc(folder: Path) -> Iterator[Serving]:
    if not Path(ORTHANC).exists():
        raise Absent("Orthanc (Debian package orthanc)")
    port = free_port()
    settings = {
        "Name": "bench", "StorageDirectory": str(folder / "store"), "IndexDirectory": str(folder / "store"),
        "DicomPort": port, "DicomAet": "ORTHANC", "HttpServerEnabled": False, "DicomServerEnabled": True,
        "DicomAlwaysAllowStore": True, "DicomCheckCalledAet": False, "Plugins": [], "RemoteAccessAllowed": False,
    }  # fmt: skip
    file = folder / "orthanc.json"
    file.write_text(json.dumps(settings))
    with running([ORTHANC, file]) as process:
        wait_for(lambda: answers(port), process, "Orthanc")
        yield Serving(port, (process.pid,), (process.pid,))


@contextmanager
def pynetdicom(folder: Path) -> Iterator[Serving]:
    port = free_port()
    with running([sys.executable, "-c", PLAIN_PYNETDICOM, folder, str(port)]) as process:
        wait_for(lambda: answers(port), process, "pynetdicom")
        yield Serving(port, (process.pid,), (process.pid,))


PEERS: dict[str, Callable[[Path], AbstractContextManager[Serving]]] = {
    "ctnode": ctnode,
    "ctnode x1": lambda folder: ctnode(folder, 1),
    "dcmtk": dcmtk,
    "orthanc": orthanc,
    "pynetdicom": pynetdicom,
}


def spread(folder: Path) -> None:
    """Let ext4 give each new folder in here a part of the disk of its own, where the file system can do so.

    Without a journal ext4 looks, for each new file, at the inodes near it that were freed in the last minutes: whoever
    comes where something was removed pays half as much CPU again, and the order of the peers decides who that is.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            (flags,) = struct.unpack("L", fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(8)))
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("L", flags | _TOPDIR))
    finally:
        os.close(descriptor)


def make_instances(folder: Path, count: int) -> None:
    """Write distinct 512x512 16-bit CT slices of one series."""
    folder.mkdir()
    random = np.random.default_rng(count)
    noise = random.integers(0, 2000, 512 * 512 + count, dtype=np.uint16)
    study, series = generate_uid(), generate_uid()
    for number in range(count):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID, image.InstanceNumber = study, series, number + 1
        image.Modality, image.PatientID, image.PatientName = "CT", "BENCH", "Bench^Ingest"
        image.Rows = image.Columns = 512
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.PixelData = noise[number : number + 512 * 512].tobytes()
        image.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the processor time of processes and all that came from them, ended children included."""
    ticks = 0
    for pid in family(pids):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(int(fields[index]) for index in (11, 12, 13, 14))
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mb(pids: Sequence[int]) -> float:
    """Return the resident memory of processes and their children."""
    kilobytes = 0
    for pid in family(pids):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                kilobytes += int(line.split()[1])
    return kilobytes / 1024


def family(pids: Sequence[int]) -> list[int]:
    """Return processes with their children and theirs."""
    found = list(pids)
    for pid in found:
        for thread in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += [int(child) for child in thread.read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"{os.cpu_count()} x {models[0] if models else platform.machine()}, {memory_gb:.0f} GB, "
        f"Linux {platform.release()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
