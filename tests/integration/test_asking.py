"""Questions to peers: planned from the index, asked of a peer of any manners, and never in the way of a series."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context

from ctnode.archive import asks, evidence, jobs
from ctnode.config import Config, Peer, Storage
from ctnode.flow.asking import Asker, missing_of
from ctnode.wire.calling import Callee
from ctnode.wire.query import FIND, GET, MOVE, Found, QueryFault, Retrieved, Wanted, find, get, move
from ctnode.words import BadInstance, JobState, StorageError
from tests.archive_root import SERIES, STUDY, Image, Root, stack
from tests.wire_peers import CT, EXPLICIT, uid

pytestmark = pytest.mark.integration

TIMEOUT_S = 5.0
WANTED = Wanted(STUDY, SERIES)
Answers = Callable[[Any], Iterator[Any]]


@contextmanager
def archive(
    *, on_find: Answers | None = None, on_move: Answers | None = None, on_get: Answers | None = None
) -> Iterator[Callee]:
    """Serve query and retrieve as the handlers say."""
    entity = AE("PACS")
    for sop_class in (FIND, MOVE, GET):
        entity.add_supported_context(sop_class)
    entity.add_supported_context(CT, scu_role=True, scp_role=True)
    handlers: list[Any] = [
        (event, handler)
        for event, handler in ((evt.EVT_C_FIND, on_find), (evt.EVT_C_MOVE, on_move), (evt.EVT_C_GET, on_get))
        if handler is not None
    ]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        yield Callee("PACS", "127.0.0.1", server.socket.getsockname()[1])
    finally:
        server.shutdown()


def answers(*instances: str, series: str = SERIES, final: int = 0x0000) -> Answers:
    def on_find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        for instance in instances:
            answer = Dataset()
            answer.QueryRetrieveLevel = event.identifier.QueryRetrieveLevel
            answer.SeriesInstanceUID = series
            answer.SOPInstanceUID = instance
            answer.SOPClassUID = CT
            yield 0xFF00, answer
        if final:
            yield final, None

    return on_find


def counted(count: str | None) -> Answers:
    def on_find(event: Any) -> Iterator[tuple[int, Dataset]]:
        answer = Dataset()
        answer.QueryRetrieveLevel = "SERIES"
        answer.SeriesInstanceUID = SERIES
        if count is not None:
            answer.NumberOfSeriesRelatedInstances = count
        yield 0xFF00, answer

    return on_find


def ask_exactly(callee: Callee) -> Found:
    return find(callee, "CTNODE", WANTED, is_exact=True, timeout_s=TIMEOUT_S)


def ask_number(callee: Callee) -> Found:
    return find(callee, "CTNODE", WANTED, is_exact=False, timeout_s=TIMEOUT_S)


def test_each_instance_or_their_number() -> None:
    with archive(on_find=answers(uid(1), uid(2), uid(1))) as callee:
        assert ask_exactly(callee) == Found(2, frozenset({uid(1), uid(2)}), frozenset({CT}))
    with archive(on_find=answers()) as callee:
        assert ask_exactly(callee) == Found(0, frozenset(), frozenset())
        assert ask_number(callee) == Found(0, None, frozenset())
    with archive(on_find=counted("12")) as callee:
        assert ask_number(callee) == Found(12, None, frozenset())


# pynetdicom leaves the socket of a connection that was refused to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_answers_that_are_none() -> None:
    # An archive that does not look at the series answers with the whole study: those count as nothing.
    with archive(on_find=answers(uid(1), series=uid(8))) as callee:
        assert ask_exactly(callee).count == 0
    with archive(on_find=answers(uid(1), final=0xC001)) as callee, pytest.raises(QueryFault, match="C001"):
        ask_exactly(callee)
    with archive(on_find=counted(None)) as callee, pytest.raises(QueryFault, match="how many"):
        ask_number(callee)
    with pytest.raises(QueryFault, match="no association"):
        ask_exactly(Callee("PACS", "127.0.0.1", 1))


@pytest.mark.parametrize(
    ("instances", "count", "held", "missing"),
    [({"1", "2"}, 2, {"1"}, 1), ({"1"}, 1, {"1", "2"}, 0), (None, 5, {"1", "2"}, 3), (None, 1, {"1", "2"}, 0)],
)
def test_what_is_missing(instances: set[str] | None, count: int, held: set[str], missing: int) -> None:
    found = Found(count, None if instances is None else frozenset(instances), frozenset())
    assert missing_of(found, frozenset(held)) == missing


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_move_that_fails_in_part() -> None:
    def on_move(event: Any) -> Iterator[Any]:
        # Nobody is there to send to.
        yield "127.0.0.1", 1, {"contexts": [build_context(CT)]}
        yield 1
        yield 0xFF00, None

    with archive(on_move=on_move) as callee:
        result = move(callee, "CTNODE", WANTED, TIMEOUT_S)
    assert not result.is_whole
    assert result.status == 0xA801


def test_many_instances_are_asked_for_in_parts() -> None:
    seen: list[int] = []

    def on_get(event: Any) -> Iterator[Any]:
        value = event.identifier.SOPInstanceUID
        seen.append(len(value) if isinstance(value, Sequence) and not isinstance(value, str) else 1)
        yield 0

    names = tuple(uid(number) for number in range(300))
    with archive(on_get=on_get) as callee:
        kept = get(callee, "CTNODE", Wanted(STUDY, SERIES, names), {CT}, lambda *_: None, TIMEOUT_S)
    assert (kept, seen) == (Retrieved(0, 0, 0, 0), [256, 44])


def test_what_cannot_be_kept_is_answered_so() -> None:
    faults = iter([StorageError("full"), BadInstance("no UID"), ValueError("ours"), None])

    def on_get(event: Any) -> Iterator[Any]:
        yield 4
        for number in range(4):
            data = Dataset()
            data.SOPClassUID, data.SOPInstanceUID = CT, uid(number)
            data.file_meta = FileMetaDataset()
            data.file_meta.TransferSyntaxUID = EXPLICIT
            yield 0xFF00, data

    def keep(*_: object) -> None:
        fault = next(faults)
        if fault is not None:
            raise fault

    with archive(on_get=on_get) as callee:
        result = get(callee, "CTNODE", WANTED, {CT}, keep, TIMEOUT_S)
    assert (result.completed, result.failed) == (1, 3)
    assert not result.is_whole


# ----------------------------------------------------------------------------------------------------------- planning


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    made = Root(tmp_path, lambda _association, _revision: 0.001)
    yield made
    made.close()


def receiving(root: Root, images: Sequence[Image]) -> None:
    root.hold(*images)
    root.database.execute("UPDATE associations SET peer = 'pacs'")
    root.database.connection.commit()


def state(root: Root) -> object:
    return root.one("SELECT state FROM jobs WHERE kind = 'ask'")


def test_a_series_is_asked_about_once_until_more_comes(root: Root) -> None:
    receiving(root, stack(2))
    asks.plan(root.database, {"other"})
    assert not root.rows("SELECT 1 FROM jobs")
    asks.plan(root.database, {"pacs"})
    asks.plan(root.database, {"pacs"})
    assert asks.peers_due(root.database) == ("pacs",)
    ask = asks.claim(root.database, "pacs", "me")
    assert ask is not None
    assert (ask.study, ask.series, ask.is_receiving) == (STUDY, SERIES, True)
    with root.database.immediate():
        asks.done(root.database, ask, "all is here")
    asks.plan(root.database, {"pacs"})
    assert (state(root), asks.peers_due(root.database)) == ("DONE", ())
    root.hold(*stack(3))
    asks.plan(root.database, {"pacs"})
    assert (state(root), asks.peers_due(root.database)) == ("QUEUED", ("pacs",))


def test_no_worker_takes_a_question_and_its_revision_stays(root: Root) -> None:
    receiving(root, stack(2))
    asks.plan(root.database, {"pacs"})
    assert jobs.claim(root.database, "worker") is None
    assert asks.claim(root.database, "pacs", "me") is not None
    jobs.release_interrupted(root.database, "me")
    assert state(root) == "RUNNING"
    assert root.one("SELECT state FROM revisions") == "RECEIVING"
    # Its process died: another one takes it up.
    asks.release_interrupted(root.database)
    assert state(root) == "QUEUED"
    (job,) = jobs.listing(root.database)
    jobs.cancel(root.database, job.id)
    assert (state(root), root.one("SELECT state FROM revisions")) == (JobState.CANCELLED, "RECEIVING")
    assert not root.breaches()


def test_a_question_whose_thread_died_is_taken_up_when_its_lease_is_over(root: Root) -> None:
    receiving(root, stack(2))
    asks.plan(root.database, {"pacs"})
    first = asks.claim(root.database, "pacs", "me")
    assert (first is not None, asks.peers_due(root.database)) == (True, ())
    root.database.execute("UPDATE jobs SET lease_until = 0")
    root.database.connection.commit()
    assert asks.peers_due(root.database) == ("pacs",)
    second = asks.claim(root.database, "pacs", "me")
    assert first is not None
    assert second is not None
    with root.database.immediate():
        asks.done(root.database, first, "late")
    assert (state(root), second.attempt) == ("RUNNING", 2)


def test_an_answer_that_breaks_the_library_counts_as_a_failure(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr("ctnode.flow.asking.find", broken)
    receiving(root, stack(2))
    run(root, config_of(root, Callee("PACS", "127.0.0.1", 1), active_check="image"))
    assert root.one("SELECT message FROM jobs") == "pacs: no usable answer: AttributeError"


def test_the_third_failure_is_the_last(root: Root) -> None:
    receiving(root, stack(2))
    asks.plan(root.database, {"pacs"})
    for left in ("RETRY", "RETRY", "DEAD"):
        ask = asks.claim(root.database, "pacs", "me")
        assert ask is not None
        asks.failed(root.database, ask, "no answer")
        assert state(root) == left
        root.database.execute("UPDATE jobs SET due_at = 0")
        root.database.connection.commit()
    assert asks.claim(root.database, "pacs", "me") is None


def config_of(root: Root, callee: Callee, **keys: object) -> Config:
    peer: dict[str, Any] = {"name": "pacs", "ae_title": "PACS", "host": callee.host, "port": callee.port, **keys}
    return Config(peers=(Peer(**peer),), storage=Storage(root=str(root.layout.root), reserve_mb=0, reserve_inodes=0))


def run(root: Root, config: Config) -> None:
    asker = Asker(root.layout)
    asker.begin(root.database)
    asker.start_due(root.database, config)
    while asker.busy:
        threading.Event().wait(0.02)
    asker.stop()


def test_a_peer_that_holds_more_and_is_not_to_be_fetched_from_is_asked_again(root: Root) -> None:
    images = stack(2)
    receiving(root, images)
    names = [*(image.sop for image in images), uid(9)]
    with archive(on_find=answers(*names)) as callee:
        run(root, config_of(root, callee, active_check="image"))
    assert state(root) == "RETRY"
    (told,) = evidence.of_series(root.database, 1)
    assert (told.kind, told.source, told.count, set(told.instances)) == ("query_result", "pacs", 3, set(names))
    (words,) = root.rows("SELECT text FROM timeline WHERE kind = 'asked'")
    assert words == ("pacs holds 3 instances, 1 of them are not here",)


def test_a_peer_that_takes_a_connection_and_says_nothing(root: Root) -> None:
    receiving(root, stack(2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        callee = Callee("PACS", "127.0.0.1", silent.getsockname()[1])
        run(root, config_of(root, callee, active_check="image", query_timeout_s=0.3))
    assert state(root) == "RETRY"
    assert not evidence.of_series(root.database, 1)


def test_one_question_to_a_peer_at_a_time(root: Root) -> None:
    together, most = 0, 0
    lock = threading.Lock()

    def on_find(event: Any) -> Iterator[Any]:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        yield 0xFF00, next(answers("1.5")(event))[1]
        with lock:
            together -= 1

    receiving(root, [Image(f"1.2.{n}", series=f"1.3.{n}") for n in range(4)])
    with archive(on_find=on_find) as callee:
        run_config = config_of(root, callee, active_check="image")
        asker = Asker(root.layout)
        for _ in range(3):
            asker.start_due(root.database, run_config)
        while asks.peers_due(root.database):
            threading.Event().wait(0.02)
        asker.stop()
    assert most == 1


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"active_check": "image"}, "query_port"),
        ({"active_check": "series", "port": 104, "host": "10.0.0.0/8"}, "query_host"),
        ({"retrieve": "get"}, "active_check"),
    ],
)
def test_a_peer_that_cannot_be_asked_is_a_mistake(keys: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Peer(**{"name": "p", "ae_title": "P", "host": "10.0.0.1", **keys})
