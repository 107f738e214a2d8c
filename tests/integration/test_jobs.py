"""The lease queue: one job, one owner, one fence; what counts against a job and what does not."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from ctnode.archive import jobs, revisions, timeline
from ctnode.archive.database import Database
from ctnode.archive.jobs import LEASE_S, Lease
from ctnode.words import JobState, LostLease, NotFound, RevisionState, WrongState
from tests.archive_root import Image, Root, stack

pytestmark = pytest.mark.integration


class Clock:
    """The wall clock that jobs and revisions read."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = type("FakeTime", (), {"time": staticmethod(clock.time)})
    for module in (jobs, revisions, timeline):
        monkeypatch.setattr(module, "time", fake)
    return clock


@pytest.fixture
def root(tmp_path: Path):
    node = Root(tmp_path / "node")
    yield node
    node.close()


def taken(root: Root, owner: str = "one") -> Lease:
    lease = jobs.claim(root.database, owner)
    assert lease is not None
    return lease


def done(root: Root, lease: Lease) -> bool:
    return jobs.finish(root.database, lease, [], "done", lambda _newest: None)


def states(root: Root) -> list[tuple[object, ...]]:
    return root.rows(
        "SELECT revisions.n, revisions.state, jobs.state FROM revisions"
        " LEFT JOIN jobs ON jobs.revision_id = revisions.id ORDER BY revisions.id"
    )


def fail(root: Root, clock: Clock) -> JobState:
    clock.now += jobs.MAX_RETRY_S
    return jobs.fail(root.database, taken(root), "the child of the job ended with 1")


def lose(root: Root, clock: Clock) -> None:
    clock.now += jobs.MAX_RETRY_S
    taken(root)
    clock.now += LEASE_S + 1
    assert jobs.claim(root.database, "janitor") is None


def test_claim_and_finish_move_job_and_revision_together(root: Root) -> None:
    root.queued(*stack(2))
    assert states(root) == [(1, "QUEUED", "QUEUED")]
    lease = taken(root)
    assert states(root) == [(1, "PROCESSING", "RUNNING")]
    assert jobs.claim(root.database, "two") is None
    told = []
    assert jobs.finish(root.database, lease, [{"status": "EXACT"}], "volume EXACT", told.append)
    assert told == [True]
    assert states(root) == [(1, "DONE", "DONE")]
    assert root.rows("SELECT owner, lease_until, attempt FROM jobs") == [("", None, 1)]
    assert jobs.claim(root.database, "two") is None
    assert root.breaches() == []


def test_the_oldest_due_job_comes_first(root: Root) -> None:
    for k in range(3):
        root.queued(*stack(1, series=f"1.2.3.{k + 1}"))
    assert [taken(root).revision_id for _ in range(3)] == [1, 2, 3]


def test_a_lease_is_at_least_a_minute(root: Root, clock: Clock) -> None:
    root.queued(*stack(1))
    taken(root)
    clock.now += 59.0
    assert jobs.claim(root.database, "two") is None
    assert LEASE_S >= 60


def test_a_renewed_lease_lasts(root: Root, clock: Clock) -> None:
    root.queued(*stack(1))
    lease = taken(root)
    for _ in range(5):
        clock.now += 45.0
        jobs.renew(root.database, lease)
        assert jobs.claim(root.database, "two") is None
    done(root, lease)


def test_a_stale_worker_publishes_nothing(root: Root, clock: Clock) -> None:
    root.queued(*stack(1))
    stale = taken(root)
    clock.now += LEASE_S + 1
    assert jobs.claim(root.database, "two") is None, "first it waits a little"
    clock.now += jobs.FIRST_RETRY_S + 1
    fresh = taken(root, "two")
    assert fresh.attempt == stale.attempt + 1
    published = []
    for act in (
        lambda: jobs.renew(root.database, stale),
        lambda: jobs.finish(root.database, stale, [], "", published.append),
        lambda: jobs.fail(root.database, stale, "too late"),
        lambda: jobs.give_back(root.database, stale, "too late"),
    ):
        with pytest.raises(LostLease):
            act()
    assert published == []
    assert states(root) == [(1, "PROCESSING", "RUNNING")]
    done(root, fresh)


def test_a_job_that_was_lost_and_not_claimed_again_is_fenced_too(root: Root, clock: Clock) -> None:
    root.queued(*stack(1))
    stale = taken(root)
    clock.now += LEASE_S + 1
    jobs.claim(root.database, "two")
    with pytest.raises(LostLease):
        done(root, stale)
    assert states(root) == [(1, "QUEUED", "RETRY")]


