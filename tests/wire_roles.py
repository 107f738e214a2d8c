"""The ``receive`` role as a real process, and the programs of DCMTK."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.wire_peers import PATIENCE_S

SCRIPT = """
import json, sys
from pathlib import Path
from ctnode.archive.layout import Layout
from ctnode.config import load
from ctnode.ops import log
from ctnode.ops.role import Role
from ctnode.wire.acceptor import receive
from ctnode.words import CtnodeError
overrides = Path(sys.argv[1])
def read():
    return load(environment={}, overrides=json.loads(overrides.read_text())).config
config = read()
layout = Layout(config.root, config.results)
layout.create()
log.configure(config.log, role="receive")
with Role("receive", layout.run, config.digest()) as role:
    try:
        sys.exit(receive(config, role, read))
    except CtnodeError as error:
        sys.exit(int(error.exit_code))
"""


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Poll for what another process writes down; there is no event to wait for."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.02)
    return found


class ReceiveRole:
    """One role process and what it says about itself."""

    def __init__(self, folder: Path, **overrides: object) -> None:
        self.root = folder / "root"
        self.settings = folder / "overrides.json"
        self.overrides: dict[str, object] = {
            "storage.root": str(self.root), "node.port": 0, "log.format": "json", "log.level": "info",
            # One, so that it is known which process has an association.
            "receiver.processes": 1, **overrides,
        }  # fmt: skip
        self.write_settings()
        self.log = folder / f"log-{time.monotonic_ns()}"
        self.start()

    def start(self) -> None:
        """Start the process, or start it again."""
        with self.log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(self.settings)], stderr=stderr, start_new_session=True
            )

    def write_settings(self, **changed: object) -> None:
        self.overrides |= changed
        self.settings.write_text(json.dumps(self.overrides))

    def report(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.root / "run" / f"receive-{self.process.pid}.json").read_text())
        except FileNotFoundError:
            return {}
        return content

    def counters(self) -> dict[str, Any]:
        found: dict[str, Any] = self.report().get("counters", {})
        return found

    def wait_ready(self) -> int:
        """Return the port once the role serves."""

        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.report().get("state") == "ready"

        wait_until(ready, "the role")
        return int(self.counters()["port"])

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_exit(self) -> int:
        return self.process.wait(PATIENCE_S)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def receive_role(folder: Path, **overrides: object) -> Iterator[ReceiveRole]:
    role = ReceiveRole(folder, **overrides)
    try:
        yield role
        if role.process.poll() is None:
            role.signal(signal.SIGTERM)
            assert role.wait_exit() == 0, role.log.read_text()
    finally:
        role.end()


def dcmtk(name: str) -> str:
    """Return DCMTK's own program, or skip by its name: pynetdicom installs scripts of the same names."""
    for folder in os.get_exec_path():
        program = Path(folder) / name
        if program.is_file():
            version = subprocess.run([program, "--version"], capture_output=True, check=False).stdout
            if b"dcmtk" in version:
                return str(program)
    pytest.skip(f"{name} of DCMTK is not installed (Debian package dcmtk)")


def run_tool(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, "TCP_NODELAY": "1"},
        timeout=120,
        check=False,
    )
