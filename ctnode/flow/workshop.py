"""The child of ``ctnode process``: one process that makes the results of one series after the other within limits.

Decoders are foreign code, and hostile pixels have ended the whole process in one of them. So they run in a child that
starts while the headers are still read; when it dies, or is stopped because it takes too much memory or time, only the
series that it worked on is refused, and a new one takes the next.

Order: eight bytes of length and a pickle of the images, to its standard input (it is ours, so that is safe). Answers:
JSON lines on its standard output (it may have been damaged, so nothing of it is unpickled).
"""

from __future__ import annotations

import json
import os
import pickle
import selectors
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

from ctnode.config import Outputs, Worker
from ctnode.ops.process import end_group, resident_bytes_of_group
from ctnode.words import Issue, Refusal, Unavailable, VolumeReport

if TYPE_CHECKING:
    from ctnode.ct.source import Frame
    from ctnode.flow.job import Job

WATCH_S: Final = 0.05
LENGTH: Final = struct.Struct("<Q")
_CHUNK_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Order:
    """What the child is to do; ``job.on_step`` stays behind, since steps are told as answers."""

    frames: tuple[Frame, ...]
    faults: tuple[Issue, ...]
    job: Job


class Workshop:
    """A child that is there from the start, and again after each death, until the block ends."""

    def __init__(self, limits: Worker, wanted: Outputs) -> None:
        self._limits = limits
        self._wanted = wanted
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def run(
        self, frames: Sequence[Frame], faults: Sequence[Issue], job: Job, on_step: Callable[[str], None]
    ) -> list[VolumeReport]:
        """Return what the child makes of one series.

        Raises
        ------
        Refusal
            Codes ``CRASHED``, ``OUT_OF_MEMORY``, ``OUT_OF_TIME`` and ``INTERNAL_ERROR``, when it could not.
        Unavailable
            If the folder of the results takes no files.
        """
        order = pickle.dumps(Order(tuple(frames), tuple(faults), job))
        steps: list[str] = []
        try:
            reports, code = self._ask(self._child or self._start(), order, steps, on_step)
            if reports is None and not steps:
                # It was gone before it had begun, so it was not this series that ended it.
                reports, code = self._ask(self._start(), order, steps, on_step)
        except BaseException:
            self._end()
            raise
        if reports is not None:
            return reports
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise Refusal(
            f"the process that reads the images ended with {how} during {steps[-1] if steps else 'its start'}",
            code="CRASHED",
            hint="most likely a decoder does not survive these pixels",
        )

    def _ask(
        self, child: subprocess.Popen[bytes], order: bytes, steps: list[str], on_step: Callable[[str], None]
    ) -> tuple[list[VolumeReport] | None, int]:
        """Return the child's reports; None with its exit code if it ended without any."""
        for answer in self._answers(child, order):
            if "step" in answer:
                steps.append(answer["step"])
                on_step(answer["step"])
            elif "reports" in answer:
                return [VolumeReport.from_json(report) for report in answer["reports"]], 0
            elif "storage" in answer:
                raise Unavailable(f"the results cannot be written: {answer['storage']}")
            elif "code" in answer:
                raise Refusal(answer["error"], code=answer["code"])
            else:
                raise Refusal(f"{answer['error']}; please report it", code="INTERNAL_ERROR")
        code = child.wait()
        self._end()
        return None, code

    def _start(self) -> subprocess.Popen[bytes]:
        self._end()
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "ctnode.flow.child", str(os.getpid()), self._wanted.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self._child

    def _end(self) -> None:
        if self._child is None:
            return
        end_group(self._child.pid)
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # it died before it had read its order
                continue
        self._child = None

    def _answers(self, child: subprocess.Popen[bytes], order: bytes) -> Iterator[dict[str, Any]]:
        """Yield the child's answers until it ends; refuse when it goes beyond its limits."""
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(LENGTH.pack(len(order)) + order)
            child.stdin.flush()
        except BrokenPipeError:
            return
        began = time.monotonic()
        pending = b""
        with selectors.DefaultSelector() as ready:
            ready.register(child.stdout, selectors.EVENT_READ)
            while True:
                if ready.select(WATCH_S):
                    content = os.read(child.stdout.fileno(), _CHUNK_BYTES)
                    if not content:
                        return
                    *lines, pending = (pending + content).split(b"\n")
                    yield from (json.loads(line) for line in lines)
                self._check(child, time.monotonic() - began)

    def _check(self, child: subprocess.Popen[bytes], seconds: float) -> None:
        if resident_bytes_of_group(child.pid) > self._limits.memory_mb << 20:
            raise Refusal(
                f"took more than {self._limits.memory_mb} MB of memory (worker.memory_mb)", code="OUT_OF_MEMORY"
            )
        if seconds > self._limits.timeout_s:
            raise Refusal(f"took longer than {self._limits.timeout_s:g} s (worker.timeout_s)", code="OUT_OF_TIME")


def read_order(pipe: BinaryIO) -> Order | None:
    """Return the next order, None when there will be no more."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    order = pickle.loads(pipe.read(LENGTH.unpack(head)[0]))  # noqa: S301 - written by our own parent
    assert isinstance(order, Order)
    return order
