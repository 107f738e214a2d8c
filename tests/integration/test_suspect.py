"""A storage whose sync failed: the mark that says so, and the probe at a start, which alone takes it away."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctnode.archive import suspect
from ctnode.archive.layout import Layout
from ctnode.archive.suspect import MARK_NAME, clear_by_probe, mark, marked
from ctnode.config import load
from ctnode.flow.doctor import examine
from ctnode.ops import durable
from tests.archive_root import Root

pytestmark = pytest.mark.integration


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "root", tmp_path / "root" / "results")
    layout.create()
    return layout


class Calls:
    """The operating system of the probe, with a note of each call."""

    def __init__(self, patch: pytest.MonkeyPatch, **replaced: Callable[..., Any]) -> None:
        self.made: list[str] = []
        fake = SimpleNamespace(**{name: getattr(os, name) for name in dir(os) if not name.startswith("__")})
        for name in ("write", "fsync", "posix_fadvise", "pread"):
            setattr(fake, name, self.noted(name, replaced.get(name, getattr(os, name))))
        patch.setattr(suspect, "os", fake)
        patch.setattr(durable, "os", fake)

    def noted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.made.append(name)
            return real(*arguments)

        return call


def fails(code: int) -> Callable[..., Any]:
    def call(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def test_the_probe_is_written_synced_dropped_and_read_back(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    assert clear_by_probe(layout) == ""
    # The file, then its folder; only then what is in memory is given up, and read from the disk.
    assert calls.made == ["write", "fsync", "fsync", "posix_fadvise", "pread"]
    assert list(layout.incoming.iterdir()) == []


def test_a_mark_says_why_and_since_when_and_a_sound_probe_takes_it_away(layout: Layout) -> None:
    assert marked(layout.run) == ""
    mark(layout.run, "a sync failed: Input/output error")
    assert json.loads((layout.run / MARK_NAME).read_text())["reason"] == "a sync failed: Input/output error"
    assert marked(layout.run).startswith("a sync failed: Input/output error (since 20")
    assert clear_by_probe(layout) == ""
    assert marked(layout.run) == ""
    (layout.run / MARK_NAME).write_text("{")
    assert "cannot be read" in marked(layout.run)


@pytest.mark.parametrize(
    ("call", "does", "said"),
    [
        ("fsync", fails(errno.EIO), "Input/output error"),
        ("write", fails(errno.EROFS), "Read-only file system"),
        ("pread", fails(errno.EIO), "Input/output error"),
        ("pread", lambda *_: bytes(1 << 16), "came back changed"),
        ("pread", lambda descriptor, count, offset: os.pread(descriptor, count - 1, offset), "came back changed"),
    ],
    ids=["sync", "read-only", "read", "other content", "shorter"],
)
def test_a_probe_that_fails_leaves_the_storage_suspect(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, call: str, does: Callable[..., Any], said: str
) -> None:
    mark(layout.run, "a sync failed")
    with monkeypatch.context() as patch:
        Calls(patch, **{call: does})
        assert said in clear_by_probe(layout)
    assert marked(layout.run)
    assert list(layout.incoming.iterdir()) == []
    assert clear_by_probe(layout) == ""


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_suspect_one(layout: Layout, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    Calls(monkeypatch, write=fails(code))
    assert clear_by_probe(layout) == ""


def test_doctor_says_what_is_suspect_and_what_to_do(tmp_path: Path) -> None:
    Root(tmp_path / "root").close()
    config = load(environment={}, overrides={"storage.root": str(tmp_path / "root")}).config
    layout = Layout(config.root, config.results)

    def finding() -> Any:
        return next(finding for finding in examine(config) if finding.what == "trust in the storage")

    assert finding().is_good
    mark(layout.run, "storage is suspect: a sync failed: Input/output error")
    assert not finding().is_good
    assert "a sync failed: Input/output error (since " in finding().found
    assert "restart of the receiver" in finding().hint
