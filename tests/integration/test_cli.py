"""The commands: exit codes, JSON, and that looking at a node never makes one."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import structlog

import ctnode.cli as cli_package
from ctnode.archive import jobs
from ctnode.cli import COMMANDS, main
from ctnode.ops.durable import lock
from tests.archive_root import SERIES, STUDY, Image, Root, stack
from tests.integration.test_importing import part10
from tests.phantom_series import grid, write_ramp

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ended]


def apart(*arguments: object) -> Ended:
    """Run a command in a process of its own, which takes its locks with it."""
    done = subprocess.run(
        [sys.executable, "-m", "ctnode", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def ctnode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("CTNODE_")]:
        monkeypatch.delenv(variable)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["ctnode", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    with warnings.catch_warnings():
        yield run
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.fixture
def node(ctnode: Run, tmp_path: Path) -> Iterator[Root]:
    """A root where commands look by default, with one series queued."""
    root = Root(tmp_path / "ctnode-data")
    root.queued(*stack(3))
    yield root
    root.close()


READING = [
    ("status",), ("status", "--json"), ("series", "list"), ("series", "list", "--json"), ("series", "show", SERIES),
    ("series", "why", SERIES), ("jobs", "list"), ("jobs", "list", "--json"),
]  # fmt: skip
WRITING = [
    ("series", "requeue", SERIES), ("jobs", "retry", "1"), ("jobs", "cancel", "1"), ("rebuild-index",),
    ("backup", "copy.db"),
]  # fmt: skip


@pytest.mark.parametrize("command", READING + WRITING, ids=" ".join)
def test_without_a_node_a_command_is_unavailable_and_makes_nothing(
    ctnode: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    ended = ctnode(*command)
    assert ended.code == 69
    assert ended.err.startswith("ctnode: no node at")
    assert ended.out == ""
    assert list(tmp_path.iterdir()) == []


def test_doctor_without_a_node_finds_that_there_is_none(ctnode: Run, tmp_path: Path) -> None:
    assert ctnode("doctor").code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ("nonsense",), ("series",), ("series", "show"), ("series", "list", "--state", "HELD"), ("process",),
        ("process", "."), ("import",), ("import", "nowhere"), ("send", "x"), ("jobs", "cancel", "many"),
        ("--config",), ("status", "--yaml"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_2(ctnode: Run, command: tuple[str, ...]) -> None:
    assert ctnode(*command).code == 2


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_are_0(ctnode: Run, option: str) -> None:
    ended = ctnode(option)
    assert ended.code == 0
    assert "not a medical device" in ended.out


@pytest.mark.parametrize(
    "command", [*READING, ("check-config",), ("doctor",), ("process", ".", "--out", "o")], ids=" ".join
)
def test_a_bad_configuration_is_78_for_every_command(ctnode: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "config.toml").write_text("[node]\nprot = 1\n")
    ended = ctnode(*command)
    assert ended.code == 78
    assert "node.prot: no such key; did you mean node.port?" in ended.err
    assert ended.out == ""


def test_a_missing_configuration_file_is_78(ctnode: Run) -> None:
    assert ctnode("--config", "nowhere.toml", "check-config").code == 78


# ---------------------------------------------------------------------------------------------- reading


def test_status(ctnode: Run, node: Root) -> None:
    status = ctnode("status", "--json").json
    assert set(status) >= {"root", "roles", "counters"}
    assert status["roles"] == []
    assert status["counters"]["instances"] == 3
    ended = ctnode("status")
    assert ended.code == 0
    assert "jobs.QUEUED" in ended.out


def test_series_list_and_show(ctnode: Run, node: Root) -> None:
    (listed,) = ctnode("series", "list", "--json").json
    assert (listed["study"], listed["name"], listed["instances"], listed["state"]) == (STUDY, SERIES, 3, "QUEUED")
    assert listed["last_at"].endswith("Z")
    shown = ctnode("series", "show", SERIES, "--json").json
    assert set(shown) >= {"associations", "jobs", "deliveries", "timeline", "results", "verdict", "evidence"}
    assert shown["associations"][0]["how"] == "released"
    assert [entry["kind"] for entry in shown["timeline"]][:2] == ["opened", "association"]
    assert all(entry["at"].endswith("Z") for entry in shown["timeline"])
    told = ctnode("series", "show", SERIES)
    assert told.code == 0
    assert "LIKELY: quiet" in told.out
    assert ctnode("series", "list", "--state", "DONE", "--json").json == []
    assert ctnode("series", "list", "--state", "QUEUED").out.count(SERIES) == 1


def test_jobs_list(ctnode: Run, node: Root) -> None:
    (job,) = ctnode("jobs", "list", "--json").json
    assert (job["id"], job["series"], job["state"], job["attempt"]) == (1, SERIES, "QUEUED", 0)
    assert job["due_at"].endswith("Z")
    assert ctnode("jobs", "list").code == 0


@pytest.mark.parametrize("name", ["1.2.3.404", f"{SERIES}~2", "~", "", "1.2~²", "--", "x" * 500, "1.2\n"])
def test_what_is_not_there_is_1(ctnode: Run, node: Root, name: str) -> None:
    for command in ("show", "requeue"):
        ended = ctnode("series", command, "--", name)
        assert ended.code == 1
        assert ended.err.startswith("ctnode: no series")


def test_a_series_of_two_studies_asks_which(ctnode: Run, node: Root) -> None:
    node.hold(Image(f"{SERIES}.1", study="1.2.4"))
    ended = ctnode("series", "show", SERIES)
    assert ended.code == 1
    assert "--study" in ended.err
    assert ctnode("series", "show", SERIES, "--study", "1.2.4", "--json").json["study"] == "1.2.4"


def test_an_index_that_cannot_be_read_is_unavailable(ctnode: Run, node: Root) -> None:
    node.layout.database.write_bytes(b"not a database at all, whatever it is called" * 100)
    for command in READING:
        ended = ctnode(*command)
        assert ended.code == 69
        assert len(ended.err.splitlines()) <= 2


# ---------------------------------------------------------------------------------------------- writing


def test_requeue_cancel_and_retry(ctnode: Run, node: Root) -> None:
    assert ctnode("series", "requeue", SERIES).code == 1, "it is queued already"
    assert ctnode("jobs", "cancel", 1).code == 0
    assert ctnode("series", "list", "--json").json[0]["state"] == "KEPT"
    assert ctnode("jobs", "cancel", 1).code == 1
    assert ctnode("jobs", "retry", 1).code == 0
    assert ctnode("jobs", "retry", 404).code == 1
    assert ctnode("jobs", "cancel", 404).code == 1
    lease = jobs.claim(node.database, "one")
    assert lease is not None


def test_import_brings_files_in_as_if_they_had_been_sent(ctnode: Run, node: Root, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(part10(Image("1.2.3.7.1", series="1.2.3.7")))
    (folder / "notes.txt").write_text("no DICOM")
    ended = ctnode("import", folder, "--json")
    assert ended.code == 0
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert [line["outcome"] for line in lines] == ["imported", "passed over"]
    node.settle()
    assert ctnode("series", "show", "1.2.3.7", "--json").json["associations"][0]["door"] == "import"
    (folder / "bad.dcm").write_bytes(part10(Image("1.2.3.7.2", series="1/2")))
    assert ctnode("import", folder).code == 1


def test_rebuild_and_backup(ctnode: Run, node: Root, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    assert apart("backup", copy).code == 0
    node.hold(*stack(2, series="1.2.3.2"))
    node.close()
    assert apart("backup", copy, "--restore").code == 0
    listed = {record["name"]: record for record in ctnode("series", "list", "--json").json}
    assert (listed["1.2.3.2"]["state"], listed["1.2.3.2"]["hold"]) == ("COMPLETE", "rebuilt")
    assert apart("rebuild-index").code == 0
    listed = {record["name"]: record for record in ctnode("series", "list", "--json").json}
    assert {record["hold"] for record in listed.values()} == {"rebuilt"}
    assert ctnode("jobs", "list", "--json").json == []
    node._open()


def test_the_index_is_made_anew_where_only_the_store_is_left(ctnode: Run, node: Root) -> None:
    node.close()
    node.layout.database.unlink()
    for folder in (node.layout.incoming, node.layout.run, node.layout.quarantine):
        shutil.rmtree(folder)
    assert apart("rebuild-index").code == 0
    assert ctnode("series", "show", SERIES, "--json").json["instances"] == 3
    node._open()


def test_rebuild_and_restore_are_refused_while_a_keeper_runs(ctnode: Run, node: Root, tmp_path: Path) -> None:
    assert apart("backup", tmp_path / "copy.db").code == 0
    held = lock(node.layout.run / "keep.lock", owner="keeper")
    before = node.layout.database.stat().st_ino
    try:
        assert apart("rebuild-index").code == 69
        assert apart("backup", tmp_path / "copy.db", "--restore").code == 69
    finally:
        os.close(held)
    assert node.layout.database.stat().st_ino == before


@pytest.mark.parametrize("what", ["rubbish", "empty", "itself", "missing", "foreign"])
def test_a_copy_that_is_none_leaves_the_index_alone(ctnode: Run, node: Root, tmp_path: Path, what: str) -> None:
    copy = tmp_path / "copy.db"
    if what == "rubbish":
        copy.write_bytes(b"rubbish" * 1000)
    elif what == "empty":
        copy.touch()
    elif what == "itself":
        copy = node.layout.database
    elif what == "foreign":
        with sqlite3.connect(copy) as foreign:
            foreign.execute("CREATE TABLE something (id INTEGER)")
        foreign.close()
    node.close()
    before = node.layout.database.read_bytes()
    ended = apart("backup", copy, "--restore")
    assert ended.code in {1, 69}
    assert len(ended.err.splitlines()) <= 2
    assert node.layout.database.read_bytes() == before
    assert not list(node.layout.root.glob("*before-rebuild*"))
    node._open()


def test_doctor_finds_a_file_without_a_row_and_a_row_without_a_file(ctnode: Run, node: Root) -> None:
    findings = {finding["what"]: finding for finding in ctnode("doctor", "--json").json}
    assert findings["files and rows"]["is_good"]
    assert findings["states"]["is_good"]
    folder = node.layout.store / STUDY / SERIES
    (folder / f"{SERIES}.1.dcm").rename(folder / "stranger.dcm")
    ended = ctnode("doctor", "--json")
    assert ended.code == 1
    found = {finding["what"]: finding for finding in ended.json}["files and rows"]
    assert "stranger.dcm has no row" in found["found"]
    assert f"{SERIES}.1.dcm, which is not there" in found["found"]


# ------------------------------------------------------------------------------------- without any node


def test_check_config(ctnode: Run, tmp_path: Path) -> None:
    assert ctnode("check-config").code == 0
    (tmp_path / "config.toml").write_text("[node]\nport = 104\n")
    shown = ctnode("check-config", "--json").json
    assert shown["node.port"] == {"value": 104, "from": "config.toml"}
    assert shown["node.host"]["from"] == "default"
    (tmp_path / "config.toml").write_text("[node]\nhost = '0.0.0.0'\n")
    ended = ctnode("check-config")
    assert ended.code == 78
    assert "peers" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_a_reader_that_has_seen_enough_gets_no_trace(ctnode: Run) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "ctnode", "check-config", "--show"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.stderr == b""


def test_process_needs_no_node_and_speaks_json(ctnode: Run, tmp_path: Path) -> None:
    write_ramp(tmp_path / "in", grid())
    ended = ctnode("process", tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert ended.code == 0
    (line,) = [json.loads(line) for line in ended.out.splitlines()]
    assert line["status"] == "EXACT"
    assert (Path(line["dir"]) / "ct.nii.gz").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_process_of_a_refused_series_is_1(ctnode: Run, tmp_path: Path) -> None:
    def spoil(_index: int, dataset: Any) -> None:
        del dataset.ImageOrientationPatient

    write_ramp(tmp_path / "in", grid(), edit=spoil)
    ended = ctnode("process", tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert ended.code == 1
    assert json.loads(ended.out.splitlines()[0])["status"] == "REFUSED"


def test_process_of_nothing_is_1(ctnode: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    assert ctnode("process", tmp_path / "in", "--out", tmp_path / "out").code == 1


def test_echo_and_send_name_the_targets_that_are_known(ctnode: Run, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[[targets]]\nname = "pacs"\nae_title = "P"\nhost = "127.0.0.1"\nport = 9\n')
    ended = ctnode("echo", "nobody")
    assert ended.code == 1
    assert "pacs" in ended.err
    assert ctnode("send", tmp_path, "--to", "nobody").code == 1
    assert ctnode("echo", "pacs", "--json").json[0]["ok"] is False


def test_each_command_is_found_in_the_module_that_is_said_to_have_it() -> None:
    for module, names in COMMANDS.items():
        group = click.Group()
        importlib.import_module(f"ctnode.cli.{module}").register(group)
        assert sorted(group.commands) == sorted(names), module
    modules = {file.stem for file in Path(cli_package.__file__).parent.glob("*.py")}
    registering = {name for name in modules if hasattr(importlib.import_module(f"ctnode.cli.{name}"), "register")}
    assert registering == COMMANDS.keys()
