"""The child of ``process``: one series after the other, and only the one that it dies on is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ctnode.config import Config
from ctnode.flow.offline import process
from ctnode.flow.workshop import Workshop
from ctnode.ops.process import end_group, resident_bytes, resident_bytes_of_group
from ctnode.words import VolumeStatus
from tests.phantom_series import SERIES, grid, write_ramp

pytestmark = pytest.mark.integration


@pytest.fixture
def two_series(tmp_path) -> Path:
    write_ramp(tmp_path / "in" / "a", grid())
    write_ramp(tmp_path / "in" / "b", grid(), series_uid=SERIES + ".2")
    return tmp_path / "in"


def run(place: Path, out: Path, config: Config, on_progress):
    with Workshop(config.worker, config.outputs) as workshop:
        return list(process([place], out, config, lambda progress: on_progress(progress, workshop), workshop))


def at_first_step(action):
    done = []

    def on_progress(progress, workshop):
        if progress.phase == "series" and progress.label.endswith("decode") and not done:
            done.append(action(workshop))

    return on_progress


def test_a_death_hurts_one_series_only(two_series, tmp_path):
    killed = at_first_step(lambda workshop: os.kill(workshop._child.pid, signal.SIGABRT))
    first, second = run(two_series, tmp_path / "out", Config(), killed)
    assert (first.status, second.status) == (VolumeStatus.REFUSED, VolumeStatus.EXACT)
    assert [issue.code for issue in first.issues] == ["CRASHED"]
    assert {path.name for path in Path(first.directory).iterdir()} == {"ct.json"}
    assert json.loads((Path(first.directory) / "ct.json").read_text())["ctnode"]["status"] == "REFUSED"


@pytest.mark.parametrize(
    ("limits", "code"), [({"memory_mb": 256}, "OUT_OF_MEMORY"), ({"timeout_s": 0.5}, "OUT_OF_TIME")]
)
def test_limits_hold(two_series, tmp_path, limits, code):
    config = Config.model_validate({"worker": limits})
    if code == "OUT_OF_MEMORY":
        config = config.model_copy(update={"worker": config.worker.model_copy(update={"memory_mb": 1})})
        stopped = at_first_step(lambda workshop: None)
    else:
        stopped = at_first_step(lambda workshop: os.kill(workshop._child.pid, signal.SIGSTOP))
    first, *_ = run(two_series, tmp_path / "out", config, stopped)
    assert [issue.code for issue in first.issues] == [code]


def test_a_child_that_died_while_nothing_was_to_do_is_replaced(two_series, tmp_path):
    def on_progress(progress, workshop):
        if progress.phase == "read" and workshop._child.poll() is None:
            os.kill(workshop._child.pid, signal.SIGKILL)

    assert [one.status for one in run(two_series, tmp_path / "out", Config(), on_progress)] == [VolumeStatus.EXACT] * 2


def test_the_memory_of_a_job_is_that_of_its_helpers_too():
    hog = "import time; held = bytes(range(256)) * 250_000; print(flush=True); time.sleep(60)"
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hog!r}])"
    job = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert job.stdout is not None
        job.stdout.readline()
        assert resident_bytes(job.pid) < 60_000_000
        assert 64_000_000 < resident_bytes_of_group(job.pid) < 120_000_000
    finally:
        end_group(job.pid)
        job.communicate()
    assert resident_bytes_of_group(job.pid) == 0
