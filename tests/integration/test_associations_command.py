"""``ctnode associations`` and the certificate in ``ctnode doctor``, as the operator sees them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ctnode.archive.part10 import Opened
from ctnode.archive.rejections import Rejections
from ctnode.cli import cli
from tests.archive_root import CT, SERIES, Root, opened, put, stack
from tests.certificates import Authority

pytestmark = pytest.mark.integration

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def invoke(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(cli, ["--config", str(tmp_path / "config.toml"), *arguments])
        assert result.exit_code == code, result.output
        return json.loads(result.output) if "--json" in arguments else result.output

    (tmp_path / "config.toml").write_text('[storage]\nroot = "root"\n')
    return invoke


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root with one association of last night, one of a week ago, and two rejections."""
    root = Root(tmp_path / "root")
    offer = Opened(
        "network", "CT1", "CTNODE", "10.0.0.1:4711", "10.0.0.2:11112", ((CT, "1.2.840.10008.1.2.1"),),
        (("1.2.3.4", "SOP class not supported"),), peer="ct1",
    )  # fmt: skip
    with root.spool.open_association(offer) as journal:
        for image in stack(3):
            put(journal, image)
        journal.note("refused", {"status": 0xA900, "comment": "they differ", "sop_instance": "1.2.9"})
        journal.close("released", statuses={"0000": 3, "A900": 1}, reason="")
    root.settle()
    with root.spool.open_association(opened("MR1")) as old:
        old.close("lost", statuses={}, reason="the peer is silent")
    root.settle()
    with root.database.immediate():
        root.database.execute("UPDATE associations SET opened_at = opened_at - 7 * 86400.0 WHERE calling_ae = 'MR1'")
    root.close()
    written = Rejections(root.layout.rejections)
    for title in ("CT1", "EVIL", "EVIL"):
        written.add({"address": "10.0.0.9", "calling_ae": title, "called_ae": "X", "reason": "in no peer"})
    written.flush(is_last=True)
    return root


def test_what_did_that_modality_send_us_last_night(root: Root, run: Run) -> None:
    found = run("associations", "list", "--calling-ae", "CT1", "--since", "12h", "--json")
    (association,) = found["associations"]
    assert association["series"][0]["series"] == SERIES
    assert association["series"][0]["instances"] == 3
    assert association["how"] == "released"
    assert association["opened_at"].endswith("Z")
    assert [(line["calling_ae"], line["reason"]) for line in found["rejections"]] == [("CT1", "in no peer")]


def test_since(root: Root, run: Run) -> None:
    assert len(run("associations", "list", "--json")["associations"]) == 1
    assert len(run("associations", "list", "--since", "8d", "--json")["associations"]) == 2
    assert run("associations", "list", "--since", "2999-01-01") == "no associations since then\n"
    year = time.gmtime().tm_year - 1
    assert len(run("associations", "list", "--since", f"{year}-01-01T00:00", "--json")["associations"]) == 2
    assert "is no time" in run("associations", "list", "--since", "yesterday", code=2)


def test_the_list_for_people_has_associations_and_rejections(root: Root, run: Run) -> None:
    lines = run("associations", "list").splitlines()
    assert any("CT1" in line and "3 of 1 series" in line and "1 x A900, 1 contexts" in line for line in lines)
    assert any("EVIL" in line and "rejected" in line and "in no peer" in line for line in lines)


def test_why_was_my_object_refused(root: Root, run: Run) -> None:
    name = run("associations", "list", "--json")["associations"][0]["association"]
    text = run("associations", "show", name)
    assert "A900H  1.2.9  they differ" in text
    assert "1.2.3.4: SOP class not supported" in text
    assert "CT Image Storage: Explicit VR Little Endian" in text
    assert run("associations", "show", name, "--json")["refusals"][0]["status"] == 0xA900
    result = CliRunner().invoke(
        cli, ["--config", str(root.layout.root.parent / "config.toml"), "associations", "show", "x"]
    )
    assert result.exception is not None
    assert "no association x" in str(result.exception)


@pytest.mark.parametrize(("days", "is_good"), [(60, True), (20, False), (-1, False)])
def test_doctor_looks_at_the_certificate(tmp_path: Path, run: Run, days: int, is_good: bool) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("node", days=days)
    (tmp_path / "config.toml").write_text(
        f'[storage]\nroot = "root"\n[tls]\ncertificate = "{issued.certificate}"\nkey = "{issued.key}"\n'
        f'ca = "{authority.certificate}"\n'
    )
    findings = {finding["what"]: finding for finding in run("doctor", "--json", code=1)}
    assert findings["certificate"]["is_good"] is is_good
    assert "expired" in findings["certificate"]["found"] or days > 0


def test_check_config_reads_the_files_of_tls(tmp_path: Path, run: Run) -> None:
    authority = Authority(tmp_path)
    issued, other = authority.issue("node"), authority.issue("other")
    text = '[tls]\ncertificate = "hospital/node.pem"\nkey = "hospital/{key}"\nca = "hospital/ca.pem"\n'
    (tmp_path / "config.toml").write_text(text.format(key=issued.key.name))
    run("check-config")
    (tmp_path / "config.toml").write_text(text.format(key=other.key.name))
    result = CliRunner().invoke(cli, ["--config", str(tmp_path / "config.toml"), "check-config"])
    assert "the key is of another certificate" in str(result.exception)
    (tmp_path / "config.toml").write_text('[tls]\ncertificate = "hospital/node.pem"\n')
    result = CliRunner().invoke(cli, ["--config", str(tmp_path / "config.toml"), "check-config"])
    assert "tls.ca: needed" in str(result.exception)


def test_credentials_of_the_service_manager_come_before_the_file(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "tls.key").touch()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    (tmp_path / "config.toml").write_text('[tls]\nkey = "of-the-file.key"\nca = "ca.pem"\n')
    shown = run("check-config", "--json")
    assert shown["tls.key"] == {"value": str(credentials / "tls.key"), "from": "credential"}
    assert shown["tls.ca"]["value"] == str(tmp_path / "ca.pem")
    monkeypatch.setenv("CTNODE_TLS__KEY", "/of/the/environment.key")
    assert run("check-config", "--json")["tls.key"]["from"] == "environment"
