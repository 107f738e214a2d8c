"""The digest that is taken beside an association is that of all its pieces, in their order."""

from __future__ import annotations

import hashlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctnode.archive.hashing import Helper, RunningDigest

pytestmark = pytest.mark.unit


@given(st.lists(st.tuples(st.binary(max_size=5000), st.booleans()), max_size=12), st.booleans())
def test_pieces_handed_over_and_not_make_one_digest(pieces: list[tuple[bytes, bool]], is_alone: bool) -> None:
    helper = Helper()
    helper.is_alone = is_alone
    running = RunningDigest(helper)
    for piece, is_offered in pieces:
        if is_offered and running.begin(memoryview(piece)):
            assert is_alone
        else:
            assert not (is_offered and is_alone)
            running.update(memoryview(piece))
    assert running.digest() == hashlib.sha256(b"".join(piece for piece, _ in pieces)).digest()


def test_a_buffer_may_be_changed_once_its_piece_is_settled() -> None:
    helper = Helper()
    running = RunningDigest(helper)
    buffer = bytearray(1 << 16)
    expected = hashlib.sha256()
    for number in range(200):
        buffer[:] = bytes([number]) * len(buffer)
        expected.update(buffer)
        assert running.begin(memoryview(buffer))
        running.settle()
    assert running.digest() == expected.digest()


def test_there_is_one_thread_and_only_for_who_is_alone() -> None:
    helper = Helper()
    running = RunningDigest(helper)
    assert running.begin(memoryview(b"a"))
    before = threading.active_count()
    helper.is_alone = False
    assert not running.begin(memoryview(b"b"))
    helper.is_alone = True
    assert running.begin(memoryview(b"b"))
    assert threading.active_count() == before
    assert running.digest() == hashlib.sha256(b"ab").digest()


def test_where_no_thread_is_to_be_had_nothing_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    running = RunningDigest(Helper())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert not running.begin(memoryview(b"a"))
    running.update(memoryview(b"a"))
    assert running.begin(memoryview(b"b"))
    assert running.digest() == hashlib.sha256(b"ab").digest()
