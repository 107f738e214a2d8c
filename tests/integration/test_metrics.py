"""The metrics after a scripted history are the numbers of the database itself; their labels are bounded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ctnode.archive import jobs, lanes, outbox, revisions, tallies
from ctnode.archive.outbox import Ending, Parcel
from ctnode.archive.part10 import Opened
from ctnode.config import Config, Peer, Storage, Target
from ctnode.flow.metrics import exposition
from ctnode.ops.role import Role
from ctnode.words import DeliveryEvent, Verdict
from tests.archive_root import Image, Root, put, stack

pytestmark = pytest.mark.integration

Samples = dict[str, dict[tuple[str, ...], float]]
NOW = 2_000_000_000.0


def config_of(root: Root) -> Config:
    return Config(
        storage=Storage(root=str(root.layout.root), reserve_mb=7, reserve_inodes=11),
        peers=(Peer(name="ct1", ae_title="CT1", host="10.0.0.1"),),
        targets=(Target(name="pacs", ae_title="PACS", host="127.0.0.1", port=104),),
    )


def samples(root: Root, *, now: float = NOW) -> Samples:
    """Return the values by name of the sample and by the values of its labels, sorted by label."""
    found: Samples = {}
    for family in text_string_to_metric_families(exposition(config_of(root), root.database, now=now).decode()):
        for sample in family.samples:
            key = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[key] = sample.value
    return found


def send(root: Root, images: list[Image], *, peer: str = "", door: str = "network", refused: int = 0) -> None:
    opened = Opened(door, peer.upper() or "SOMEBODY", "CTNODE", "10.0.0.1:4711", "10.0.0.2:11112", peer=peer)
    journal = root.spool.open_association(opened)
    for image in images:
        put(journal, image)
        # One association is counted in several batches.
        root.settler.scan()
    journal.close("released", statuses={"0000": len(images), **({"A700": refused} if refused else {})})
    root.settle()


@pytest.fixture
def history(tmp_path: Path) -> Iterator[Root]:
    """Who is known, who is not, who was known once; verdicts, jobs and deliveries of each kind."""
    root = Root(tmp_path / "node")
    first = stack(4)
    send(root, first, peer="ct1", refused=2)
    send(root, first[:3], peer="ct1")
    send(root, stack(2, series="1.2.3.2"))
    send(root, stack(1, series="1.2.3.3"), peer="gone")
    send(root, stack(3, series="1.2.3.4"), door="import")
    for series, verdict in ((1, Verdict.COMPLETE), (2, Verdict.LIKELY), (3, Verdict.SUSPECT), (4, Verdict.LIKELY)):
        revision = revisions.newest(root.database, series)
        with root.database.immediate():
            revisions.complete(root.database, revision, verdict, ["said so"])
            if series != 4:
                revisions.queue(root.database, revisions.get(root.database, revision.id))
    report = {"volume": 1, "status": "EXACT", "seconds": {"select": 0.25, "volume": 1.5}, "issues": []}
    for outcome in ("done", "failed"):
        lease = jobs.claim(root.database, "one")
        assert lease is not None
        if outcome == "done":
            jobs.finish(root.database, lease, [report, report | {"volume": 2}], "made", lambda _newest: None)
        else:
            jobs.fail(root.database, lease, "no")
    with root.database.immediate():
        kinds = ("report", "seg", "sr", "surface", "more")
        outbox.post(root.database, 1, [Parcel("pacs", kind, f"r1/{kind}.dcm", "aa") for kind in kinds])
        outbox.post(root.database, 1, [Parcel("old", "report", "r1/report.dcm", "aa")])
    sent, dead, again, _ = outbox.claim(root.database, "pacs", "one", limit=4)
    outbox.settle(
        root.database,
        [
            Ending(sent, DeliveryEvent.SEND, 0x0000, went_out=True),
            Ending(dead, DeliveryEvent.DIE, 0xA912),
            Ending(again, DeliveryEvent.FAIL, None, wait_s=60.0),
        ],
    )
    lanes.failed(root.database, "pacs", "down", 60.0)
    yield root
    root.close()


def counted(root: Root, statement: str) -> dict[tuple[str, ...], float]:
    return {tuple(map(str, row[:-1])): float(str(row[-1])) for row in root.rows(statement)}


WHO = "CASE peer WHEN 'ct1' THEN peer WHEN '' THEN iif(door = 'network', 'unknown', '') ELSE 'removed' END"


def test_what_came_is_what_the_rows_say(history: Root) -> None:
    now = samples(history)
    joined = "FROM instances JOIN associations AS a ON a.id = association_id GROUP BY 1, 2"
    assert now["ctnode_instances_total"] == counted(history, f"SELECT door, {WHO}, count(*) {joined}")
    assert now["ctnode_instance_bytes_total"] == counted(history, f"SELECT door, {WHO}, sum(instances.bytes) {joined}")
    ended = "FROM associations WHERE how <> '' GROUP BY 1, 2"
    assert now["ctnode_duplicates_total"] == counted(history, f"SELECT door, {WHO}, sum(duplicates) {ended}")
    assert now["ctnode_duplicates_total"]["network", "ct1"] == 3
    assert now["ctnode_association_seconds_total"] == pytest.approx(
        counted(history, f"SELECT door, {WHO}, sum(ended_at - opened_at) {ended}")
    )
    assert now["ctnode_associations_total"] == counted(
        history, f"SELECT door, how, {WHO}, count(*) FROM associations WHERE how <> '' GROUP BY 1, 2, 3"
    )
    assert now["ctnode_statuses_total"] == counted(
        history,
        f"SELECT door, {WHO}, answer.key, sum(answer.value) FROM associations, json_each(statuses) AS answer"
        " GROUP BY 1, 2, 3",
    )
    assert now["ctnode_statuses_total"]["network", "ct1", "A700"] == 2


def test_verdicts_and_waits_are_those_of_the_revisions(history: Root) -> None:
    now = samples(history)
    judged = "FROM revisions WHERE verdict <> '' GROUP BY 1"
    assert now["ctnode_verdicts_total"] == counted(history, f"SELECT verdict, count(*) {judged}")
    assert now["ctnode_verdict_wait_seconds_sum"] == pytest.approx(
        counted(history, f"SELECT verdict, sum(verdict_at - last_arrival) {judged}")
    )
    assert now["ctnode_verdict_wait_seconds_count"] == counted(history, f"SELECT verdict, count(*) {judged}")
    assert now["ctnode_verdict_wait_seconds_bucket"]["5.0", "LIKELY"] == 2
    states = counted(history, "SELECT state, count(*) FROM revisions GROUP BY 1")
    assert {key: value for key, value in now["ctnode_revisions"].items() if value} == states
    # A verdict that is given anew, after a long wait.
    history.database.execute("UPDATE revisions SET verdict_at = last_arrival + 700 WHERE verdict = 'SUSPECT'")
    later = samples(history)["ctnode_verdict_wait_seconds_bucket"]
    assert (later["600.0", "SUSPECT"], later["900.0", "SUSPECT"], later["+Inf", "SUSPECT"]) == (1, 2, 2)


def test_jobs_and_steps_are_those_of_the_reports(history: Root) -> None:
    now = samples(history)
    states = counted(history, "SELECT state, count(*) FROM jobs GROUP BY 1")
    assert {key: value for key, value in now["ctnode_jobs"].items() if value} == states
    assert now["ctnode_queue_depth"][()] == history.one("SELECT count(*) FROM jobs WHERE state IN ('QUEUED', 'RETRY')")
    oldest = float(str(history.one("SELECT min(due_at) FROM jobs WHERE state = 'QUEUED'")))
    assert now["ctnode_queue_oldest_age_seconds"][()] == pytest.approx(NOW - oldest)
    assert now["ctnode_job_attempts_total"] == {("pipeline", "DONE"): 1, ("pipeline", "RETRY"): 1}
    assert now["ctnode_job_step_seconds_sum"] == {("select",): 0.5, ("volume",): 3.0}
    assert now["ctnode_job_step_seconds_count"] == {("select",): 2, ("volume",): 2}


def test_deliveries_are_those_of_the_outbox(history: Root) -> None:
    now = samples(history)
    where = "CASE target WHEN 'pacs' THEN target ELSE 'removed' END"
    states = counted(history, f"SELECT state, {where}, count(*) FROM deliveries GROUP BY 1, 2")
    assert {key: value for key, value in now["ctnode_deliveries"].items() if value} == states
    assert now["ctnode_delivery_attempts_total"] == {
        ("SENT", "0000", "pacs"): 1, ("DEAD", "A9xx", "pacs"): 1, ("RETRY", "none", "pacs"): 1,
    }  # fmt: skip
    assert now["ctnode_delivery_seconds_count"] == {("pacs",): 1}
    posted = float(str(history.one("SELECT min(posted_at) FROM deliveries WHERE target = 'pacs'")))
    assert now["ctnode_delivery_oldest_age_seconds"]["pacs",] == pytest.approx(NOW - posted)
    assert now["ctnode_target_failing_seconds"]["pacs",] > 0
    history.database.execute("DELETE FROM delivery_attempts")
    history.database.execute("DELETE FROM deliveries")
    assert not any(samples(history)["ctnode_deliveries"].values())


def test_a_destination_that_answers_anything_makes_no_new_labels(history: Root) -> None:
    for status in (0x0000, 0x0110, 0xA700, 0xA7FF, 0xB006, 0xC123, 0xFFFF, 0x1234):
        history.database.execute(
            "INSERT INTO delivery_attempts (delivery_id, attempt, ended_at, state, status, comment)"
            " VALUES (1, 1, 0, 'DEAD', ?, '')",
            (status,),
        )
    labels = {key[1] for key in samples(history)["ctnode_delivery_attempts_total"]}
    assert labels == {"none", "0000", "0110", "A7xx", "A9xx", "Bxxx", "Cxxx", "other"}


def test_names_that_are_not_configured_are_no_labels(history: Root) -> None:
    text = exposition(config_of(history), history.database).decode()
    assert "gone" not in text
    assert "SOMEBODY" not in text
    assert 'target="old"' not in text


def test_roles_disk_and_certificate_are_those_of_run_and_the_file_system(history: Root) -> None:
    with Role("receive", history.layout.run, "digest") as role:
        role.report(
            associations={"open": 2, "total": 9, "refused": 1}, certificate_days=12.5, storage="full", bytes=640,
            instances={"0000": 8, "A700": 1}, ended={"released": 6}, cut={"silent": 1},
            seconds={"ct1": [3, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 44.5]},
        )  # fmt: skip
        role.ready()
        now = samples(history)
    assert now["ctnode_roles"] == {("receive", "ready"): 1}
    assert now["ctnode_associations_open"][()] == 2
    assert now["ctnode_connections_total"][()] == 9
    assert now["ctnode_connections_ended_total"] == {("released",): 6}
    assert now["ctnode_answers_total"] == {("0000",): 8, ("A700",): 1}
    assert now["ctnode_store_seconds_count"] == {("ct1",): 6}
    assert now["ctnode_store_seconds_bucket"]["0.01", "ct1"] == 5
    assert now["ctnode_storage_takes_instances"][()] == 0
    assert now["ctnode_certificate_days"][()] == 12.5
    assert now["ctnode_disk_reserve_bytes"][()] == 7 << 20
    assert now["ctnode_inodes_reserve"][()] == 11
    assert set(now["ctnode_disk_free_bytes"]) == {("results",), ("root",)}
    assert "ctnode_certificate_days" not in samples(history)


def test_without_an_index_the_disk_still_tells(tmp_path: Path) -> None:
    config = Config(storage=Storage(root=str(tmp_path)))
    assert b"ctnode_disk_free_bytes" in exposition(config, None)


def test_no_statement_of_the_metrics_walks_through_a_large_table(history: Root) -> None:
    statements = {tallies.OLDEST_JOB: (), tallies.OLDEST_DELIVERY: ("pacs",), tallies.ALL: ()}
    for statement, values in statements.items():
        plan = [str(row[-1]) for row in history.database.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
        assert not any("TEMP B-TREE" in step for step in plan), plan
        assert all("SEARCH" in step or "USING INDEX" in step or step == "SCAN tallies" for step in plan), plan


def test_what_was_there_before_is_counted_when_the_index_is_brought_up_to_date(history: Root) -> None:
    before = {name: value for name, value in samples(history).items() if name in BACKFILLED}
    execute = history.database.execute
    with history.database.immediate():
        for (name,) in execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            if (name.startswith(("associations_", "deliveries_", "revisions_judged", "jobs_left", "jobs_reported"))
                    and "_counted_" not in name):  # fmt: skip
                execute(f"DROP TRIGGER {name}")
        execute("DROP TABLE tallies")
        execute("ALTER TABLE associations DROP COLUMN bytes")
        execute("DELETE FROM _sqlite_migrations WHERE name = '0011_metrics'")
    history.restart()
    after = samples(history)
    assert {name: {k: v for k, v in after[name].items() if v} for name in before} == {
        name: {k: v for k, v in values.items() if v} for name, values in before.items()
    }


BACKFILLED = {"ctnode_instances_total", "ctnode_instance_bytes_total", "ctnode_deliveries"}


# ----------------------------------------------------------------------------------- what rests on the names

DOCS = Path(__file__).parents[2] / "docs"


def families(root: Root) -> set[str]:
    """Return the names of all samples, also of those that only a running node has."""
    with Role("receive", root.layout.run, "digest") as role:
        role.report(associations={"open": 0}, certificate_days=1.0, seconds={"ct1": [0] * 13 + [0.0]})
        role.ready()
        text = exposition(config_of(root), root.database).decode()
    found = set()
    for family in text_string_to_metric_families(text):
        suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count"),
                    "summary": ("_sum", "_count")}[family.type]  # fmt: skip
        found |= {f"{family.name}{suffix}" for suffix in suffixes}
    return found


def named(text: str) -> set[str]:
    return set(re.findall(r"\bctnode_[a-z_]+\b", text))


def test_alert_rules_and_dashboard_name_only_what_there_is(history: Root) -> None:
    there = families(history)
    alerts = (DOCS / "alerts.yml").read_text(encoding="utf-8")
    expressions = "\n".join(re.findall(r"^ +expr: (.+)$", alerts, re.MULTILINE))
    assert len(re.findall("- alert:", alerts)) == len(expressions.splitlines()) >= 8
    dashboard = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
    shown = "\n".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    for text in (expressions, shown):
        assert named(text)
        assert named(text) <= there, named(text) - there


def test_every_metric_is_described(history: Root) -> None:
    described = named((DOCS / "metrics.md").read_text(encoding="utf-8"))
    bases = {re.sub("_(bucket|sum|count)$", "", name) for name in families(history)}
    assert bases == {re.sub("_(bucket|sum|count)$", "", name) for name in described}
