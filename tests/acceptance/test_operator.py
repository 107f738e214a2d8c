"""What an operator gets of a real node, and what never reaches anybody: one patient's name, through every output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from pydicom import Dataset

from ctnode.cli import cli
from ctnode.ops import audit
from tests.harness import Node, free_port, send_as_is, small_series
from tests.integration.test_canary import found_in, letters, mark
from tests.wire_peers import STANDARD, RawPeer, associate_rq, uid

pytestmark = pytest.mark.acceptance

OF_ASSOCIATION = {"association ended", "instance refused", "instance not settled", "request kept", "request refused"}
OF_JOB = {"job began", "job done", "job failed", "job given back", "lease lost"}
OF_DELIVERY = {"delivered", "not delivered"}


def odd(index: int, dataset: Dataset) -> None:
    """Mark the patient everywhere, and break a value so that libraries have something to quote."""
    mark("ISO_IR 192")(index, dataset)
    dataset.add_new(0x00081030, "LO", letters("StudyDescription") * 9)


def live(place: Path) -> dict[str, Any]:
    """Let a node live through a day, and return all that it said."""
    whole, files = small_series(place, 1, edit=odd)
    gap, with_gap = small_series(place, 2, edit=odd)
    folder = place / "folder"
    folder.mkdir()
    digests = place / "digests"
    keep = f"cat >> {digests}; echo >> {digests}"
    sections: dict[str, Any] = {
        "completion": {"quiet_s": 0.5, "max_wait_s": 4.0},
        "log": {"level": "debug", "format": "json"},
        "outputs": {"surface": False, "mpr": False, "histogram": False, "preview": False, "iso": False, "seg": "none"},
        "node": {"called_ae_titles": ["CTNODE"]},
        "peers": [{"name": "ct1", "ae_title": "CT1", "host": "127.0.0.1"}],
        "targets": [
            {"name": "share", "kind": "folder", "path": str(folder)},
            {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": free_port()},
        ],
        "notify": [{"name": "duty", "kind": "command", "command": ["sh", "-c", keep], "interval_s": 1.0}],
    }
    with Node(place / "node", **sections) as node:
        send_as_is(node.port, files, calling="CT1")
        send_as_is(node.port, with_gap[:4] + with_gap[6:], calling="CT1")
        with RawPeer(node.port) as peer:
            peer.associate(calling="CT1")
            peer.store(uid(1), letters("PatientName").encode())
            peer.release()
        with RawPeer(node.port) as peer:
            peer.send(associate_rq(STANDARD, calling="NOBODY", called="WRONG"))
            peer.read_pdu()
        node.wait_series(whole)
        node.wait_series(gap)
        output(node, "series", "requeue", whole)
        node.wait_for(lambda: node.query("SELECT 1 FROM jobs WHERE attempt = 2 AND state = 'DONE'"), "it is done again")
        node.wait_for(lambda: _states(node, "share") == ["SENT"], "it is in the folder")
        node.wait_for(
            lambda: node.query("SELECT 1 FROM lanes WHERE name = 'pacs' AND failing_since IS NOT NULL"),
            "the other fails",
        )
        node.wait_for(lambda: digests.is_file() and b"suspect" in digests.read_bytes(), "somebody was told")
        node.wait_for(lambda: b"refused" in digests.read_bytes(), "of who was refused too")
        said: dict[str, Any] = {
            "metrics": output(node, "metrics"),
            "status": output(node, "status") + output(node, "status", "--json"),
            "why": output(node, "series", "why", whole),
            "alerts": output(node, "notify", "list", "--json"),
            "audit": output(node, "audit", "list", "--json"),
            "associations": output(node, "associations", "list", "--json"),
            "doctor": output(node, "doctor"),
            "run": "".join(file.read_text() for file in node.layout.run.glob("*.json")),
            "rows": node.query(
                "SELECT (SELECT count(*) FROM instances), (SELECT count(*) FROM deliveries WHERE target = 'share'"
                " AND state = 'SENT'), (SELECT count(*) FROM revisions WHERE verdict = 'SUSPECT')"
            )[0],
        }
        node.terminate()
        return {
            **said, "digests": digests.read_text(), "log": node.log_file.read_text(),
            "trail": list(audit.read(node.root)), "series": (whole, gap),
        }  # fmt: skip


def output(node: Node, *words: str) -> str:
    """Run a command in this process: it says the same as in another, sooner."""
    done = CliRunner().invoke(cli, ["--config", str(node.config_file), *words], standalone_mode=False)
    assert not isinstance(done.exception, Exception), done.exception
    return done.output


def _states(node: Node, target: str) -> list[str]:
    return [str(row[0]) for row in node.query("SELECT state FROM deliveries WHERE target = ?", target)]


def check_the_patient_is_in_nothing_that_the_node_says(told: dict[str, Any]) -> None:
    for name, text in told.items():
        assert found_in(text if isinstance(text, str) else repr(text)) == set(), name


def check_every_line_is_one_event_and_belongs_where_it_belongs(told: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in told["log"].splitlines()]
    assert "[redacted]" not in told["log"]
    assert {"run", "receive", "receiver", "keep", "work", "deliver"} >= {line["role"] for line in lines}
    for events, field in ((OF_ASSOCIATION, "association"), (OF_JOB, "job"), (OF_DELIVERY, "delivery")):
        found = [line for line in lines if line["event"] in events]
        assert found, events
        missing = [line["event"] for line in found if not line.get(field)]
        # Who was turned away had no association.
        assert [event for event in missing if event != "association ended"] == []
    assert sum(line["event"] == "association ended" and not line["association"] for line in lines) == 1


def check_the_metrics_are_the_numbers_of_the_database(told: dict[str, Any]) -> None:
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(told["metrics"])
        for sample in family.samples
    }
    instances, sent, suspect = told["rows"]
    assert samples["ctnode_instances_total", "ct1", "network"] == instances
    assert samples["ctnode_statuses_total", "0000", "ct1", "network"] == instances
    assert samples["ctnode_store_seconds_count", "ct1"] == instances + 1
    assert samples["ctnode_deliveries", "SENT", "share"] == sent
    assert samples["ctnode_verdicts_total", "SUSPECT"] == suspect == 1
    assert samples["ctnode_job_step_seconds_count", "select"] == 3
    assert samples["ctnode_roles", "keep", "ready"] == 1


def check_somebody_was_told_of_the_gap_and_of_who_was_refused(told: dict[str, Any]) -> None:
    messages = [json.loads(line) for line in told["digests"].splitlines()]
    alerts = [(alert["kind"], alert["subject"]) for message in messages for alert in message["alerts"]]
    assert ("suspect", told["series"][1]) in alerts
    assert ("refused", "NOBODY at 127.0.0.1") in alerts


def check_the_trail_says_who_sent_did_and_got_what(told: dict[str, Any]) -> None:
    said = [(entry["event"], entry["who"], entry["what"], entry.get("target", "")) for entry in told["trail"]]
    me, transferred = audit.operator(), "DICOM Instances Transferred"
    for entry in (
        ("Application Activity", me, "keep started", ""),
        (transferred, "CT1", "association released", ""),
        (transferred, "CT1", "association released, 1 refused", ""),
        ("Security Alert", "NOBODY", "refused: called AE title is not served", ""),
        ("DICOM Instances Accessed", me, "requeue", ""),
        ("Export", "CTNODE", "delivery", "share"),
        ("Application Activity", me, "keep stopped", ""),
    ):
        assert entry in said, (entry, said)


def test_a_day_of_a_node(tmp_path: Path) -> None:
    # One node for all of it: starting one is most of the time.
    told = live(tmp_path)
    check_the_patient_is_in_nothing_that_the_node_says(told)
    check_every_line_is_one_event_and_belongs_where_it_belongs(told)
    check_the_metrics_are_the_numbers_of_the_database(told)
    check_somebody_was_told_of_the_gap_and_of_who_was_refused(told)
    check_the_trail_says_who_sent_did_and_got_what(told)
