"""``series why``: one answer with senders, verdict, attempts, results with their issues, and deliveries."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ctnode.archive import findings, jobs, outbox, rebuild
from ctnode.archive.findings import Finding
from ctnode.cli import main
from ctnode.flow.why import ranges
from ctnode.words import Issue, LungStatus, Severity, VolumeStatus
from tests.archive_root import SERIES, STUDY, Root, stack

pytestmark = pytest.mark.integration

ISSUES = (
    Issue("MISSING_SLICES", Severity.WARNING, "3 of 30 slices are missing", (3, 4, 9)),
    Issue("LOCALIZER", Severity.INFO, "1 left out: localizer"),
)
MAIN = Finding(1, VolumeStatus.REPAIRED, LungStatus.TRUNCATED, ("cut off at the lower end",), ISSUES)
OTHER = Finding(2, VolumeStatus.EXACT, LungStatus.NOT_RUN, (), ())


def report(finding: Finding) -> dict[str, object]:
    issues = [
        {"code": one.code, "severity": str(one.severity), "frames": list(one.frames), "action": one.action}
        for one in finding.issues
    ]
    return {
        "volume": finding.volume, "status": str(finding.status), "lungs": str(finding.lungs),
        "reasons": list(finding.reasons), "issues": issues,
    }  # fmt: skip


def sidecar(finding: Finding) -> str:
    own = report(finding)
    return json.dumps({"ctnode": {**own, "lungs": {"status": own.pop("lungs"), "reasons": own.pop("reasons")}}})


@pytest.fixture
def root(tmp_path: Path):
    node = Root(tmp_path / "ctnode-data")
    yield node
    node.close()


def finish(root: Root, *found: Finding) -> None:
    """Run the queued job as a worker does: folder and rows in one transaction, one parcel owed."""
    lease = jobs.claim(root.database, "one")
    assert lease is not None
    folder = root.layout.results / STUDY / SERIES / "r1"

    def publish(_is_newest: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for finding in found:
            name = "ct.json" if finding.volume < 2 else f"ct_{finding.volume}.json"
            (folder / name).write_text(sidecar(finding))
        findings.record(root.database, lease.revision_id, found)
        outbox.post(root.database, lease.revision_id, [outbox.Parcel("PACS", "report", "r1/report.dcm", "d")])

    jobs.finish(root.database, lease, [report(one) for one in found], "volume REPAIRED", publish)
    for delivery in outbox.claim(root.database, "PACS", "one"):
        outbox.sent(root.database, delivery, 0xB000, "coerced")


def why(root: Root, monkeypatch, capsys, *options: str) -> str:
    monkeypatch.chdir(root.layout.root.parent)
    monkeypatch.setattr(sys, "argv", ["ctnode", "series", "why", SERIES, *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_whole_life_for_people(root, monkeypatch, capsys):
    root.queued(*stack(3))
    finish(root, MAIN, OTHER)
    told = why(root, monkeypatch, capsys)
    for words in (
        "SENDER at 10.0.0.1:4711: 3 instances, released",
        "complete with 3 instances, LIKELY: quiet",
        "attempt 1 began",
        "job 1 DONE: 1 attempts, 0 failed, 0 cut short",
        "volume 1 REPAIRED, lungs TRUNCATED",
        "warning MISSING_SLICES (slices 3-4, 9): 3 of 30 slices are missing",
        "info LOCALIZER: 1 left out: localizer",
        "lungs: cut off at the lower end",
        "volume 2 EXACT, lungs NOT_RUN, no issues",
        "report to PACS SENT: 1 attempts, status B000H, coerced",
        "r1: ct.json ct_2.json",
    ):
        assert words in told


def test_the_whole_life_for_programs(root, monkeypatch, capsys):
    root.queued(*stack(3))
    finish(root, MAIN)
    told = json.loads(why(root, monkeypatch, capsys, "--json"))
    assert told["associations"][0]["calling_ae"] == "SENDER"
    (revision,) = told["revisions"]
    assert (revision["n"], revision["state"], revision["verdict"], revision["evidence"]) == (
        1, "DONE", "LIKELY", ["quiet"],
    )  # fmt: skip
    assert [entry["kind"] for entry in revision["timeline"]].count("attempt") == 1
    assert {key: revision["volumes"][0][key] for key in report(MAIN)} == report(MAIN)
    assert revision["deliveries"][0]["status"] == "B000H"
    assert revision["jobs"][0]["attempt"] == 1
    times = [value for key, value in revision.items() if key.endswith("_at") or key == "deadline"]
    assert len(times) == 4
    assert all(time.endswith("Z") for time in times)


def test_a_series_that_is_still_coming_says_until_when_it_waits(root, monkeypatch, capsys):
    root.hold(*stack(2))
    told = why(root, monkeypatch, capsys)
    assert "revision 1: RECEIVING" in told
    assert "not complete yet: last instance" in told


def test_another_run_replaces_what_was_found(root):
    revision = root.queued(*stack(3))
    finish(root, MAIN, OTHER)
    with root.database.immediate():
        findings.record(root.database, revision.id, [OTHER])
    assert findings.of_revision(root.database, revision.id) == (OTHER,)
    assert root.one("SELECT count(*) FROM issues") == 0


def test_what_was_found_is_gone_with_the_results_that_were_not_published(root):
    revision = root.queued(*stack(3))
    lease = jobs.claim(root.database, "one")
    assert lease is not None

    def publish(_is_newest: bool) -> None:
        findings.record(root.database, lease.revision_id, [MAIN])
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        jobs.finish(root.database, lease, [], "", publish)
    assert findings.of_revision(root.database, revision.id) == ()


def test_an_index_made_anew_reads_what_was_found_from_ct_json(root):
    root.queued(*stack(3))
    finish(root, MAIN, OTHER)
    before = root.rows("SELECT volume, place, code, severity, frames, action FROM issues ORDER BY place")
    root.database.close()
    rebuild.set_aside(root.layout)
    root._open()
    rebuild.rebuild(root.database, root.layout)
    assert findings.rebuild(root.database, root.layout) == ()
    assert findings.of_revision(root.database, 1) == (MAIN, OTHER)
    assert root.rows("SELECT volume, place, code, severity, frames, action FROM issues ORDER BY place") == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"ctnode": 1}', '{"ctnode": {"volume": "x"}}'])
def test_a_ct_json_that_is_none_is_named_and_stops_nobody(root, content):
    root.queued(*stack(3))
    finish(root, MAIN)
    root.queued(*stack(2, series="1.2.3.2"))
    (root.layout.results / STUDY / SERIES / "r1" / "ct.json").write_text(content)
    with root.database.immediate():
        findings.record(root.database, 1, [])
    (named,) = findings.rebuild(root.database, root.layout)
    assert named.endswith(f"{SERIES}/r1")


def test_an_older_index_takes_what_was_found_from_its_jobs(tmp_path):
    node = Root(tmp_path / "node")
    node.queued(*stack(3))
    lease = jobs.claim(node.database, "one")
    assert lease is not None
    jobs.finish(node.database, lease, [report(MAIN), report(OTHER)], "", lambda _: None)
    # As an index that knew neither volumes nor issues: their migration has not run, what they hold is not there.
    with node.database.immediate():
        for statement in ("DROP TABLE issues", "DROP TABLE volumes"):
            node.database.execute(statement)
        node.database.execute("DELETE FROM _sqlite_migrations WHERE name = '0003_volumes'")
    node.restart()
    assert findings.of_revision(node.database, 1) == (MAIN, OTHER)
    node.close()


@pytest.mark.parametrize(
    ("numbers", "words"), [((), ""), ((4,), "4"), ((1, 2, 3), "1-3"), ((9, 3, 4, 4), "3-4, 9"), ((1, 3), "1, 3")]
)
def test_numbers_in_words(numbers, words):
    assert ranges(numbers) == words
