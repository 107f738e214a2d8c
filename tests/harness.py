"""A node, its neighbours and its senders as real processes, for tests that ask for promises and not for code.

Everything is started on free ports, stopped by process number, and waited for by what can be seen from outside: the
files in ``run/``, the index (read only), the ``--json`` commands.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import pytest
from pydicom import Dataset, dcmread

from ctnode.archive import invariants
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.config.models import Receiver
from tests.wire_peers import P_DATA, RawPeer, pdu, pdv, store_command

REPOSITORY: Final = Path(__file__).parents[1]
# pynetdicom puts programs with the names of DCMTK's into a virtual environment; those are not meant here.
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# No promise is measured by this; it only ends a test that would wait for ever.
CEILING_S: Final = 180.0
POLL_S: Final = 0.05
LOOPBACK: Final = "127.0.0.1"
FRAGMENT_BYTES: Final = 16000
# What reports in every node, the receiver processes under "receiver".
ROLES: Final = frozenset({"run", "receive", "receiver", "keep", "work", "deliver"})

Popen = subprocess.Popen[bytes]
Value = TypeVar("Value")


# ------------------------------------------------------------------------------------------------------ data


def data_folder(name: str) -> Path:
    """Return the folder of real data, or skip and say so."""
    place = Path(os.environ.get("CTNODE_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / name
    if not place.exists():
        pytest.skip(f"no real data at {place}; set CTNODE_TEST_DATA")
    return place


def siemens_chest() -> list[Path]:
    """Return the files of the whole chest of 30 slices, in the order of their names."""
    return sorted(data_folder("chest/lung_dx_a0002_siemens_8mm").glob("*.dcm"))


def philips_chest() -> list[Path]:
    """Return the files of the whole chest of 64 slices, in the order of their names."""
    return sorted(data_folder("chest/lung_dx_a0001_philips_5mm").glob("*.dcm"))


def series_of(file: Path) -> str:
    """Return the SeriesInstanceUID of a file."""
    return str(dcmread(file, stop_before_pixels=True).SeriesInstanceUID)


def data_set_of(file: Path) -> bytes:
    """Return the bytes after group 0002 of a Part 10 file, found without the reader of the project."""
    content = file.read_bytes()
    assert content[128:132] == b"DICM", f"{file.name} is no Part 10 file"
    position = 132
    while content[position : position + 2] == b"\x02\x00":
        if content[position + 4 : position + 6] in {b"OB", b"OW", b"UN", b"SQ", b"UT", b"UC", b"UR"}:
            position += 12 + int.from_bytes(content[position + 8 : position + 12], "little")
        else:
            position += 8 + int.from_bytes(content[position + 6 : position + 8], "little")
    return content[position:]


def sha256(data: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def sop_and_digest(file: Path) -> tuple[str, str]:
    """Return SOP Instance UID and digest of the data set of a file."""
    return str(dcmread(file, stop_before_pixels=True).SOPInstanceUID), sha256(data_set_of(file))


# ----------------------------------------------------------------------------------------------------- tools


def tool(name: str) -> str:
    """Return the path of a program of the system, or skip and name it."""
    found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def tool_environment() -> dict[str, str]:
    """Return the environment of DCMTK's programs; without TCP_NODELAY each image stalls on loopback."""
    return {**os.environ, "TCP_NODELAY": "1"}


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program of the system to its end; what it says is in ``stdout``."""
    return subprocess.run(
        [tool(name), *map(str, arguments)],
        env=tool_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=CEILING_S,
        check=False,
    )


def storescu(
    port: int, files: Iterable[Path], *options: str, calling: str = "STORESCU"
) -> subprocess.CompletedProcess[str]:
    """Send files in one association."""
    return run_tool("storescu", "-v", "-aet", calling, "-aec", "CTNODE", *options, LOOPBACK, port, *files)


def start_storescu(port: int, files: Iterable[Path], *options: str, calling: str = "STORESCU") -> Popen:
    """Start to send files in one association."""
    return subprocess.Popen(
        [tool("storescu"), "-v", "-aet", calling, "-aec", "CTNODE", *options, LOOPBACK, str(port), *map(str, files)],
        env=tool_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def free_port() -> int:
    """Return a port that nobody listens on, for programs that cannot choose one and say so.

    None that the kernel gives to connections by itself: one of them might have it before the program does.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(first // 2, first)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port


def answers(port: int, called: str = "CTNODE") -> bool:
    """Return whether somebody answers a C-ECHO there."""
    return run_tool("echoscu", "-aec", called, LOOPBACK, port).returncode == 0


def wait_until(condition: Callable[[], Value], what: str, ceiling_s: float = CEILING_S) -> Value:
    """Poll until the condition holds, and return its value."""
    deadline = time.monotonic() + ceiling_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {ceiling_s:g} s in vain: {what}"
        time.sleep(POLL_S)
    return value


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process that this test started, and wait for it."""
    if process.poll() is None:
        process.kill()
    process.wait(CEILING_S)
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def storescp(directory: Path, *options: str, port: int = 0, title: str = "STORESCP") -> Iterator[int]:
    """Run DCMTK's storescp, which keeps data sets bit for bit, and yield its port."""
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    process = subprocess.Popen(
        [tool("storescp"), *options, "-aet", title, "-od", str(directory), "--bit-preserving", "-pm", str(port)],
        env=tool_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: answers(port, title), "storescp answers")
        yield port
    finally:
        end(process)


# ---------------------------------------------------------------------------------------------------- node


class NodeFailed(AssertionError):
    """The node ended although nobody told it to."""


@dataclass(frozen=True)
class SeriesNow:
    """A series as the index has it: its newest revision."""

    id: int
    name: str
    study: str
    revision: int
    state: str
    verdict: str
    reason: str
    hold: str
    instances: int
    duplicates: int
    flags: tuple[str, ...]
    evidence: str


class Node:
    """``ctnode run`` as a real process with a configuration of its own; a context manager that leaves nothing running.

    Parameters
    ----------
    folder
        Where config.toml, root and logs lie; a second node on the same folder continues the first.
    sections
        Tables of the configuration over the defaults of a test; ``peers`` and ``targets`` are lists of tables.
    """

    def __init__(self, folder: Path, *, environment: Mapping[str, str] | None = None, **sections: object) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.config_file = folder / "config.toml"
        self.environment = dict(environment or {})
        self.process: Popen | None = None
        self.sections: dict[str, Any] = {
            "node": {"port": 0, "drain_s": 20.0},
            "storage": {"root": str(self.root), "reserve_mb": 1, "reserve_inodes": 0},
            "completion": {"quiet_s": 0.5},
            # Tests run side by side, and most of them need no page.
            "web": {"enabled": False, "port": 0},
        }
        self.configure(**sections)
        self._starts = len(list(folder.glob("log-*")))

    def configure(self, **sections: object) -> None:
        """Lay tables over the configuration and write the file."""
        for name, table in sections.items():
            if isinstance(table, Mapping):
                self.sections[name] = {**self.sections.get(name, {}), **table}
            else:
                self.sections[name] = table
        self.root = Path(self.sections["storage"]["root"])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text(toml(self.sections), encoding="utf-8")

    # ------------------------------------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is not None:
            print(f"--- end of the log of the node in {self.folder.name}\n{self.log_tail()}", file=sys.stderr)
        self.kill()

    @property
    def log_file(self) -> Path:
        """Return the log of the newest start."""
        return self.folder / f"log-{self._starts:03d}"

    @property
    def pid(self) -> int:
        """Return the process number of the supervisor."""
        assert self.process is not None
        return self.process.pid

    @property
    def layout(self) -> Layout:
        """Return the folders of the node."""
        return Layout(self.root, Path(self.sections["storage"].get("results") or self.root / "results"))

    def launch(self, *, prefix: Sequence[str] = (), pass_fds: Sequence[int] = ()) -> Popen:
        """Start the process and wait for nothing."""
        assert self.process is None or self.process.poll() is not None, "the node runs already"
        self._starts += 1
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "ctnode", "--config", str(self.config_file), "run"],
                cwd=REPOSITORY,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
            )
        return self.process

    def start(self, *, prefix: Sequence[str] = (), pass_fds: Sequence[int] = ()) -> Self:
        """Start and wait until every role says that it is ready."""
        self.launch(prefix=prefix, pass_fds=pass_fds)
        try:
            self.wait_for(lambda: self._report("run").get("state") == "ready", "the node is ready")
        except BaseException:
            print(self.log_tail(), file=sys.stderr)
            self.kill()
            raise
        return self

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("CTNODE_") or name == "CTNODE_TEST_JOURNAL"
        }
        return {**inherited, **self.environment}

    def kill(self, known: Sequence[int] = ()) -> None:
        """Kill the supervisor and all its descendants at once, as a power cut would.

        They are frozen first, so that none of them sees another die; those that are ``known`` before all others,
        because looking for descendants takes its time.
        """
        if self.process is None:
            return
        if self.process.poll() is None:
            for pid in known:
                _signal(pid, signal.SIGSTOP)
            doomed = _freeze(self.process.pid)
        else:
            doomed = self.strays()
        for pid in doomed:
            _signal(pid, signal.SIGKILL)
        self.process.wait(CEILING_S)
        wait_until(lambda: all(map(is_gone, doomed)) and not self.strays(), "all processes of the node are gone")

    def terminate(self) -> int:
        """Ask the node to stop and return its exit code."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(CEILING_S)
        assert not self.strays(), "a stopped node left processes behind"
        return code

    def strays(self) -> list[int]:
        """Return the processes that carry the configuration of this node or work below its root, without it."""
        marks = (os.fsencode(self.config_file), os.fsencode(self.root) + b"/")
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
                pid = int(entry.name)
                if state == "Z" or pid in {os.getpid(), self.pid}:
                    continue
                command = (entry / "cmdline").read_bytes()
                opened = (os.fsencode(file.readlink()) for file in (entry / "fd").iterdir())
                if b"ctnode" in command and (marks[0] in command or any(name.startswith(marks[1]) for name in opened)):
                    found.append(pid)
        return found

    def roles(self) -> dict[str, list[int]]:
        """Return the process numbers of the roles that report, by name."""
        found: dict[str, list[int]] = {}
        for report in self.reports():
            found.setdefault(str(report["role"]), []).append(int(report["pid"]))
        return found

    def whole_roles(self) -> dict[str, list[int]]:
        """Return the same once every process of the node has reported."""
        receivers = int(self.sections.get("receiver", {}).get("processes", Receiver().processes))

        def found() -> dict[str, list[int]] | None:
            roles = self.roles()
            is_whole = set(roles) >= ROLES and len(roles["receiver"]) == receivers
            return roles if is_whole else None

        return self.wait_for(found, "every process of the node reports")

    def reports(self) -> list[dict[str, Any]]:
        """Return what the living descendants of the supervisor last wrote about themselves."""
        alive = {self.pid, *descendants(self.pid)}
        found = []
        for file in sorted((self.root / "run").glob("*-[0-9]*.json")):
            with suppress(OSError, ValueError):
                report = json.loads(file.read_text(encoding="utf-8"))
                if report["pid"] in alive:
                    found.append(report)
        return found

    def _report(self, role: str) -> dict[str, Any]:
        return next((report for report in self.reports() if report["role"] == role), {})

    @property
    def port(self) -> int:
        """Return the port on which the node listens."""
        return int(self.wait_for(lambda: self.counters("receive").get("port"), "the receiver tells its port"))

    def counters(self, role: str) -> dict[str, Any]:
        """Return the counters of a role."""
        return dict(self._report(role).get("counters", {}))

    # --------------------------------------------------------------------------------------------- looking

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of the log of the newest start."""
        if not self.log_file.is_file():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def events(self, event: str = "") -> list[dict[str, Any]]:
        """Return the log lines of the newest start, only those of an event if one is named."""
        found = []
        for line in self.log_file.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                record = json.loads(line)
                if not event or record.get("event") == event:
                    found.append(record)
        return found

    def command(self, *arguments: object, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run another command of ctnode with the same configuration."""
        done = subprocess.run(
            [sys.executable, "-m", "ctnode", "--config", str(self.config_file), *map(str, arguments)],
            cwd=REPOSITORY,
            env={name: value for name, value in self._environment().items() if name != "CTNODE_TEST_CRASH"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CEILING_S,
            check=False,
        )
        if expect is not None:
            assert done.returncode == expect, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: object, expect: int | None = 0) -> Any:
        """Run a reading command with ``--json``."""
        return json.loads(self.command(*arguments, "--json", expect=expect).stdout)

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the index, read only; empty while there is none or its writer is in the way."""
        try:
            connection = sqlite3.connect(f"file:{self.layout.database}?mode=ro", uri=True, timeout=5.0)
        except sqlite3.OperationalError:
            return []
        try:
            return connection.execute(sql, values).fetchall()
        except sqlite3.OperationalError:
            # Not migrated yet, or a journal of a killed writer that only a writer can roll back.
            return []
        finally:
            connection.close()

    def series(self, uid: str, *, split: int = 1) -> SeriesNow | None:
        """Return a series as it stands, or None while the node does not know it."""
        rows = self.query(
            "SELECT series.id, series.uid, studies.uid, r.n, r.state, r.verdict, r.reason, series.hold,"
            " series.instances, series.duplicates, series.flags, r.evidence FROM series"
            " JOIN studies ON studies.id = series.study_id JOIN revisions AS r ON r.series_id = series.id"
            " WHERE series.uid = ? AND series.split = ? ORDER BY r.n DESC LIMIT 1",
            uid,
            split,
        )
        if not rows:
            return None
        row = rows[0]
        return SeriesNow(*row[:10], tuple(json.loads(row[10])), row[11])

    def wait_for(self, condition: Callable[[], Value], what: str, ceiling_s: float = CEILING_S) -> Value:
        """Poll while the node runs until the condition holds."""

        def still_running() -> Value:
            value = condition()
            if not value and self.process is not None and self.process.poll() is not None:
                raise NodeFailed(f"the node ended with {self.process.returncode} before {what}\n{self.log_tail()}")
            return value

        return wait_until(still_running, what, ceiling_s)

    def wait_series(
        self, uid: str, state: str = "DONE", *, revision: int = 1, instances: int = 0, ceiling_s: float = CEILING_S
    ) -> SeriesNow:
        """Wait until a revision of a series is in a state with at least so many instances."""

        found: list[SeriesNow] = []

        def reached() -> bool:
            now = self.series(uid)
            if now is None or now.revision < revision or now.instances < instances or now.state != state:
                return False
            found.append(now)
            return True

        try:
            self.wait_for(reached, f"{uid} is {state}", ceiling_s)
        except NodeFailed:
            raise
        except AssertionError as error:
            raise AssertionError(f"{error}\nit is {self.series(uid)}") from None
        return found[0]

    def is_journal_empty(self) -> bool:
        """Return whether nothing waits to be settled and no association is open."""
        return not any(self.layout.incoming.iterdir())

    def wait_settled(self) -> None:
        """Wait until the keeper has moved everything out of the journal."""
        self.wait_for(self.is_journal_empty, "the journal is empty")

    def results(self, uid: str, revision: int = 1) -> Path:
        """Return the results folder of a revision."""
        now = self.series(uid)
        assert now is not None
        return self.layout.result_directory(now.study, uid, 1, revision)

    def stored(self) -> dict[Path, str]:
        """Return the digests of the data sets of all files of the store."""
        return {file: sha256(data_set_of(file)) for file in self.layout.store.rglob("*") if file.is_file()}

    def deliveries(self, uid: str) -> list[tuple[str, str, int | None, int]]:
        """Return target, state, status and attempts of what is owed of a series, oldest first."""
        return self.query(  # type: ignore[return-value]
            "SELECT d.target, d.state, d.status, d.attempt FROM deliveries AS d"
            " JOIN revisions AS r ON r.id = d.revision_id JOIN series ON series.id = r.series_id"
            " WHERE series.uid = ? ORDER BY d.id",
            uid,
        )

    # -------------------------------------------------------------------------------------------- promises

    def check_promises(self, acknowledged: Mapping[str, str] | None = None) -> None:
        """Check that files and rows agree both ways, and that what was acknowledged is there byte for byte.

        Parameters
        ----------
        acknowledged
            SOP Instance UIDs and digests of data sets whose success the sender has read.
        """
        stored = self.stored()
        rows = self.query("SELECT path, sop_instance, digest FROM instances")
        in_rows = {self.layout.store / path for path, _, _ in rows}
        assert in_rows == set(stored), f"files without a row or rows without a file: {in_rows ^ set(stored)}"
        assert len(rows) == len(in_rows), "two rows name one file"
        kept = {(uid, stored[self.layout.store / path]) for path, uid, _ in rows}
        lost = [uid for uid, digest in (acknowledged or {}).items() if (uid, digest) not in kept]
        assert not lost, f"{len(lost)} acknowledged instances are gone or changed: {lost[:5]}"
        with Database(self.layout.database, readonly=True) as database:
            faults = [
                *invariants.check_store(database, self.layout),
                *invariants.check_states(database),
                *invariants.check_integrity(database),
            ]
        assert not faults, faults

    def findings(self) -> list[str]:
        """Return what ``ctnode doctor`` finds wrong."""
        found = self.json("doctor", expect=None)
        return [f"{finding['what']}: {finding['found']}" for finding in found if not finding["is_good"]]


def descendants(pid: int) -> list[int]:
    """Return the living processes below one."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                below.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _freeze(pid: int) -> list[int]:
    """Stop a process and all below it, those included that were being started meanwhile."""
    frozen: list[int] = []
    while True:
        new = [number for number in (pid, *descendants(pid)) if number not in frozen]
        if not new:
            return frozen
        for number in new:
            _signal(number, signal.SIGSTOP)
        frozen += new


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def is_gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "Z"
    except OSError as error:
        return error.errno in {errno.ENOENT, errno.ESRCH}


def toml(sections: Mapping[str, object]) -> str:
    """Render the tables of a configuration."""
    lines: list[str] = []
    for name, table in sections.items():
        tables = [table] if isinstance(table, Mapping) else table
        assert isinstance(tables, Sequence)
        for one in tables:
            lines.append(f"[{name}]" if isinstance(table, Mapping) else f"[[{name}]]")
            lines += [f"{key} = {_toml_value(value)}" for key, value in one.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml_value(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(str(value) if isinstance(value, Path) else value)


# ------------------------------------------------------------------------------------------------- senders


@dataclass(frozen=True)
class Answer:
    """What a sender has read for one file."""

    file: Path
    status: int


def send_as_is(
    port: int, files: Sequence[Path], *, calling: str = "SCU", on_answer: Callable[[Answer], object] | None = None
) -> list[Answer]:
    """Send the data sets of files bit for bit in one association, until all are sent or the connection is gone.

    Each transfer syntax is proposed alone, so that the receiver cannot choose another. The sender is a plain socket: it
    knows at once when the other side dies, and what it notes it has read.
    """
    told: list[Answer] = []
    kinds = [
        (str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID), str(meta.MediaStorageSOPInstanceUID))
        for meta in (dcmread(file, stop_before_pixels=True).file_meta for file in files)
    ]
    contexts = {kind: 2 * number + 1 for number, kind in enumerate(sorted({kind[:2] for kind in kinds}))}
    try:
        with RawPeer(port) as peer:
            peer.socket.settimeout(CEILING_S)
            peer.associate([(number, kind[0], [kind[1]]) for kind, number in contexts.items()], calling=calling)
            for number, (file, kind) in enumerate(zip(files, kinds, strict=True), start=1):
                peer.send(b"".join(_store_request(contexts[kind[:2]], kind[0], kind[2], number, data_set_of(file))))
                told.append(Answer(file, peer.answer().status))
                if on_answer is not None:
                    on_answer(told[-1])
            peer.release()
    except (EOFError, ConnectionError):
        # The other side was killed: what it has not answered is not acknowledged.
        return told
    return told


def _store_request(context: int, sop_class: str, sop_instance: str, number: int, data: bytes) -> Iterator[bytes]:
    command = store_command(sop_instance.encode(), sop_class=sop_class.encode(), message_id=number)
    yield pdu(P_DATA, pdv(context, 3, command))
    for start in range(0, len(data), FRAGMENT_BYTES):
        is_last = start + FRAGMENT_BYTES >= len(data)
        yield pdu(P_DATA, pdv(context, 2 if is_last else 0, data[start : start + FRAGMENT_BYTES]))


class Gate:
    """A relay before a port that lets so many bytes of the sender pass, and then no more.

    So a sender stands still in the middle of its work, whatever the speed of the machine.
    """

    def __init__(self, port: int, limit_bytes: int) -> None:
        self.is_shut = threading.Event()
        self._target = port
        self._left = limit_bytes
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port = int(self._listener.getsockname()[1])
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._relay)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stop_write)
        self._thread.join()
        self._listener.close()
        os.close(self._stop_read)

    def _relay(self) -> None:
        ready, _, _ = select.select([self._listener, self._stop_read], [], [])
        if self._stop_read in ready:
            return
        sender, _ = self._listener.accept()
        with sender, socket.create_connection((LOOPBACK, self._target)) as receiver:
            while True:
                sources = [receiver, self._stop_read] if self.is_shut.is_set() else [sender, receiver, self._stop_read]
                ready, _, _ = select.select(sources, [], [])
                if self._stop_read in ready:
                    return
                for source, drain in ((sender, receiver), (receiver, sender)):
                    if source in ready and not self._pass(source, drain, counts=source is sender):
                        return

    def _pass(self, source: socket.socket, drain: socket.socket, *, counts: bool) -> bool:
        piece = source.recv(min(65536, self._left) if counts else 65536)
        if not piece:
            return False
        drain.sendall(piece)
        if counts:
            self._left -= len(piece)
            if not self._left:
                self.is_shut.set()
        return True


def small_series(
    directory: Path,
    number: int,
    *,
    slices: int = 12,
    side: int = 64,
    edit: Callable[[int, Dataset], None] | None = None,
) -> tuple[str, list[Path]]:
    """Write a small series whose UIDs follow from ``number``; return its UID and its files."""
    import numpy as np

    from ctnode.ct.grid import Grid
    from ctnode.ct.phantom_dicom import write_series

    uid = f"1.2.826.0.1.3680043.8.498.77.{number}"
    place = directory / f"series-{number}"
    place.mkdir(parents=True)
    affine = np.diag([256.0 / side, 256.0 / side, 8.0, 1.0])
    affine[:3, 3] = (-128.0, -128.0, -40.0)
    noise = np.random.default_rng(number).integers(-30, 30, (slices, side, side), dtype=np.int16)
    voxels = np.full((slices, side, side), -1000, np.int16)
    voxels[:, 8:-8, 8:-8] = 40 + noise[:, 8:-8, 8:-8]
    files = write_series(
        place, voxels, Grid(voxels.shape, affine), study_uid=f"{uid}.1", series_uid=f"{uid}.1.1", edit=edit
    )
    return f"{uid}.1.1", files
