"""What an operator can see of deliveries, and do about them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from ctnode.cli import main
from tests.delivery_root import Archive, Office, office, target
from tests.wire_peers import uid

pytestmark = pytest.mark.integration

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ctnode(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    for variable in [name for name in os.environ if name.startswith("CTNODE_")]:
        monkeypatch.delenv(variable)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["ctnode", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    yield run
    structlog.reset_defaults()


def configured(node: Office, place: Path, targets: list[dict[str, object]]) -> Path:
    file = place / "config.toml"
    lines = [f"[storage]\nroot = {json.dumps(str(node.root.layout.root))}"]
    for one in targets:
        lines += ["[[targets]]", *(f"{key} = {json.dumps(value)}" for key, value in one.items())]
    file.write_text("\n".join(lines))
    return file


def test_list_retry_cancel_and_pause(tmp_path: Path, ctnode: Run) -> None:
    with Archive(answer=lambda name: 0xA900) as archive:
        targets: list[dict[str, Any]] = [target("pacs", archive.port), target("other", archive.port)]
        with office(tmp_path, *targets) as node:
            file = configured(node, tmp_path, targets)
            node.owe(node.series()[0], [uid(7, 1), uid(7, 2)], "pacs", "other")
            code, out, _ = ctnode("--config", file, "deliveries", "pause", "other")
            assert (code, out) == (0, "other is paused\n")
            node.work()
            code, out, _ = ctnode("--config", file, "deliveries", "list", "--json")
            shown = json.loads(out)
            assert code == 0
            assert [(one["target"], one["state"], one["status"]) for one in shown["deliveries"]] == [
                ("pacs", "DEAD", 0xA900), ("other", "PENDING", None), ("pacs", "DEAD", 0xA900),
                ("other", "PENDING", None),
            ]  # fmt: skip
            assert [attempt["state"] for attempt in shown["deliveries"][0]["attempts"]] == ["DEAD"]
            assert {one["name"]: (one["waiting"], one["paused"]) for one in shown["destinations"]} == {
                "pacs": (0, False), "other": (2, True),
            }  # fmt: skip
            _, out, _ = ctnode("--config", file, "deliveries", "list", "--state", "DEAD")
            assert "other: 2 waiting, paused\n" in out
            assert "A900H" in out

            archive.answer = lambda name: 0
            assert ctnode("--config", file, "deliveries", "retry", "--to", "pacs")[:2] == (0, "2 tried again\n")
            node.work()
            assert node.states("pacs") == ["SENT", "SENT"]
            code, out, err = ctnode("--config", file, "deliveries", "cancel", "2", "1")
            assert (code, out, err) == (1, "1 cancelled\n", "1: cannot cancel what is SENT\n")
            assert ctnode("--config", file, "deliveries", "resume", "other")[0] == 0
            node.work()
            assert node.states("other") == ["CANCELLED", "SENT"]


def test_what_cannot_be_is_said(tmp_path: Path, ctnode: Run) -> None:
    with office(tmp_path, target("pacs", 104)) as node:
        file = configured(node, tmp_path, [target("pacs", 104)])
        code, _, err = ctnode("--config", file, "deliveries", "retry", "99")
        assert (code, "no delivery 99" in err) == (1, True)
        assert ctnode("--config", file, "deliveries", "cancel")[0] == 2
        code, _, err = ctnode("--config", file, "deliveries", "pause", "nowhere")
        assert (code, "known: pacs" in err) == (1, True)
        code, _, err = ctnode("--config", file, "deliveries", "retry", "--to", "pacs")
        assert (code, "nothing was ever owed to pacs" in err) == (1, True)


def test_echo_tells_latency_contexts_and_what_is_wrong(tmp_path: Path, ctnode: Run) -> None:
    shelf = tmp_path / "shelf"
    with Archive() as archive:
        targets = [
            target("pacs", archive.port),
            {"name": "shelf", "kind": "folder", "path": str(shelf)},
            {"name": "web", "kind": "dicomweb", "url": "http://host.invalid/dicom-web"},
        ]
        with office(tmp_path, *targets) as node:
            file = configured(node, tmp_path, targets)
            code, out, _ = ctnode("--config", file, "echo", "--all")
            assert code == 1
            assert "pacs: answers in" in out
            assert "    accepts CT Image, Secondary Capture, Segmentation, Comprehensive SR" in out
            assert "    takes CT images in Implicit VR, Explicit VR\n" in out
            assert "shelf: FAILS" in out
            assert "the folder is not there" in out
            assert "web: FAILS" in out
            assert "the host is not known" in out
            shelf.mkdir()
            code, out, _ = ctnode("--config", file, "echo", "shelf", "--json")
            assert (code, json.loads(out)[0]["ok"]) == (0, True)


def test_no_file_goes_by_hand_to_whoever_gets_only_what_is_deidentified(tmp_path: Path, ctnode: Run) -> None:
    (tmp_path / "a.key").write_bytes(b"k" * 32)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    inside: dict[str, Any] = {"name": "inside", "kind": "folder", "path": str(shelf), "deidentify": "a"}
    outside: dict[str, Any] = {**inside, "name": "outside", "external": True}
    with office(tmp_path) as node:
        file = configured(node, tmp_path, [inside, outside])
        profile = f'name = "a"\nproject = "A"\nkey_file = {json.dumps(str(tmp_path / "a.key"))}'
        file.write_text(f"{file.read_text()}\n[[deidentification]]\n{profile}\n")
        node.owe(node.series()[0], [uid(7, 1)])
        (made,) = node.root.layout.results.glob("*/*.dcm")
        for name in ("inside", "outside"):
            code, _, err = ctnode("--config", file, "send", made, "--to", name)
            assert (code, f"{name} gets only what is de-identified" in err) == (1, True)
        assert list(shelf.iterdir()) == []


def test_send_takes_a_file_to_any_kind_of_target(tmp_path: Path, ctnode: Run) -> None:
    (tmp_path / "shelf").mkdir()
    with Archive() as archive:
        targets = [target("pacs", archive.port), {"name": "shelf", "kind": "folder", "path": str(tmp_path / "shelf")}]
        with office(tmp_path, *targets) as node:
            file = configured(node, tmp_path, targets)
            revision = node.series()[0]
            node.owe(revision, [uid(7, 1)])
            (made,) = node.root.layout.results.glob("*/*.dcm")
            for name in ("pacs", "shelf"):
                code, out, _ = ctnode("--config", file, "send", made, "--to", name)
                assert (code, out) == (0, f"{made}: SENT status 0000H\n")
            assert archive.taken == [uid(7, 1)]
            assert (tmp_path / "shelf" / made.name).read_bytes() == made.read_bytes()
            # The images of a series are owed like its results.
            code, out, _ = ctnode("--config", file, "send", "1.2.3.1", "--to", "pacs", "--originals")
            assert (code, "queued; no deliverer runs" in out) == (1, True)
            node.work()
            assert archive.taken[1:] == ["1.2.3.1.1"]
