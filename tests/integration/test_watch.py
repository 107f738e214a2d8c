"""The node at a glance: the numbers of the index and of run/, for a terminal and as lines."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from ctnode.archive import jobs, lanes, outbox
from ctnode.archive.outbox import Ending, Parcel
from ctnode.cli.watch import line, screen
from ctnode.config import Config, Storage
from ctnode.flow.glance import Glance, look
from ctnode.ops.role import Role
from ctnode.words import DeliveryEvent
from tests.archive_root import Root, stack

pytestmark = pytest.mark.integration

CEILING_S = 60.0


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    node = Root(tmp_path / "node")
    yield node
    node.close()


def config_of(root: Root, reserve_mb: int = 0) -> Config:
    return Config(storage=Storage(root=str(root.layout.root), reserve_mb=reserve_mb))


def shown(glance: Glance, before: Glance | None = None) -> str:
    out = io.StringIO()
    Console(file=out, width=110).print(screen(glance, before))
    return out.getvalue()


def test_a_glance_has_the_numbers_of_index_and_roles(root: Root) -> None:
    revision = root.queued(*stack(2))
    root.queued(*stack(1, series="1.2.3.2"))
    root.hold(*stack(1, series="1.2.3.3"))
    assert jobs.claim(root.database, "one") is not None
    with root.database.immediate():
        outbox.post(root.database, revision.id, [Parcel("pacs", "report", f"r1/{n}.dcm", "aa") for n in range(4)])
        lanes.readdress(root.database, "pacs", 1, "pacs@ct1")
    dead, *_ = outbox.claim(root.database, "pacs@ct1", "one", limit=1)
    outbox.settle(root.database, [Ending(dead, DeliveryEvent.DIE, 0xA900)])
    lanes.failed(root.database, "pacs@ct1", "down", 60.0)
    with Role("work", root.layout.run, "digest") as role:
        role.report(job=7, running_s=65.0)
        role.write_report()
        glance = look(config_of(root), root.database)
    assert (glance.waiting, glance.queued, glance.running) == (1, 1, 1)
    assert [(one.job, one.running_s) for one in glance.workers] == [(7, 65.0)]
    (pacs,) = glance.destinations
    assert (pacs.name, pacs.waiting, pacs.dead, pacs.is_paused) == ("pacs", 3, 1, False)
    assert pacs.failing_s > 0
    said = [problem.what for problem in glance.problems]
    assert said[:3] == ["no keep runs", "no receive runs", "no deliver runs"]
    assert said[3] == "1 DEAD for pacs"
    assert said[4].startswith("pacs fails for")
    text = shown(glance)
    for words in ("job 7 for 1 min 5 s", "1 wait, 1 run", "3 wait", "1 given up", "5 problems", "ctnode echo pacs"):
        assert words in text
    assert "problems: no keep runs; no receive runs" in line(glance, None)


def test_two_glances_give_a_rate_and_a_port_that_began_anew_gives_none(root: Root) -> None:
    def at(moment: float, instances: int, received: int) -> Glance:
        with Role("receive", root.layout.run, "digest") as role:
            role.report(associations={"open": 3}, instances={"0000": instances, "A700": 9}, bytes=received)
            role.write_report()
            return look(config_of(root), root.database, now=moment)

    first, second = at(100.0, 50, 10_000_000), at(102.0, 150, 31_000_000)
    assert second.rates(first) == (50.0, 10.5)
    assert second.rates(None) == (0.0, 0.0)
    assert at(103.0, 1, 5).rates(second) == (0.0, 0.0)
    assert "associations=3 instances/s=50.0 MB/s=10.5" in line(second, first)
    assert "3 associations, 50.0 images/s, 10.5 MB/s" in shown(second, first)


def test_a_storage_that_takes_nothing_a_silent_role_and_a_certificate_are_problems(root: Root) -> None:
    with Role("receive", root.layout.run, "digest") as role:
        role.report(storage="free space is below the [reserve]", certificate_days=3.0)
        role.write_report()
        old = time.time() - 100
        os.utime(root.layout.run / f"receive-{os.getpid()}.json", (old, old))
        glance = look(config_of(root, reserve_mb=1 << 40), root.database)
    text = shown(glance)
    for words in ("receive is silent for 100 s", "below the [reserve]", "ends in 3 days", "MB are free for root"):
        assert words in text


def test_without_a_terminal_there_are_lines_and_with_one_a_screen(root: Root, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[storage]\nroot = "{root.layout.root}"\nreserve_mb = 0\n')
    command = [sys.executable, "-m", "ctnode", "--config", str(file), "status", "--watch"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    on_screen = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    piped = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert piped.stdout is not None
        assert re.match(r"\d{4}-\d\d-\d\dT.*Z associations=0 .*problems: no keep runs", piped.stdout.readline())
        text = ""
        deadline = time.monotonic() + CEILING_S
        # Drawn twice: it is refreshed by itself.
        while text.count("Ctrl-C ends") < 2 and time.monotonic() < deadline:
            if select.select([ours], [], [], 1.0)[0]:
                text += os.read(ours, 65536).decode(errors="replace")
        assert text.count("Ctrl-C ends") >= 2
        assert "\x1b[?1049h" in text
        on_screen.send_signal(signal.SIGINT)
        piped.send_signal(signal.SIGINT)
        assert (on_screen.wait(CEILING_S), piped.wait(CEILING_S)) == (130, 130)
    finally:
        for process in (on_screen, piped):
            process.kill()
            process.wait()
        piped.stdout.close()
        os.close(ours)