def test_nothing_changes_when_publishing_fails(root: Root) -> None:
    root.queued(*stack(1))
    lease = taken(root)

    def publish(_newest: bool) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        jobs.finish(root.database, lease, [], "", publish)
    assert states(root) == [(1, "PROCESSING", "RUNNING")]
    done(root, lease)


def test_three_failed_children_and_the_job_is_dead(root: Root, clock: Clock) -> None:
    root.queued(*stack(1))
    assert [fail(root, clock) for _ in range(3)] == [JobState.RETRY, JobState.RETRY, JobState.DEAD]
    assert states(root) == [(1, "FAILED", "DEAD")]
    (job,) = jobs.listing(root.database, state=JobState.DEAD)
    assert job.message.startswith("attempt 3 failed (3 of 3): the child of the job ended with 1")
    clock.now += 1e6
    assert jobs.claim(root.database, "two") is None
    assert root.breaches() == []


def test_ten_deaths_of_workers_and_the_job_is_dead(root: Root, clock: Clock) -> None:
    root.queued(*stack(1))
    for _ in range(9):
        lose(root, clock)
        assert states(root) == [(1, "QUEUED", "RETRY")]
    lose(root, clock)
    assert states(root) == [(1, "FAILED", "DEAD")]
    assert root.one("SELECT failures FROM jobs") == 0


def test_the_two_counts_do_not_add_up(root: Root, clock: Clock) -> None:
    root.queued(*stack(1))
    for _ in range(9):
        lose(root, clock)
    fail(root, clock)
    fail(root, clock)
    assert root.rows("SELECT failures, interruptions, state FROM jobs") == [(2, 9, "RETRY")]


def test_a_job_given_back_counts_for_nothing(root: Root) -> None:
    root.queued(*stack(1))
    for _ in range(20):
        jobs.give_back(root.database, taken(root), "the node stops")
    assert root.rows("SELECT failures, interruptions, state, attempt FROM jobs") == [(0, 0, "QUEUED", 20)]
    assert states(root) == [(1, "QUEUED", "QUEUED")]


def test_a_retry_waits_longer_each_time() -> None:
    waits = [jobs.retry_after_s(times) for times in range(1, 40)]
    assert waits[0] == jobs.FIRST_RETRY_S
    assert waits[1] == 2 * waits[0]
    assert waits == sorted(waits)
    assert waits[-1] == jobs.MAX_RETRY_S


def test_a_retry_is_not_claimed_before_it_is_due(root: Root, clock: Clock) -> None:
    root.queued(*stack(1))
    jobs.fail(root.database, taken(root), "")
    assert jobs.claim(root.database, "one") is None
    clock.now += jobs.FIRST_RETRY_S
    taken(root)


@pytest.mark.parametrize("end", ["dead", "done", "cancelled"])
def test_requeue_starts_both_counts_anew(root: Root, clock: Clock, end: str) -> None:
    root.queued(*stack(1))
    lose(root, clock)
    fail(root, clock)
    if end == "dead":
        fail(root, clock)
        fail(root, clock)
    elif end == "done":
        clock.now += jobs.MAX_RETRY_S
        done(root, taken(root))
    else:
        jobs.cancel(root.database, 1)
        assert states(root) == [(1, "KEPT", "CANCELLED")]
    revisions.requeue(root.database, 1)
    assert root.rows("SELECT failures, interruptions, state, message FROM jobs") == [(0, 0, "QUEUED", "")]
    assert states(root) == [(1, "QUEUED", "QUEUED")]
    done(root, taken(root))
    assert root.breaches() == []


def test_what_runs_or_waits_cannot_be_requeued(root: Root) -> None:
    root.hold(*stack(1))
    with pytest.raises(WrongState):
        revisions.requeue(root.database, 1)
    root.queued(Image("1.2.3.1.50"))
    with pytest.raises(WrongState):
        revisions.requeue(root.database, 1)
    taken(root)
    with pytest.raises(WrongState):
        revisions.requeue(root.database, 1)
    assert states(root) == [(1, "PROCESSING", "RUNNING")]


@pytest.mark.parametrize("running", [False, True])
def test_a_cancelled_job_is_taken_from_its_worker(root: Root, running: bool) -> None:
    root.queued(*stack(1))
    lease = taken(root) if running else None
    jobs.cancel(root.database, 1)
    assert states(root) == [(1, "KEPT", "CANCELLED")]
    if lease is not None:
        with pytest.raises(LostLease):
            jobs.renew(root.database, lease)
        with pytest.raises(LostLease):
            done(root, lease)
    assert root.breaches() == []


