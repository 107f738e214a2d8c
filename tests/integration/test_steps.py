"""How far a long command is: nothing at first, then lines now and then, or a bar at a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ctnode.cli import cli, steps
from ctnode.cli.steps import Steps
from tests.archive_root import Root, stack
from tests.harness import small_series

pytestmark = pytest.mark.integration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_there_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Steps("verify", "files", clock=clock) as one, Steps("import", "files", is_quiet=True, clock=clock) as quiet:
        for second in range(25):
            clock.now = float(second)
            one.at(second, 30, "[x]")
            quiet.at(second)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [f"verify: {done} of 30 files, [x]" for done in (2, 12, 22)]


def everything(terminal: int) -> str:
    """Read to the end what was written to a terminal that nobody writes to any more, in whatever pieces it comes."""
    text = b""
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 65536):
            text += part
    return text.decode()


def test_at_a_terminal_there_is_a_bar_from_two_seconds_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    clock = Clock()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        with Steps("verify", "files", clock=clock) as bar:
            bar.at(1, 30)
            assert bar._bar is None
            clock.now = 2.0
            bar.at(7, 30, "[bold]UID")
            assert bar._bar is not None
            bar._bar.refresh()
    text = everything(ours)
    os.close(ours)
    assert "7/30" in text
    assert "[bold]UID" in text


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    node = Root(tmp_path / "node")
    node.hold(*stack(3))
    yield node
    node.close()


def test_every_command_that_may_take_long_says_how_far_it_is(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "PATIENCE_S", 0.0)
    monkeypatch.setattr(steps, "LINE_S", 0.0)
    file = tmp_path / "config.toml"
    file.write_text(f'[storage]\nroot = "{root.layout.root}"\nreserve_mb = 0\nreserve_inodes = 0\n')
    root.close()
    series, _ = small_series(tmp_path, 1, slices=4)

    def said(*words: str) -> str:
        done = CliRunner().invoke(cli, ["--config", str(file), *words], standalone_mode=False)
        assert not isinstance(done.exception, Exception), done.exception
        return done.stderr

    assert "verify: 3 of 3 originals" in said("verify")
    assert "verify:" not in said("verify", "--json")
    assert "import: 4 files" in said("import", str(tmp_path / "series-1"))
    assert "backup:" in said("backup", str(tmp_path / "copy.db"))
    # Each takes the keeper's lock until its process ends.
    (root.layout.run / "keep.lock").unlink()
    assert "rebuild: 2 of 3 files" in said("rebuild-index")
    told = said("process", str(tmp_path / "series-1"), "--out", str(tmp_path / "out"), "--set", "outputs.lungs=false")
    assert "process: " in told
    assert series in told
