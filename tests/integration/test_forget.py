"""Forgetting leaves no byte of a patient below the root, a count without identity, and everybody else as he was."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ctnode.archive import evidence, outbox, revisions
from ctnode.archive.outbox import Parcel
from ctnode.cli import cli
from ctnode.config import Retention
from ctnode.flow import forgetting
from ctnode.words import DeliveryEvent, Evidence, EvidenceKind, NotFound, RevisionEvent
from tests.archive_root import Image, Root, stack, without_syncs
from tests.integration.test_retention import Crash, done, retain

pytestmark = pytest.mark.integration

# Long enough to be nowhere by chance.
STUDY, SERIES, PATIENT = "1.2.826.77001", "1.2.826.77001.5", "MRN-CANARY-4711"
OTHER = "1.2.826.88002"
POINTS = ("forget.marked", "forget.removed", "forget.before-commit", "forget.before-wipe")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Root]:
    without_syncs(monkeypatch)
    node = Root(tmp_path / "node")
    yield node
    node.close()


def fill(root: Root) -> revisions.Revision:
    """Bring in a patient with all that a node can know of him, and another one."""
    revision = done(root, *stack(3, study=STUDY, series=SERIES, patient=PATIENT))
    (root.layout.result_directory(STUDY, SERIES, 1, 1) / "ct.json").write_text(json.dumps({"series": SERIES}))
    root.hold(Image(f"{SERIES}.2", study=STUDY, series=SERIES, patient=PATIENT, pixels=b"zzzz"))
    root.complete(1)
    with root.database.immediate():
        outbox.post(root.database, revision.id, [Parcel("pacs", "report", f"{STUDY}/{SERIES}/r1/report.dcm", "d")])
        for study, series, name in ((STUDY, SERIES, "1.9.1"), (STUDY, "", "1.9.2"), ("", "", "1.9.3")):
            evidence.record(
                root.database,
                Evidence(EvidenceKind.MPPS_COMPLETED, time.time(), "CT1", study, series, name, 2,
                         (f"{SERIES}.1", f"{OTHER}.5.1")),
            )  # fmt: skip
        root.database.execute(
            "INSERT INTO commitments (transaction_uid, calling_ae, called_ae, peer, peer_address, association,"
            " asked_at, state, due_at, instances, failures) VALUES ('1.8.1', 'A', 'B', '', '', '', 0, 'SENT', 0, ?, ?)",
            (json.dumps([["1.1", f"{SERIES}.1"], ["1.1", f"{OTHER}.5.1"]]), json.dumps([["1.1", f"{SERIES}.1", 272]])),
        )
        root.database.execute(
            "UPDATE associations SET refusals = ? WHERE id = 1", (json.dumps([{"sop_instance": f"{SERIES}.9"}]),)
        )
    (kept,) = root.push([Image(f"{SERIES}.3", study=STUDY, series=SERIES, patient=PATIENT)])
    quarantined = root.layout.quarantine / "x.dcm"
    kept.path.rename(quarantined)
    root.index.quarantine(quarantined, "a", "as a test wants it")
    root.settle()
    done(root, *stack(2, study=OTHER, series=f"{OTHER}.5", patient="P2"))
    return revision


def found(root: Root, *words: str) -> dict[str, list[str]]:
    """Return the files of the root that hold a word, or have it in their names."""
    return {
        word: hits
        for word in words
        if (
            hits := [
                str(path.relative_to(root.layout.root))
                for path in root.layout.root.rglob("*")
                if word in str(path.relative_to(root.layout.root))
                or (path.is_file() and word.encode() in path.read_bytes())
            ]
        )
    }


def command(root: Root, *words: str, answer: str = "") -> Result:
    file = root.layout.root.parent / "config.toml"
    file.write_text(f'[storage]\nroot = "{root.layout.root}"\n')
    return CliRunner().invoke(cli, ["--config", str(file), "forget", *words], input=answer)


def fingerprint(root: Root) -> list[list[tuple[object, ...]]]:
    """Return what the index says of the other patient."""
    of_other = "SELECT series.id FROM series JOIN studies ON studies.id = study_id WHERE studies.uid = ?"
    return [
        root.rows(f"SELECT sop_instance, digest, path FROM instances WHERE series_id IN ({of_other})", OTHER),
        root.rows(f"SELECT n, state, instances FROM revisions WHERE series_id IN ({of_other})", OTHER),
        root.rows(f"SELECT kind, text FROM timeline WHERE series_id IN ({of_other})", OTHER),
    ]


@pytest.mark.parametrize("words", [(SERIES,), (STUDY,), ("--patient", PATIENT)])
def test_nothing_of_a_patient_is_left_below_the_root(root: Root, words: tuple[str, ...]) -> None:
    fill(root)
    before = fingerprint(root)
    assert set(found(root, STUDY, SERIES, PATIENT)) == {STUDY, SERIES, PATIENT}
    told = command(root, *words, "--reason", "consent withdrawn", "--yes", "--json")
    assert told.exit_code == 0, told.output
    assert {key: json.loads(told.output)[key] for key in ("series", "studies", "images", "results")} == {
        "series": 1, "studies": 1, "images": 4, "results": 1,
    }  # fmt: skip
    assert found(root, STUDY, SERIES, PATIENT) == {}
    assert fingerprint(root) == before
    assert root.rows("SELECT reason, studies, series, instances, results, deliveries FROM forgotten") == [
        ("consent withdrawn", 1, 1, 4, 1, 1)
    ]
    assert root.one("SELECT instances FROM evidence") == json.dumps([f"{OTHER}.5.1"])
    assert root.one("SELECT instances FROM commitments") == json.dumps([["1.1", f"{OTHER}.5.1"]])
    assert root.breaches() == []


def test_a_later_image_of_the_same_series_is_a_new_series(root: Root) -> None:
    fill(root)
    assert command(root, SERIES, "--reason", "x", "--yes").exit_code == 0
    root.hold(*stack(1, study=STUDY, series=SERIES, patient=PATIENT))
    assert root.rows("SELECT n, state FROM revisions JOIN series ON series.id = series_id WHERE uid = ?", SERIES) == [
        (1, "RECEIVING")
    ]
    assert root.breaches() == []


def test_what_retention_deleted_before_is_forgotten_too(root: Root) -> None:
    done(root, *stack(3, study=STUDY, series=SERIES, patient=PATIENT))
    retain(root, Retention(originals_days=1e-9, results_days=1e-9, floor_days=0))
    assert found(root, SERIES)
    told = command(root, "--patient", PATIENT, "--reason", "x", "--yes")
    assert told.exit_code == 0, told.output
    assert found(root, STUDY, SERIES) == {}
    assert root.breaches() == []


def test_no_number_of_a_job_or_delivery_is_given_twice(root: Root) -> None:
    done(root, *stack(2, study=OTHER, series=f"{OTHER}.5", patient="P2"))
    revision = done(root, *stack(3, study=STUDY, series=SERIES, patient=PATIENT))
    with root.database.immediate():
        outbox.post(root.database, revision.id, [Parcel("pacs", "report", "a", "d")])
    jobs, deliveries = root.rows("SELECT (SELECT max(id) FROM jobs), (SELECT max(id) FROM deliveries)")[0]
    assert command(root, SERIES, "--reason", "x", "--yes").exit_code == 0
    again = root.queued(*stack(3, study="1.2.9", series="1.2.9.1"))
    with root.database.immediate():
        outbox.post(root.database, again.id, [Parcel("pacs", "report", "a", "d")])
    assert int(str(root.one("SELECT max(id) FROM jobs"))) > int(str(jobs))
    assert int(str(root.one("SELECT max(id) FROM deliveries"))) > int(str(deliveries))


def test_what_is_on_its_way_is_waited_for(root: Root) -> None:
    revision = fill(root)
    (sending,) = outbox.claim(root.database, "pacs", "me")
    chosen = forgetting.survey(root.database, root.layout, forgetting.find_uid(root.database, SERIES, None))
    assert chosen.sent == (("pacs", 1),)
    with root.database.immediate():
        outbox.post(root.database, revision.id, [Parcel("pacs", "sr", "b", "d")])
        request = root.database.insert(
            "INSERT INTO requests (kind, argument, asked_at) VALUES ('forget', ?, 0)",
            (forgetting.order(chosen, "me", "x"),),
        )
    assert not forgetting.carry_out(root.database, root.layout, request)
    assert root.rows("SELECT state FROM deliveries ORDER BY id") == [("SENDING",), ("CANCELLED",)]
    assert len(root.files("store")) == 6
    outbox.settle(root.database, [outbox.Ending(sending, DeliveryEvent.SEND, 0)])
    assert forgetting.carry_out(root.database, root.layout, request)
    assert found(root, SERIES, PATIENT) == {}


@pytest.mark.parametrize("point", POINTS)
def test_the_end_at_any_step_is_rolled_forward(root: Root, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    fill(root)
    before = fingerprint(root)
    chosen = forgetting.survey(root.database, root.layout, forgetting.find_uid(root.database, STUDY, None))
    with root.database.immediate():
        request = root.database.insert(
            "INSERT INTO requests (kind, argument, asked_at) VALUES ('forget', ?, 0)",
            (forgetting.order(chosen, "me", "x"),),
        )

    def die(name: str) -> None:
        if name == point:
            raise Crash(name)

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "crash_point", die)
        with pytest.raises(Crash):
            forgetting.carry_out(root.database, root.layout, request)
    root.restart()
    assert root.breaches() == []
    assert forgetting.carry_out(root.database, root.layout, request)
    assert found(root, STUDY, SERIES, PATIENT) == {}
    assert root.rows("SELECT instances FROM forgotten") == [(4,)]
    assert fingerprint(root) == before
    assert root.breaches() == []


def test_a_job_that_runs_loses_its_series(root: Root) -> None:
    fill(root)
    with root.database.immediate():
        newest = revisions.newest(root.database, 1)
        revisions.queue(root.database, newest)
        revisions.move(root.database, newest.id, RevisionEvent.CLAIM)
        root.database.execute("UPDATE jobs SET state = 'RUNNING' WHERE revision_id = ?", (newest.id,))
    assert command(root, SERIES, "--reason", "x", "--yes").exit_code == 0
    with pytest.raises(NotFound):
        revisions.get(root.database, newest.id)
    assert root.breaches() == []


def test_it_asks_first_and_says_how_much_it_is(root: Root) -> None:
    fill(root)
    told = command(root, STUDY, "--reason", "x", answer="n\n")
    assert told.exit_code != 0
    assert "Erase 1 series of 1 studies, 4 images, 1 results?" in told.output
    assert len(root.files("store")) == 6


def test_what_it_does_not_reach_is_said(root: Root) -> None:
    fill(root)
    (root.layout.root / "ctnode.db.before-migration-1").write_bytes(b"")
    (claimed,) = outbox.claim(root.database, "pacs", "me")
    outbox.sent(root.database, claimed, 0, "")
    told = command(root, STUDY, "--reason", "x", "--yes").output
    assert "1 objects that were sent, or may have been, to pacs" in told
    assert "an older copy of the index: ctnode.db.before-migration-1" in told
    assert STUDY not in told
    shown = command(root, "--list", "--json")
    assert [entry["reason"] for entry in json.loads(shown.output)] == ["x"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((SERIES, "--yes"), "give a --reason"),
        (("--reason", "x", "--yes"), "name a UID, or --patient ID"),
        ((SERIES, "--reason", f"because {SERIES} has to go", "--yes"), "do not name in it"),
    ],
)
def test_a_wrong_call_is_explained(root: Root, words: tuple[str, ...], said: str) -> None:
    fill(root)
    told = command(root, *words)
    assert told.exit_code == 2
    assert said in told.output
    assert len(root.files("store")) == 6


def test_an_unknown_uid_and_an_unknown_patient_are_not_found(root: Root) -> None:
    fill(root)
    with pytest.raises(NotFound, match="no series or study"):
        forgetting.find_uid(root.database, "1.2", None)
    with pytest.raises(NotFound, match="no series of this patient"):
        forgetting.find_patient(root.database, root.layout, "NOBODY-HAS-THIS", "")
