"""The openers, children of the web role that open stored objects: few, within the worker's limits, started when needed.

Hostile bytes can hang, fill the memory or end the process that opens them; so the role itself opens none. An order
that goes beyond its limits is refused, and its child is ended.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import queue
import selectors
import struct
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass
from typing import Any, Final

from ctnode.config import Worker
from ctnode.ops.process import end_group, resident_bytes_of_group

# Before each answer: the length of its JSON object and of its raw bytes.
LENGTHS: Final = struct.Struct("<IQ")
CHILDREN: Final = 2
# A picture that somebody waits for; worker.timeout_s is for whole series.
TIMEOUT_S: Final = 30.0
WAIT_S: Final = 20.0
START_S: Final = 60.0
WATCH_S: Final = 0.05
LARGEST_ANSWER_BYTES: Final = 1 << 28
_CHUNK_BYTES: Final = 1 << 20

_Children = queue.LifoQueue[subprocess.Popen[bytes] | None]


class Unrenderable(Exception):
    """What was asked for cannot be given: the HTTP status and why, without any value of a data set."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


@dataclass(frozen=True, slots=True)
class Answer:
    """What a child says: some fields and raw bytes."""

    fields: dict[str, Any]
    content: bytes


class Openers:
    """A few children that open stored objects, each started when it is first needed.

    Parameters
    ----------
    limits
        ``memory_mb`` and ``timeout_s`` of the worker hold for them too; no order takes more than 30 s.
    """

    def __init__(self, limits: Worker, *, children: int = CHILDREN, wait_s: float = WAIT_S) -> None:
        self._memory_bytes = limits.memory_mb << 20
        self._timeout_s = min(limits.timeout_s, TIMEOUT_S)
        self._wait_s = wait_s
        self._free: _Children = queue.LifoQueue()
        for _ in range(children):
            self._free.put(None)
        # A child dies with the thread that started it, and the threads that serve requests come and go.
        self._starter = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="opener-start")
        self.close = weakref.finalize(self, _close, self._free, self._starter)

    def ask(self, **order: object) -> Answer:
        """Have one order carried out, as ``ctnode.web.opener`` names them.

        Raises
        ------
        Unrenderable
            404 where there is nothing of the kind, 406 where it cannot be shown, 503 where all children are busy.
        """
        try:
            child = self._free.get(timeout=self._wait_s)
        except queue.Empty:
            raise Unrenderable(503, "too many pictures are being made; try again") from None
        try:
            if child is not None and child.poll() is not None:
                _end(child)
                child = None
            try:
                if child is None:
                    child = self._starter.submit(_start).result()
                    # Its imports take most of a second, more on a busy machine: no fault of the object.
                    self._hear_it_is_ready(child)
                answer = self._exchange(child, json.dumps(order).encode() + b"\n")
            except BaseException:
                if child is not None:
                    _end(child)
                child = None
                raise
        finally:
            self._free.put(child)
        if "ok" not in answer.fields:
            raise Unrenderable(int(answer.fields["status"]), str(answer.fields["refused"]))
        return Answer(answer.fields["ok"], answer.content)

    def _hear_it_is_ready(self, child: subprocess.Popen[bytes]) -> None:
        with selectors.DefaultSelector() as ready:
            assert child.stdout is not None
            ready.register(child.stdout, selectors.EVENT_READ)
            began = time.monotonic() + START_S - self._timeout_s
            self._read(child, ready, LENGTHS.size, began)

    def _exchange(self, child: subprocess.Popen[bytes], order: bytes) -> Answer:
        assert child.stdin is not None
        began = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it ended: seen when its answer is read
            child.stdin.write(order)
            child.stdin.flush()
        with selectors.DefaultSelector() as ready:
            assert child.stdout is not None
            ready.register(child.stdout, selectors.EVENT_READ)
            head, content = LENGTHS.unpack(self._read(child, ready, LENGTHS.size, began))
            if head + content > LARGEST_ANSWER_BYTES:
                raise Unrenderable(406, "the object is too large to be shown at once")
            fields = json.loads(self._read(child, ready, head, began))
            return Answer(fields, self._read(child, ready, content, began))

    def _read(self, child: subprocess.Popen[bytes], ready: selectors.BaseSelector, count: int, began: float) -> bytes:
        assert child.stdout is not None
        read = bytearray()
        while len(read) < count:
            if ready.select(WATCH_S):
                block = os.read(child.stdout.fileno(), min(_CHUNK_BYTES, count - len(read)))
                if not block:
                    raise Unrenderable(406, "the process that opens the object did not survive it")
                read += block
            elif resident_bytes_of_group(child.pid) > self._memory_bytes:
                raise Unrenderable(406, "the object takes more memory than worker.memory_mb to open")
            if time.monotonic() - began > self._timeout_s:
                raise Unrenderable(406, f"the object takes longer than {self._timeout_s:g} s to open")
        return bytes(read)


def _close(free: _Children, starter: concurrent.futures.ThreadPoolExecutor) -> None:
    """End the children that are idle; the others end with their order, since nobody holds their pipes any more."""
    with contextlib.suppress(queue.Empty):
        while True:
            child = free.get_nowait()
            if child is not None:
                _end(child)
    starter.shutdown(wait=False)


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "ctnode.web.opener", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    end_group(child.pid)
    child.wait()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
