"""A folder as a destination."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ctnode.wire import folder
from ctnode.wire.sender import Outcome

pytestmark = pytest.mark.integration


def files(place: Path, count: int) -> list[tuple[Path, str]]:
    place.mkdir()
    made = [(place / str(number), f"1.2/3.4/{number}.dcm") for number in range(count)]
    for path, name in made:
        path.write_bytes(name.encode() * 1000)
    return made


def test_files_appear_under_their_names_and_again_is_no_change(tmp_path: Path) -> None:
    made = files(tmp_path / "from", 3)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    assert [one.outcome for one in folder.put(shelf, made)] == [Outcome.SENT] * 3
    assert {str(path.relative_to(shelf)) for path in shelf.rglob("*") if path.is_file()} == {name for _, name in made}
    assert [(shelf / name).read_bytes() for _, name in made] == [path.read_bytes() for path, _ in made]
    before = (shelf / made[0][1]).stat().st_ino
    assert next(folder.put(shelf, made)).comment == "these very bytes were there"
    assert (shelf / made[0][1]).stat().st_ino == before
    made[0][0].write_bytes(b"other")
    assert next(folder.put(shelf, made)).comment == ""
    assert (shelf / made[0][1]).read_bytes() == b"other"


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    made = files(tmp_path / "from", 2)
    results = list(folder.put(tmp_path / "share", made))
    assert [(one.outcome, one.is_fault, one.comment) for one in results] == [
        (Outcome.UNTRIED, True, "the folder is not there")
    ] * 2
    assert not (tmp_path / "share").exists()


def test_a_full_disk_leaves_nothing_half_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = files(tmp_path / "from", 3)
    shelf = tmp_path / "shelf"
    shelf.mkdir()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder, "sync", full)
    results: list[Any] = list(folder.put(shelf, made))
    assert [one.outcome for one in results] == [Outcome.RETRY, Outcome.UNTRIED, Outcome.UNTRIED]
    assert results[0].comment == "the folder takes no files: no space left on device"
    assert [path for path in shelf.rglob("*") if path.is_file()] == []
