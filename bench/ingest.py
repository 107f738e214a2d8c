"""Instances per second into ctnode, DCMTK storescp, Orthanc and a plain pynetdicom SCP, in one run on one machine.

    python bench/ingest.py [--senders 1 4] [--count 400] [--folder DIR] [--peers ctnode dcmtk orthanc pynetdicom]

The senders are DCMTK's storescu as real processes. TCP_NODELAY=1 is set for them and for all receivers: without it
DCMTK and what is built on it stall 44 ms an image on loopback.
Every sender has instances of its own, every run an empty store; ctnode syncs each instance before it answers, the
others do what they do by default.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

START_S = 30.0
ORTHANC = "/usr/sbin/Orthanc"
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}

CTNODE_ROLE = """
import sys
from ctnode.archive.layout import Layout
from ctnode.config import load
from ctnode.ops import log
from ctnode.ops.role import Role
from ctnode.wire.acceptor import receive
config = load(environment={}, overrides={
    "storage.root": sys.argv[1], "node.port": 0, "receiver.processes": int(sys.argv[2]), "log.level": "error",
}).config
layout = Layout(config.root, config.results)
layout.create()
log.configure(config.log, role="receive")
with Role("receive", layout.run, config.digest()) as role:
    sys.exit(receive(config, role))
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
entity.supported_contexts = AllStoragePresentationContexts
entity.add_supported_context(Verification)
entity.start_server(("127.0.0.1", int(sys.argv[2])), block=True, evt_handlers=[(evt.EVT_C_STORE, store)])
"""


class Absent(Exception):
    """A peer is not installed here."""


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
def ctnode(folder: Path, processes: int = 1) -> Iterator[int]:
    root = folder / "root"

    def report() -> dict[str, object]:
        found = list((root / "run").glob("receive-*.json"))
        return json.loads(found[0].read_text()) if found else {}

    with running([sys.executable, "-c", CTNODE_ROLE, root, str(processes)]) as process:
        wait_for(lambda: report().get("state") == "ready", process, "ctnode")
        counters = report()["counters"]
        assert isinstance(counters, dict)
        yield int(counters["port"])


@contextmanager
def dcmtk(folder: Path) -> Iterator[int]:
    port = free_port()
    with running([dcmtk_tool("storescp"), "--fork", "-od", folder, str(port)]) as process:
        wait_for(lambda: answers(port), process, "storescp")
        yield port


@contextmanager
def orthanc(folder: Path) -> Iterator[int]:
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
        yield port


@contextmanager
def pynetdicom(folder: Path) -> Iterator[int]:
    port = free_port()
    with running([sys.executable, "-c", PLAIN_PYNETDICOM, folder, str(port)]) as process:
        wait_for(lambda: answers(port), process, "pynetdicom")
        yield port


PEERS: dict[str, Callable[[Path], contextmanager[int]]] = {
    "ctnode": ctnode,
    "ctnode x2": lambda folder: ctnode(folder, 2),
    "dcmtk": dcmtk,
    "orthanc": orthanc,
    "pynetdicom": pynetdicom,
}


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


def measure(peer: str, sources: Sequence[Path], count: int, folder: Path) -> float:
    """Return instances per second of all senders together."""
    folder.mkdir()
    try:
        with PEERS[peer](folder) as port:
            command = [dcmtk_tool("storescu"), "--scan-directories", "-aec", "ANY", "127.0.0.1", str(port)]
            started = time.perf_counter()
            senders = [subprocess.Popen([*command, source], env=ENVIRONMENT) for source in sources]
            codes = [sender.wait() for sender in senders]
            seconds = time.perf_counter() - started
            if any(codes):
                raise RuntimeError(f"storescu to {peer} ended with {codes}")
            return count * len(sources) / seconds
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"{os.cpu_count()} x {models[0] if models else platform.machine()}, {memory_gb:.0f} GB, "
        f"Linux {platform.release()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--count", type=int, default=400, help="instances of each sender")
    parser.add_argument("--folder", type=Path, help="where everything lies meanwhile (default: a temporary one)")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    options = parser.parse_args()
    try:
        dcmtk_tool("storescu")
    except Absent as absent:
        sys.exit(f"{absent} is absent")
    print(machine())
    rates: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="ingest-") as name:
        folder = Path(name)
        sources = [folder / f"source{number}" for number in range(max(options.senders))]
        for source in sources:
            make_instances(source, options.count)
        for peer in options.peers:
            try:
                rates[peer] = {
                    senders: measure(peer, sources[:senders], options.count, folder / "store")
                    for senders in options.senders
                }
            except Absent as absent:
                print(f"skipped: {absent} is absent")
    print(f"\n{'instances/s':<12}" + "".join(f"{f'{senders} sending':>12}" for senders in options.senders))
    for peer, found in rates.items():
        print(f"{peer:<12}" + "".join(f"{found[senders]:>12.0f}" for senders in options.senders))
    ours = rates.get("ctnode", {})
    for peer in ("dcmtk", "orthanc", "pynetdicom"):
        if ours and peer in rates:
            ratios = ", ".join(f"{ours[s] / rates[peer][s]:.2f}x with {s}" for s in options.senders)
            print(f"ctnode / {peer}: {ratios}")


if __name__ == "__main__":
    main()