def test_what_is_not_there_or_over_cannot_be_cancelled(root: Root) -> None:
    with pytest.raises(NotFound):
        jobs.cancel(root.database, 1)
    root.queued(*stack(1))
    done(root, taken(root))
    with pytest.raises(WrongState):
        jobs.cancel(root.database, 1)
    assert states(root) == [(1, "DONE", "DONE")]


# ------------------------------------------------------------------------------- a newer revision comes


def late(root: Root) -> None:
    """Let a newer revision of the first series come."""
    root.hold(Image("1.2.3.1.99", position=99.0))


def test_a_queued_job_is_superseded_at_once(root: Root) -> None:
    root.queued(*stack(2))
    late(root)
    assert states(root) == [(1, "SUPERSEDED", "SUPERSEDED"), (2, "RECEIVING", None)]
    assert jobs.claim(root.database, "one") is None


def test_a_running_job_finishes_and_moves_only_its_own_revision(root: Root) -> None:
    root.queued(*stack(2))
    lease = taken(root)
    late(root)
    assert states(root) == [(1, "PROCESSING", "RUNNING"), (2, "RECEIVING", None)]
    assert not done(root, lease)
    assert states(root) == [(1, "SUPERSEDED", "DONE"), (2, "RECEIVING", None)]


@pytest.mark.parametrize("how", ["fails", "is lost", "is given back"])
def test_an_outdated_job_is_not_tried_again(root: Root, clock: Clock, how: str) -> None:
    root.queued(*stack(2))
    lease = taken(root)
    late(root)
    if how == "fails":
        jobs.fail(root.database, lease, "")
    elif how == "is lost":
        clock.now += LEASE_S + 1
        jobs.claim(root.database, "two")
    else:
        jobs.give_back(root.database, lease, "the node stops")
    assert states(root) == [(1, "SUPERSEDED", "SUPERSEDED"), (2, "RECEIVING", None)]
    clock.now += 1e6
    assert jobs.claim(root.database, "one") is None


def test_never_two_revisions_of_a_series_queued_or_running(root: Root) -> None:
    root.queued(*stack(2))
    lease = taken(root)
    late(root)
    root.complete()
    assert revisions.startable(root.database) == ()
    revisions.requeue(root.database, 1)
    assert states(root) == [(1, "PROCESSING", "RUNNING"), (2, "COMPLETE", None)]
    assert root.breaches() == []
    done(root, lease)
    (ready,) = revisions.startable(root.database)
    assert ready.n == 2


def test_a_hold_stops_the_step_out_of_complete_and_requeue_lifts_it(root: Root) -> None:
    root.hold(*stack(2))
    root.complete()
    with root.database.immediate():
        root.database.execute("UPDATE series SET hold = 'by hand'")
    assert revisions.startable(root.database) == ()
    revisions.requeue(root.database, 1)
    assert states(root) == [(1, "QUEUED", "QUEUED")]
    assert root.one("SELECT hold FROM series") == ""


def test_a_lease_of_a_dead_process_is_given_back_at_once(root: Root, clock: Clock) -> None:
    root.queued(*stack(1))
    root.queued(*stack(1, series="1.2.3.2"))
    taken(root, "dead")
    alive = taken(root, "alive")
    jobs.release_interrupted(root.database, "dead")
    assert root.rows("SELECT state, interruptions FROM jobs ORDER BY id") == [("RETRY", 1), ("RUNNING", 0)]
    done(root, alive)


# ------------------------------------------------------------------------------------------ two processes


def _grab(path: str, owner: str, go: object, answers: object) -> None:
    with Database(Path(path)) as database:
        go.wait()  # type: ignore[attr-defined]
        mine = []
        while (lease := jobs.claim(database, owner)) is not None:
            mine.append((lease.job_id, lease.attempt))
        answers.put(mine)  # type: ignore[attr-defined]


def test_two_processes_never_get_the_same_job(root: Root) -> None:
    count = 12
    for k in range(count):
        root.queued(*stack(1, series=f"1.2.3.{k + 1}"))
    context = multiprocessing.get_context("spawn")
    go, answers = context.Event(), context.Queue()
    path = str(root.layout.database)
    processes = [context.Process(target=_grab, args=(path, str(k), go, answers)) for k in range(2)]
    for process in processes:
        process.start()
    go.set()
    claimed = [lease for _ in processes for lease in answers.get(timeout=60)]
    for process in processes:
        process.join()
    answers.close()
    answers.join_thread()
    assert sorted(claimed) == [(k + 1, 1) for k in range(count)]
    assert {state for (state,) in root.rows("SELECT state FROM jobs")} == {"RUNNING"}
    assert all(revisions.get(root.database, k + 1).state is RevisionState.PROCESSING for k in range(count))
